"""The shard's place in the directory: what it says of itself each second, and what it reads there for itself.

Three things follow from what is read. An operator wants this shard drained: it takes nobody new and its connections
go to the owners of their slots. A slot has another owner: its connections go there. A younger process has registered
under our id: it is our successor, everything goes to it, and this process ends.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import gevent

from headrace.directory import Directory, ShardEntry, Snapshot
from headrace.errors import DirectoryUnavailableError
from headrace.placement import rendezvous
from headrace.stream import SLOTS

logger = logging.getLogger(__name__)

BUSY_INTERVAL_S: Final = 0.2


class Registration:
    """Registers the shard, takes over slots whose owner is gone, and tells where connections belong.

    Owned by its own greenlet. Without Redis it goes on trying; nothing else of the shard depends on it. placed is
    called with each snapshot that was read, by this greenlet.
    """

    def __init__(
        self,
        directory: Directory,
        entry: Callable[[], ShardEntry],
        placed: Callable[[Snapshot], None],
        interval_s: float,
    ) -> None:
        self.away = False
        self.succeeded = False
        self._directory = directory
        self._entry = entry
        self._placed = placed
        self._interval_s = interval_s
        self._known: Snapshot | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start registering; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Remove the entry, so that nobody is sent here any more, and end. Yields, about two seconds at most."""
        if self._greenlet is None:
            return
        self._greenlet.kill()
        self._greenlet = None
        entry = self._entry()
        try:
            self._directory.leave(entry.id, entry.pid)
        except DirectoryUnavailableError:
            logger.info("Redis is away; the entry of %s expires by itself", entry.id)

    def announce(self) -> None:
        """Register and read, as each second. Yields. Without Redis it says so and returns."""
        try:
            entry = self._entry()
            if not self.succeeded:
                # Looked for before registering, which would overwrite a successor's entry.
                self.succeeded = successor(self._directory.read(self._known), entry) is not None
                if self.succeeded:
                    logger.info("a younger process has the id %s; it gets the connections", entry.id)
            if not self.succeeded:
                self._directory.register(entry)
                self._directory.claim(entry.node)
            self._known = self._directory.read(self._known)
        except DirectoryUnavailableError as error:
            if not self.away:
                logger.warning("going on with the last known assignments: %s", error)
            self.away = True
            return
        if self.away:
            logger.warning("Redis is back")
        self.away = False
        self._placed(self._known)

    def _run(self) -> None:
        while True:
            self.announce()
            # While connections move, somebody waits for us to say how far we are.
            gevent.sleep(min(self._interval_s, BUSY_INTERVAL_S) if self._entry().moving else self._interval_s)


def successor(snapshot: Snapshot, entry: ShardEntry) -> ShardEntry | None:
    """The entry of a younger process with the same id on this machine, if there is one.

    Connections are handed over within one machine only, and only within one boot of it do ages compare. A process of
    version 0.1 tells, and compares, wall time alone: it succeeds, and is succeeded, unless the clock was set back.
    """
    for other in snapshot.shards:
        if other.id == entry.id and other.pid != entry.pid and _younger(other, entry):
            return other
    return None


def _younger(other: ShardEntry, entry: ShardEntry) -> bool:
    boot, age_ms = _birth(entry)
    other_boot, other_age_ms = _birth(other)
    if not boot or not other_boot:
        return other.started_ms >= entry.started_ms
    return other_boot == boot and other_age_ms >= age_ms


def _birth(entry: ShardEntry) -> tuple[str, int]:
    """(the boot, the machine's age in ms), or ("", 0) if the process does not tell."""
    parts = entry.born.split(" ")
    told = len(parts) == 3 and parts[0] == str(entry.pid) and parts[2].isdecimal()
    return (parts[1], int(parts[2])) if told else ("", 0)


def elsewhere(snapshot: Snapshot, entry: ShardEntry) -> Mapping[int, str]:
    """The slots whose connections belong to another process of the node, each with its hand-off socket.

    A slot whose owner is unknown, dead or not up stays where it is, unless this shard is to be empty: then its first
    choice among those that are up gets it.
    """
    following = successor(snapshot, entry)
    if following is not None:
        return dict.fromkeys(range(SLOTS), following.path)
    others = {
        other.id: other.path
        for other in snapshot.shards
        if other.node == entry.node
        and other.state == "up"
        and other.id not in snapshot.drained
        and other.id != entry.id
    }
    if not others:
        return {}
    owners = snapshot.slots.get(entry.node, {})
    leaving = entry.id in snapshot.drained
    paths: dict[int, str] = {}
    for slot in range(SLOTS):
        owner = owners.get(slot)
        if owner in others:
            paths[slot] = others[owner]
        elif leaving:
            paths[slot] = others[rendezvous(slot, others)[0]]
    return paths
