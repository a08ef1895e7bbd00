"""A client of event streams: the parser of the standard (WHATWG HTML, 9.2.6) and a follower that reconnects."""

import codecs
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.errors import TokenError, UnavailableError

SILENCE_S = 60.0
"""Heartbeats come far more often: after this the connection is dead, whatever TCP thinks."""
CHUNK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Message:
    """A dispatched event; id is the last `id:` received by then, which is what a client sends back."""

    id: str
    type: str
    data: str


class Parser:
    """Turns the bytes of an event stream, cut anywhere, into messages.

    last_id is the cursor, also after frames of an `id:` line alone; retry_ms the last `retry:`, None before one.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._after_cr = False
        self._first = True
        self._id = ""  # becomes last_id with its frame's blank line: a frame that is cut off was not received
        self._type = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Message]:
        """Parse more bytes; the messages that are complete with them."""
        text = self._decoder.decode(data)
        if self._first and text:
            text = text.removeprefix("\ufeff")
            self._first = False
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if text.endswith("\r"):
            self._after_cr = True
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        *lines, self._rest = (self._rest + text).split("\n")
        messages = []
        for line in lines:
            message = self._line(line)
            if message is not None:
                messages.append(message)
        return messages

    def _line(self, line: str) -> Message | None:
        if not line:
            type_, data = self._type or "message", self._data
            self._type, self._data = "", []
            self.last_id = self._id
            return Message(self.last_id, type_, "\n".join(data)) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            self.comments += 1
        elif field == "data":
            self._data.append(value)
        elif field == "event":
            self._type = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None


def follow(url: str, *, since: str | None = None) -> Iterator[Message]:
    """Yield the messages of a stream URL for ever, over any number of connections.

    since is where to begin: an id or cursor, `now` or `all`; None means `now`. After that each connection goes on
    where the last one ended. Raises TokenError where the server refuses the URL for good; everything else is
    tried again, with jitter.
    """
    cursor = since
    wait_s = 2.0
    while True:
        request = urllib.request.Request(url)  # noqa: S310 (the caller's own URL)
        if cursor is not None:
            request.add_header("Last-Event-ID", cursor)
        parser = Parser()
        try:
            with urllib.request.urlopen(request, timeout=SILENCE_S) as response:  # noqa: S310
                while data := response.read1(CHUNK_BYTES):
                    for message in parser.feed(data):
                        yield message
                        cursor = parser.last_id or cursor
                    cursor = parser.last_id or cursor
        except urllib.error.HTTPError as error:
            if error.code < 500:
                sentence = error.read(500).decode("utf-8", "replace").strip()
                raise TokenError(f"the server answered {error.code}: {sentence or error.reason}") from error
            wait_s = float(error.headers.get("Retry-After") or 2)
        except OSError:
            pass
        wait_s = parser.retry_ms / 1000 if parser.retry_ms is not None else wait_s
        time.sleep(wait_s * random.uniform(0.5, 1.0))


def check_reachable(url: str, timeout_s: float = 5.0) -> None:
    """Raise UnavailableError, saying what to do, if no server answers at the URL's host."""
    try:
        urllib.request.urlopen(url, timeout=timeout_s).close()  # noqa: S310
    except urllib.error.HTTPError:
        return
    except OSError as error:
        raise UnavailableError(f"nothing answers at {url} ({error}); is `headrace up` running?") from error
