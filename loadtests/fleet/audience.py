"""One subscriber of the hot stream on each shard, all read by one thread and checked event by event."""

import re
import select
import socket
import threading
import time
from collections import Counter
from typing import Final

from loadtests.fleet.fleet_shard import FleetShard

FIRST_S: Final = 30.0
_FRAME: Final = re.compile(rb"\nid: (?P<id>\d+)[^\n]*(?P<rest>(?:\ndata: |\nevent: headrace:cursor\n|$))")
"""The event's type is `message`, so its data follow its id."""


class _Subscriber:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rest = b""
        self.last: int | None = None


class Audience:
    """All subscribers. Owned by the main thread, except for the reading, which its own thread does.

    problems counts what no shard may do: `hole`, `repeat`, `closed`, and `sentinel` for one that tells of lost events.

        id: 17                                       where the subscriber is; the first one says where it begins
        id: 17 / event: headrace:cursor / data: …    the same
        id: 18 / data: …                             an event
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.problems: Counter[str] = Counter()
        self._poll = select.epoll()
        self._subscribers: dict[int, _Subscriber] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, name="audience")
        self._thread.start()

    def join(self, shard: FleetShard) -> None:
        """One more subscriber; returns when its shard has told it where it begins."""
        subscriber = _Subscriber(shard.connect(self.stream))
        subscriber.connection.setblocking(False)
        self._subscribers[subscriber.connection.fileno()] = subscriber
        self._poll.register(subscriber.connection, select.EPOLLIN)
        deadline = time.monotonic() + FIRST_S
        while subscriber.last is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{shard.id} does not tell its subscriber where it begins")
            time.sleep(0.01)

    def behind(self, head: int) -> int:
        """How many subscribers lack an event up to this id."""
        return sum((subscriber.last or 0) < head for subscriber in list(self._subscribers.values()))

    def stop(self) -> None:
        """Stop reading, and close all connections."""
        self._ending.set()
        self._thread.join()
        for subscriber in self._subscribers.values():
            subscriber.connection.close()
        self._poll.close()

    def _read(self) -> None:
        while not self._ending.is_set():
            for descriptor, _ in self._poll.poll(0.1):
                subscriber = self._subscribers[descriptor]
                try:
                    data = subscriber.connection.recv(1 << 16)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if data:
                    self._take(subscriber, data)
                else:
                    self.problems["closed"] += 1
                    self._poll.unregister(descriptor)

    def _take(self, subscriber: _Subscriber, data: bytes) -> None:
        *blocks, subscriber.rest = (subscriber.rest + data).split(b"\n\n")
        for block in blocks:
            found = _FRAME.search(b"\n" + block)
            if found is None:
                if b"\nevent: headrace:" in b"\n" + block:
                    self.problems["sentinel"] += 1
                continue
            id_ = int(found["id"])
            is_event = found["rest"].startswith(b"\ndata: ")
            if is_event and subscriber.last is not None and id_ != subscriber.last + 1:
                self.problems["hole" if id_ > subscriber.last else "repeat"] += 1
            subscriber.last = max(subscriber.last or 0, id_)
