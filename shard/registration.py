"""The shard's entry in the directory: written every second, so that routers know it lives and how full it is."""

import logging
from collections.abc import Callable

import gevent

from headrace.directory import Directory, ShardEntry
from headrace.errors import DirectoryUnavailableError

logger = logging.getLogger(__name__)


class Registration:
    """Registers the shard and takes over slots whose owner is gone.

    Owned by its own greenlet. Without Redis it goes on trying; nothing else of the shard depends on it.
    """

    def __init__(self, directory: Directory, entry: Callable[[], ShardEntry], interval_s: float) -> None:
        self.away = False
        self._directory = directory
        self._entry = entry
        self._interval_s = interval_s
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start registering; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Remove the entry, so that nobody is sent here any more, and end. Yields, about two seconds at most."""
        if self._greenlet is not None:
            self._greenlet.kill()
        entry = self._entry()
        try:
            self._directory.leave(entry.id, entry.pid)
        except DirectoryUnavailableError:
            logger.info("Redis is away; the entry of %s expires by itself", entry.id)

    def announce(self) -> None:
        """Register at once, as after a change of state. Yields. Without Redis it says so and returns."""
        try:
            entry = self._entry()
            self._directory.register(entry)
            self._directory.claim(entry.node)
        except DirectoryUnavailableError as error:
            if not self.away:
                logger.warning("going on with the last known assignments: %s", error)
            self.away = True
        else:
            if self.away:
                logger.warning("Redis is back")
            self.away = False

    def _run(self) -> None:
        while True:
            self.announce()
            gevent.sleep(self._interval_s)
