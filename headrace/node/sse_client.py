"""A client of event streams: the parser of the standard (WHATWG HTML, 9.2.6) and a follower that reconnects."""

import codecs
import http.client
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message as Headers
from email.utils import parsedate_to_datetime
from typing import Final

from headrace.errors import TokenError, UnavailableError
from headrace.event import CURSOR_TYPE
from headrace.node import http_client, tls_errors

SILENCE_S = 60.0
"""A connection on which nothing came for so long is dead, even if TCP reports no error: heartbeats come more often."""
CHUNK_BYTES = 65536
BROKEN: Final = (OSError, http.client.HTTPException)
"""The errors that a broken connection raises: OSError for resets, time-outs and TLS; HTTPException for an answer that
is no HTTP, or that is cut off."""
WAIT_S: Final = 2.0
LONGEST_WAIT_S: Final = 30.0
LONGEST_RETRY_AFTER_S: Final = 3600.0
_PASSING: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Message:
    """A dispatched event. id is the last `id:` received by then, which a client sends back as its cursor."""

    id: str
    type: str
    data: str


class Parser:
    """Turns the bytes of an event stream, which may be cut anywhere, into messages.

    last_id is the cursor, also after a frame of an `id:` line alone. retry_ms is the last `retry:`, None before the
    first. comments counts the comments, such as heartbeats.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest: list[str] = []  # of a line that has not ended: pieces, or a long one would be copied with each
        self._after_cr = False
        self._first = True
        self._id = ""  # becomes last_id with its frame's blank line: a frame that is cut off was not received
        self._type = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Message]:
        """Parse more bytes; returns the messages that they complete."""
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
        first, *others = text.split("\n")
        self._rest.append(first)
        if not others:
            return []
        lines = ["".join(self._rest), *others[:-1]]
        self._rest = others[-1:]
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


def follow(
    url: str, *, since: str | None = None, tell: Callable[[str], object] = lambda sentence: None
) -> Iterator[Message]:
    """Yield the messages of a stream URL for ever, over any number of connections.

    since is where to begin: an id or cursor, `now` or `all`; None means `now`. Each further connection goes on where
    the one before it ended. tell is given a sentence when a connection is lost or refused, and when there is one again.
    Raises TokenError if the server refuses the URL for good; after any other failure it tries again, with jitter.
    """
    cursor = since
    wait_s = WAIT_S
    lost = False
    while True:
        request = urllib.request.Request(url, headers={"Accept": "text/event-stream"})  # noqa: S310 (the caller's URL)
        if cursor is not None:
            request.add_header("Last-Event-ID", cursor)
        parser = Parser()
        after_s = 0.0
        try:
            with http_client.open_as_client(request, timeout=SILENCE_S) as response:
                type_ = response.headers.get_content_type()
                if response.status != 200 or type_ != "text/event-stream":
                    raise http.client.HTTPException(f"the answer was {response.status} {type_}, no event stream")
                if is_proxys_word(response):
                    raise http.client.HTTPException("a proxy answered that no server is there")
                if lost:
                    tell("connected again")
                    lost = False
                while data := response.read1(CHUNK_BYTES):
                    for message in parser.feed(data):
                        if message.type != CURSOR_TYPE:
                            yield message
                        cursor = parser.last_id or cursor
                    cursor = parser.last_id or cursor
                why = "the server ended the connection"
        except urllib.error.HTTPError as error:
            with error:
                sentence = _sentence(error)
                if error.code < 500 and error.code not in _PASSING:
                    raise TokenError(f"the server answered {error.code}: {sentence}") from error
                why = f"the server answered {error.code}: {sentence}"
                after_s = _retry_after_s(error.headers)
        except BROKEN as error:
            why = f"the connection broke: {_reason(error)}"
        if parser.retry_ms is not None:
            wait_s = min(parser.retry_ms / 1000, LONGEST_WAIT_S)
        pause_s = after_s + wait_s * random.uniform(0.5, 1.0)
        tell(f"{why}; connecting again in {pause_s:.1f} s")
        lost = True
        time.sleep(pause_s)


def is_proxys_word(response: http.client.HTTPResponse) -> bool:
    """Whether a proxy answered in place of a server, as the files in deploy/ have it do while no server answers.

    Such an answer has a Content-Length, which a stream never has.
    """
    return response.headers.get("Content-Length") is not None


def check_reachable(url: str, timeout_s: float = 5.0) -> None:
    """Raise UnavailableError, which says what to do, if no server answers at the URL's host."""
    try:
        http_client.open_as_client(url, timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        error.close()
    except BROKEN as error:
        if distrust := tls_errors.fault(error):
            raise UnavailableError(f"{url}: {distrust.found}; {distrust.advice}") from error
        raise UnavailableError(f"nothing answers at {url} ({_reason(error)}); is `headrace up` running?") from error


def _sentence(error: urllib.error.HTTPError) -> str:
    """The text in the body of a refusal, as far as it can be read; else the reason of its status line."""
    try:
        return error.read(500).decode("utf-8", "replace").strip() or error.reason
    except BROKEN:
        return error.reason


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after_s(headers: Headers) -> float:
    """Retry-After in seconds (RFC 9110, 10.2.3), which may be a number or a date; 0 without one."""
    text = headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_RETRY_AFTER_S)
    try:
        return min(max(parsedate_to_datetime(text).timestamp() - time.time(), 0), LONGEST_RETRY_AFTER_S)
    except (ValueError, OverflowError):
        return 0.0
