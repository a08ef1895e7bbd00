"""A client that follows a stream in a test, with a deadline for each event."""

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from headrace.event import CURSOR_TYPE
from headrace.node.sse_client import CHUNK_BYTES, Message, Parser

TIMEOUT_S: Final = 10.0


class StreamClient:
    """A client of one stream URL, whose bytes a thread of its own reads. Owned by the block `follow` that yields it."""

    def __init__(self, response: HTTPResponse, timeout_s: float) -> None:
        self._response = response
        self._timeout_s = timeout_s
        self._arrived: queue.Queue[Message | None] = queue.Queue()
        self._placed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="headrace test client", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float | None = None) -> Message:
        """Wait for the next event, and return it: `id`, `type` and `data`, all of them texts.

        timeout_s is the client's own when None. Raises AssertionError when no event has come by then, and when the
        server has ended the stream.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            message = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no event came within {timeout_s:g} s") from None
        if message is None:
            self._arrived.put(None)
            raise AssertionError("the server has ended the stream")
        return message

    def wait_until_placed(self) -> None:
        """Wait until the server has told where the client begins: all later events reach it. Raises AssertionError."""
        if not self._placed.wait(self._timeout_s):
            raise AssertionError(f"the server has not told the client's place within {self._timeout_s:g} s")

    def join(self) -> None:
        """Wait for the end of the thread; the connection MUST be shut down before."""
        self._thread.join(self._timeout_s)

    def _read(self) -> None:
        parser = Parser()
        # ValueError is how a response tells that it was closed.
        with contextlib.suppress(OSError, HTTPException, ValueError):
            while data := self._response.read1(CHUNK_BYTES):
                for message in parser.feed(data):
                    if message.type != CURSOR_TYPE:
                        self._arrived.put(message)
                if parser.last_id:
                    self._placed.set()
        self._arrived.put(None)
        self._placed.set()


@contextmanager
def follow(url: str, *, timeout_s: float = TIMEOUT_S) -> Iterator[StreamClient]:
    """Follow a stream URL, as a browser does, within the block, and yield a client with the method `next`.

    The block begins when the client has its place in the stream, so what is published in the block arrives. timeout_s
    is how many seconds each wait may take. Raises AssertionError for an answer other than an event stream, and OSError
    where no server answers.
    """
    parts = urlsplit(url)
    assert parts.hostname, f"{url!r} has no host; give a whole URL, as of a page while `serve` runs"
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers={"Accept": "text/event-stream"})
        opened = connection.sock
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(
                f"the server answered {response.status}: {response.read(500).decode('utf-8', 'replace')}"
            )
        opened.settimeout(None)  # heartbeats are rarer than the deadline of an event
        client = StreamClient(response, timeout_s)
        try:
            client.wait_until_placed()
            yield client
        finally:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            client.join()
            response.close()
    finally:
        connection.close()
