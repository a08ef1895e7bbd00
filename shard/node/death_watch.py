"""The other shards of this node: an idle channel to each, which ends when its process does, tells of its death at once.

The directory alone would notice only when an entry expires, and could not tell a dead process from one that is slow.
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
"""In which a process that was killed has closed everything, and none that is started in its place listens yet."""
Key = tuple[str, int, str]


class DeathWatch:
    """Watches processes by their hand-off sockets; died is called, in a greenlet of its own, with one that is gone.

    Owned by the registration's greenlet. That nobody listens at a socket that is there proves a death; a process that
    stops in order removes it, and a successor has put its own in its place.
    """

    def __init__(self, died: Callable[[ShardEntry], None]) -> None:
        self._died = died
        self._watching: dict[Key, gevent.Greenlet[..., None]] = {}

    def watch(self, entries: Iterable[ShardEntry]) -> None:
        """Watch these from now on and no others. Does not yield."""
        wanted = {(entry.id, entry.pid, entry.path): entry for entry in entries}
        for key in self._watching.keys() - wanted.keys():
            self._watching.pop(key).kill(block=False)
        for key, entry in wanted.items():
            if key not in self._watching:
                self._watching[key] = gevent.spawn(self._follow, key, entry)

    def stop(self) -> None:
        """Watch nobody. Yields."""
        gevent.killall(list(self._watching.values()))
        self._watching.clear()

    def _follow(self, key: Key, entry: ShardEntry) -> None:
        try:
            ended = _wait_for_end(entry.path)
            if ended and _listens(entry.path):
                # A process that is killed closes its files one by one, and our channel may come before its socket.
                gevent.sleep(CLOSING_S)
            if ended and not _listens(entry.path):
                self._died(entry)
        except OSError as error:
            # As when this process may open no more files.
            logger.info("shard %s is not watched for a moment: %s", entry.id, error)
        finally:
            # Watched again if the next snapshot still has it.
            if self._watching.get(key) is gevent.getcurrent():
                del self._watching[key]


def _wait_for_end(path: str) -> bool:
    """Whether there was an end to see, or nobody to begin with. Yields."""
    with gsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        try:
            channel.connect(path)
            # Nobody writes to a channel without a hand-off: what comes is its end.
            channel.recv(1)
        except OSError as error:
            return isinstance(error, ConnectionError)
        return True


def _listens(path: str) -> bool:
    """False if the socket is there without a process; a socket that is not there proves nothing. Yields."""
    with gsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        try:
            channel.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True
