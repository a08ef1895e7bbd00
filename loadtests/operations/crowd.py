"""Thousands of clients on plain sockets, read by one thread, each of them checked event by event.

id: 17 / data: t=… …     the next event of the client's stream, published at t (CLOCK_MONOTONIC, nanoseconds)
"""

import select
import socket
import threading
import time
from collections import Counter

from loadtests.chunks import Body

CONNECT_DEADLINE_S = 20.0


class CrowdClient:
    """One connection that begins before the first event of its stream. Owned by the crowd's thread.

    last is the id of its last event, heard_at when that came.
    """

    __slots__ = ("body", "connection", "heard_at", "last", "rest", "stream")

    def __init__(self, connection: socket.socket, stream: str) -> None:
        self.connection = connection
        self.stream = stream
        self.body = Body(b"")
        self.rest = b""
        self.last = 0
        self.heard_at = 0.0


class Crowd:
    """All clients. Owned by the main thread, except for the reading, which its own thread does.

    problems counts broken promises by their kind: `closed` (a connection has ended), `hole`, `repeat` (or disorder),
    `sentinel` (a gap, a reset, a goodbye), `head` (no event stream was answered). deliveries counts events. silence_s
    is the longest that any client waited from one event to the next, and age_s the greatest age of an event at its
    receipt, both since `listen_anew`.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.problems: Counter[str] = Counter()
        self.deliveries = 0
        self.silence_s = 0.0
        self.age_s = 0.0
        self._address = address
        self._clients: dict[int, CrowdClient] = {}
        self._poll = select.epoll()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, name="crowd")

    def join(self, path: str, stream: str) -> None:
        """Connect one more client. MUST be called before `start`."""
        connection = socket.create_connection(self._address, timeout=CONNECT_DEADLINE_S)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: operations\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and (data := connection.recv(4096)):
            head += data
        if not head.startswith(b"HTTP/1.1 200 "):
            self.problems["head"] += 1
        connection.setblocking(False)
        client = CrowdClient(connection, stream)
        head, _, rest = head.partition(b"\r\n\r\n")
        client.body = Body(head)
        client.rest = client.body.feed(rest)
        self._clients[connection.fileno()] = client
        self._poll.register(connection, select.EPOLLIN)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def listen_anew(self) -> None:
        """Forget the longest silence and the greatest age."""
        self.silence_s = self.age_s = 0.0

    def behind(self, heads: dict[str, int]) -> int:
        """How many clients lack an event up to these heads."""
        return sum(client.last < heads[client.stream] for client in self._clients.values())

    def stop(self) -> None:
        """Stop reading and close all connections."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        for client in self._clients.values():
            client.connection.close()
        self._poll.close()

    def _read(self) -> None:
        while not self._ending.is_set():
            for descriptor, _ in self._poll.poll(0.1):
                client = self._clients[descriptor]
                try:
                    data = client.connection.recv(1 << 16)
                    body = client.body.feed(data) if data else None
                except BlockingIOError:
                    continue
                except (OSError, ValueError):
                    body = None
                if body is not None:
                    self._take(client, body)
                else:
                    self.problems["closed"] += 1
                    self._poll.unregister(descriptor)

    def _take(self, client: CrowdClient, data: bytes) -> None:
        *blocks, client.rest = (client.rest + data).split(b"\n\n")
        now = time.monotonic()
        for block in blocks:
            head, separator, text = block.partition(b"\ndata: t=")
            if not separator:
                # Lines that dispatch no event (comments, `retry:`) may stand before a frame's.
                if b"\nevent: headrace:" in b"\n" + block and b"event: headrace:cursor\n" not in block:
                    self.problems["sentinel"] += 1
                continue
            id_ = int(head.rpartition(b"id: ")[2].partition(b"-")[0])
            if id_ != client.last + 1:
                self.problems["hole" if id_ > client.last else "repeat"] += 1
            client.last = max(client.last, id_)
            self.deliveries += 1
            self.age_s = max(self.age_s, now - int(text.partition(b" ")[0]) / 1e9)
            if client.heard_at:
                self.silence_s = max(self.silence_s, now - client.heard_at)
            client.heard_at = now
