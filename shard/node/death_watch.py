"""The death watch: this shard keeps an idle channel to each other shard of its node, and a channel ends with its
process.

So a death is noticed at once. The directory alone would show it only when the entry of the dead shard expires, and
could not tell a dead process from a slow one.
"""

import logging
import socket
from collections.abc import Callable, Iterable
from typing import Final

import gevent
from gevent import socket as gsocket

from headrace.node.shard_entry import ShardEntry

logger = logging.getLogger(__name__)

CLOSING_S: Final = 0.2
"""The time after which a killed process has closed all its files, while no process that replaces it listens yet."""
Key = tuple[str, int, str]


class DeathWatch:
    """Watches shards by their hand-off sockets. died(entry) is called, in a greenlet of its own, when a shard has died.

    Owned by the registration's greenlet. A socket file at which no process listens proves a death: a process that stops
    in order removes its socket file, and a successor replaces the file by its own.
    """

    def __init__(self, died: Callable[[ShardEntry], None]) -> None:
        self._died = died
        self._watching: dict[Key, gevent.Greenlet[..., None]] = {}

    def watch(self, entries: Iterable[ShardEntry]) -> None:
        """Watch these shards from now on, and no others. Does not yield."""
        wanted = {(entry.id, entry.pid, entry.path): entry for entry in entries}
        for key in self._watching.keys() - wanted.keys():
            self._watching.pop(key).kill(block=False)
        for key, entry in wanted.items():
            if key not in self._watching:
                self._watching[key] = gevent.spawn(self._follow, key, entry)

    def stop(self) -> None:
        """Watch no shard any more. Yields."""
        gevent.killall(list(self._watching.values()))
        self._watching.clear()

    def _follow(self, key: Key, entry: ShardEntry) -> None:
        try:
            ended = _wait_for_end(entry.path)
            if ended and _listens(entry.path):
                # A killed process closes its files one by one: it may close our channel before its listening socket.
                gevent.sleep(CLOSING_S)
            if ended and not _listens(entry.path):
                self._died(entry)
        except OSError as error:
            # For example, this process may open no more files.
            logger.info("shard %s is not watched for a moment: %s", entry.id, error)
        finally:
            # The shard is watched again if the next snapshot still has it.
            if self._watching.get(key) is gevent.getcurrent():
                del self._watching[key]


def _wait_for_end(path: str) -> bool:
    """Whether the process at path has ended, or did not listen to begin with. Yields."""
    with gsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        try:
            channel.connect(path)
            # A shard writes to a channel only in a hand-off, so that the first thing to read here is the end.
            channel.recv(1)
        except OSError as error:
            return isinstance(error, ConnectionError)
        return True


def _listens(path: str) -> bool:
    """False if the socket file is there and no process listens at it; a missing file proves nothing. Yields."""
    with gsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        try:
            channel.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True
