"""Clients that do not read while a scenario measures: a server serves them as any, and they use no processor time."""

import re
import socket
from types import TracebackType
from typing import Final

from loadtests.bench.clients import FailedError

BUFFER_BYTES: Final = 1 << 20
"""Has room for some hundred small events: the kernel counts about a kibibyte for each. The kernel doubles this size."""
PATIENCE_S: Final = 20.0
_IDS: Final = re.compile(rb"^id: (\d+)\ndata", re.MULTILINE)


class PausedClients:
    """Connections to one stream that only `begin` and `wake` read from. A context. Owned by the scenario."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self._address = address
        self._request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self._clients: list[socket.socket] = []
        self._begun = 0

    def __enter__(self) -> "PausedClients":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()

    def __len__(self) -> int:
        return len(self._clients)

    def ports(self) -> set[int]:
        """The local ports of the connections."""
        return {client.getsockname()[1] for client in self._clients}

    def come(self, count: int) -> None:
        """Connect count more clients, and ask for the stream."""
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            client.settimeout(PATIENCE_S)
            client.connect(self._address)
            client.sendall(self._request)
            self._clients.append(client)

    def begin(self, mark: bytes = b"\nid: ") -> None:
        """Wait until every client that has come since the last call is served, as the text of mark shows."""
        for client in self._clients[self._begun :]:
            text = b""
            while mark not in text:
                text += _received(client)
        self._begun = len(self._clients)

    def wake(self, first: int, last: int) -> None:
        """Read all events that have come.

        Raises FailedError unless each client has exactly the events first to last.
        """
        end = b"id: %d\ndata" % last
        for client in self._clients:
            text = b""
            while end not in text or not text.endswith((b"\n\n", b"\n\n\r\n")):
                text += _received(client)
            ids = [int(found) for found in _IDS.findall(text)]
            if ids != list(range(first, last + 1)):
                raise FailedError(
                    f"of the events {first} to {last} a client was sent {len(ids)}: {ids[:3]} … {ids[-3:]}"
                )


def _received(client: socket.socket) -> bytes:
    """The bytes that a client has received, or the next that come."""
    try:
        data = client.recv(1 << 22)
    except TimeoutError:
        raise FailedError(f"a client was sent nothing for {PATIENCE_S:g} s") from None
    if not data:
        raise FailedError("the server has ended a connection")
    return data
