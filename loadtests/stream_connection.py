"""One connection to an event stream: a plain socket, since the tests look at the bytes that arrive, and when."""

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from headrace.event import CURSOR_TYPE
from headrace.node.sse_client import SILENCE_S, Message, Parser

CONNECT_DEADLINE_S = 10.0
MOST_HEAD_BYTES = 64 << 10


class RefusedError(Exception):
    """The server's answer is not an event stream."""

    def __init__(self, status: int, retry_after_s: float, sentence: str) -> None:
        super().__init__(f"{status} {sentence}")
        self.retry_after_s = retry_after_s


class EndedError(Exception):
    """The stream has ended, or brought nothing for so long that it is dead."""


@dataclass(frozen=True, slots=True)
class CursorNotice:
    """A cursor that the server tells without an event of the application's: an `id:` alone, or `headrace:cursor`."""

    id: str


class StreamConnection:
    """One request for a stream, and its answer. Owned by one greenlet or thread."""

    def __init__(self, base_url: str, path: str, last_id: str = "", *, receive_buffer: int = 0) -> None:
        """Connect and read the response's head. last_id is the Last-Event-ID, if any.

        receive_buffer is the socket's, in bytes; 0 leaves it to the system. Raises RefusedError for any status but
        200, OSError if there is no connection.
        """
        self._parser = Parser()
        self._heard = time.monotonic()
        self._socket = _connected(base_url, receive_buffer)
        try:
            # HTTP/1.0, so that no proxy on the way cuts the body into chunks.
            lines = [f"GET {path} HTTP/1.0", f"Host: {urlsplit(base_url).netloc}", "Accept: text/event-stream"]
            lines += [f"Last-Event-ID: {last_id}"] if last_id else []
            self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            self._rest = self._head()
        except BaseException:
            self.close()
            raise

    def read(self, timeout_s: float, most: int = 1 << 18) -> list[Message | CursorNotice]:
        """Return the messages that have arrived within timeout_s, perhaps none. Yields.

        Raises EndedError at the stream's end.
        """
        data, self._rest = self._rest, b""
        if not data:
            self._socket.settimeout(max(timeout_s, 0.001))
            try:
                data = self._socket.recv(most)
            except TimeoutError:
                if time.monotonic() - self._heard > SILENCE_S:
                    raise EndedError(f"no heartbeat for {SILENCE_S:g} s") from None
                return []
            except OSError as error:
                raise EndedError(str(error)) from error
            if not data:
                raise EndedError("the server closed the stream")
            self._heard = time.monotonic()
        return list(self._parsed(data))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _parsed(self, data: bytes) -> Iterator[Message | CursorNotice]:
        # The first id tells where the stream begins, so it is passed on even if events came in the same piece of data.
        while data and not self._parser.last_id:
            frame, end, data = data.partition(b"\n\n")
            yield from self._fed(frame + end)
        if data:
            yield from self._fed(data)

    def _fed(self, data: bytes) -> Iterator[Message | CursorNotice]:
        before = self._parser.last_id
        messages = self._parser.feed(data)
        yield from (CursorNotice(message.id) if message.type == CURSOR_TYPE else message for message in messages)
        if messages:
            before = messages[-1].id
        if self._parser.last_id != before:
            yield CursorNotice(self._parser.last_id)

    def _head(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self._socket.recv(65536)
            if not piece or len(data) > MOST_HEAD_BYTES:
                raise ConnectionError(f"the server ended in the response's head, after {len(data)} bytes")
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ", 2)[1])
        if status != 200:
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            sentence = rest.decode("utf-8", "replace").strip()[:200]
            raise RefusedError(status, float(headers.get("retry-after") or 2), sentence or first)
        return rest


def _connected(base_url: str, receive_buffer: int) -> socket.socket:
    parts = urlsplit(base_url)
    secure = parts.scheme == "https"
    found = socket.getaddrinfo(
        parts.hostname, parts.port or (443 if secure else 80), type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        if receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(CONNECT_DEADLINE_S)
        made.connect(address)
        return ssl.create_default_context().wrap_socket(made, server_hostname=parts.hostname) if secure else made
    except BaseException:
        made.close()
        raise
