"""A few clients of one stream, which this process reads: they tell the publisher how far the server has got."""

import re
import selectors
import socket
import time
from types import TracebackType
from typing import Final

from loadtests.bench.clients import FailedError

MOST: Final = 64
PATIENCE_S: Final = 20.0
_ID: Final = re.compile(rb"^id: (\d+)\n", re.MULTILINE)
_TAIL: Final = 32


class Pilot:
    """Connections that follow a stream. A context. Owned by the publisher.

    A server writes to its clients in some order, perhaps that of their arrival: let one `join` now and then while
    the others arrive, so that one is near the beginning of that order. seen is the newest id that any of them has
    received.
    """

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.seen = -1
        self._address = address
        self._request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self._selector = selectors.DefaultSelector()
        self._tails: dict[socket.socket, bytes] = {}

    def join(self) -> None:
        """Connect one more client, unless there are MOST already."""
        if len(self._tails) < MOST:
            client = socket.create_connection(self._address)
            client.sendall(self._request)
            self._tails[client] = b""
            self._selector.register(client, selectors.EVENT_READ)

    def __enter__(self) -> "Pilot":
        return self

    def begin(self) -> None:
        """Wait until all clients have been told the stream's newest id. Raises FailedError."""
        while not all(b"id: " in tail for tail in self._tails.values()):
            if not self.watch(10, keep=1 << 16):
                raise FailedError("a stream did not begin within 10 s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()
        for client in self._tails:
            client.close()

    def reach(self, id_: int) -> None:
        """Wait until one of the clients has received this id. Raises FailedError."""
        deadline = time.monotonic() + PATIENCE_S
        while self.seen < id_:
            self.watch(1)
            if time.monotonic() > deadline:
                raise FailedError(f"nothing new was delivered for {PATIENCE_S:g} s")

    def watch(self, timeout_s: float, keep: int = _TAIL) -> bool:
        """Read what comes next, waiting at most timeout_s; returns whether anything came."""
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            client = key.fileobj
            assert isinstance(client, socket.socket)
            data = client.recv(1 << 18)
            if not data:
                raise FailedError("the server has ended a connection")
            text = self._tails[client] + data
            self._tails[client] = text[-keep:]
            ids = _ID.findall(text)
            if ids:
                self.seen = max(self.seen, int(ids[-1]))
        return bool(ready)
