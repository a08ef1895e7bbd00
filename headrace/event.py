"""Events and their frames: the bytes of server-sent events (WHATWG HTML, 9.2.5 and 9.2.6).

No encoder here can produce a broken frame: a line break in data begins another `data:` line, and event types with a
line break are refused. The pieces that are sent:

    retry: 2143\\n                               first on every connection
    id: 17\\n\\n                                  a cursor alone; the standard's clients keep it and dispatch nothing
    id: 17\\nevent: headrace:cursor\\ndata: {…}\\n\\n   a cursor for every client, also for those that keep none alone
    id: 17\\nevent: order\\ndata: shipped\\n\\n     an event; `event:` is left out for `message`
    event: headrace:gap\\ndata: {…}\\n\\n          a sentinel; its cursor follows as a frame of its own. A gap that
                                              stands in the place of one event has the id of that
    : heartbeat\\n                              a comment

The `retry:` line and comments end with their line and not with an empty one, for which some clients dispatch an empty
event.

A body may be sent in chunks (RFC 9112, section 7.1). Then each frame is a chunk by itself, so that a connection needs
no encoder with a state: `7\\r\\nid: 17\\n\\r\\n`, and at the body's end `0\\r\\n\\r\\n`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from headrace.errors import EventError

DEFAULT_TYPE: Final = "message"
RESERVED_PREFIX: Final = "headrace:"
CURSOR_TYPE: Final = f"{RESERVED_PREFIX}cursor"
RESPONSE_HEADERS: Final = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)
"""The headers that the response of every event stream has."""
LAST_CHUNK: Final = b"0\r\n\r\n"
"""The end of a body that is sent in chunks."""
_CHUNK_END: Final = b"\r\n"
_BREAK = re.compile("\r\n|\r|\n")

Buffer = bytes | memoryview
Piece = Sequence[Buffer]
"""Bytes that are written to a socket as a whole, in one or more parts, which several connections may share."""


class Frame:
    """One committed event, encoded once for all its receivers.

    id is the event's id in its stream, and seq its sequence number, by which cursors name it while it is pending; None
    for an event that had its id from the beginning. label is the audience label that a client needs to see it, None for
    everybody. chunk is the whole frame for a connection of one stream, with its chunk header; the frame without that
    header is the middle of the same bytes. Immutable; shared by the ring and by every write that is under way.
    """

    __slots__ = ("_start", "chunk", "id", "label", "seq")

    def __init__(
        self, id_: int, data: str, type_: str = DEFAULT_TYPE, label: str | None = None, seq: int | None = None
    ) -> None:
        self.id = id_
        self.seq = seq
        self.label = label
        frame = f"id: {id_}\n{_fields(type_, data)}".encode()
        self.chunk = chunk(frame)
        self._start = len(self.chunk) - len(frame) - len(_CHUNK_END)

    def __repr__(self) -> str:
        return f"<Frame {self.id} {len(self)} bytes label={self.label!r}>"

    def __len__(self) -> int:
        """The bytes that it keeps in memory."""
        return len(self.chunk)

    def encoded(self, chunked: bool) -> Buffer:
        """The frame for a connection of one stream."""
        return self.chunk if chunked else memoryview(self.chunk)[self._start : -len(_CHUNK_END)]

    def with_id(self, text: str, chunked: bool) -> Piece:
        """The frame with another `id:` line, as for a connection of several streams, or a cursor that names pending
        events; all other bytes are shared."""
        line = b"id: %b\n" % text.encode("ascii")
        rest = self.chunk.index(b"\n", self._start) + 1
        if not chunked:
            return line, memoryview(self.chunk)[rest : -len(_CHUNK_END)]
        size = len(line) + len(self.chunk) - rest - len(_CHUNK_END)
        return b"%x\r\n%b" % (size, line), memoryview(self.chunk)[rest:]


def chunk(data: bytes) -> bytes:
    """The bytes as one chunk."""
    return b"%x\r\n%b%b" % (len(data), data, _CHUNK_END)


def check_type(type_: object) -> str:
    """Return the event type if it may be published; raise EventError if it would break or forge a frame."""
    if not isinstance(type_, str) or not type_:
        raise EventError(f"an event type must be text and not empty, not {type_!r}")
    if "\r" in type_ or "\n" in type_ or "\0" in type_:
        raise EventError(f"event type {type_!r} has a line break or NUL; use a plain word")
    if type_.startswith(RESERVED_PREFIX):
        raise EventError(f"event type {type_!r} begins with {RESERVED_PREFIX!r}, which is reserved; use another")
    return type_


def id_frame(cursor: str) -> bytes:
    """A frame of an `id:` line alone: the browser keeps the cursor and dispatches nothing."""
    return b"id: %b\n\n" % cursor.encode("ascii")


def cursor_frame(cursor: str) -> bytes:
    """A cursor as an event of a reserved type, for clients that keep only the ids of events that they dispatch."""
    return b"id: %b\n%b" % (cursor.encode("ascii"), _sentinel("cursor", {"cursor": cursor}))


def retry_line(retry_ms: int) -> bytes:
    """The `retry:` line: how many milliseconds a browser waits before it reconnects."""
    return b"retry: %d\n" % retry_ms


def gap_frame(stream: str, missed_from: int, missed_to: int) -> bytes:
    """The sentinel that says that events missed_from to missed_to (both included) of a stream are no longer kept."""
    return _sentinel("gap", {"stream": stream, "missed_from": missed_from, "missed_to": missed_to})


def gap_event(stream: str, id_: int) -> tuple[str, str]:
    """Type and data of the gap that replaces an event which cannot be sent; its frame has the event's id."""
    return f"{RESERVED_PREFIX}gap", _json({"stream": stream, "missed_from": id_, "missed_to": id_})


def reset_frame(stream: str, head: int) -> bytes:
    """The sentinel that says that the client's cursor is not of this log; the stream continues after id head."""
    return _sentinel("reset", {"stream": stream, "head": head})


def goodbye_frame(reason: str) -> bytes:
    """The sentinel that says that the server closes the connection, and why."""
    return _sentinel("goodbye", {"reason": reason})


HEARTBEAT: Final = b": heartbeat\n"


def _sentinel(kind: str, value: dict[str, Any]) -> bytes:
    return _fields(RESERVED_PREFIX + kind, _json(value)).encode()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _fields(type_: str, data: str) -> str:
    """All of a frame but its `id:` line."""
    if "\r" in data or "\n" in data:
        data = "\ndata: ".join(_BREAK.split(data))
    if type_ == DEFAULT_TYPE:
        return f"data: {data}\n\n"
    if "\r" in type_ or "\n" in type_:
        raise EventError(f"event type {type_!r} has a line break; use a plain word")
    return f"event: {type_}\ndata: {data}\n\n"
