"""The bytes of everything that a client is sent, kind by kind: the pieces, each written as a whole.

    kind        when                                                  what it is
    opening     once, before anything else                            the response head, `retry:`, and where the client
                                                                      begins, if that is known already
    cursor      the start becomes known only after the opening; a     where the client is
                beat, if that has run ahead of what it was told
    event       as the position moves                                 `Frame.encoded` or `Frame.with_id`
    told        retention has passed the position, or it is of        gap or reset, and the cursor that follows from it
                another log
    heartbeat   a beat otherwise                                      a comment
    goodbye     the server ends the connection                        goodbye, the cursor, and the body's end

A connection is `chunked` or not for its whole life, and each piece is in chunks of its own: nothing is carried from one
piece to the next. A cut piece is all that a connection keeps (`Connection.unsent`).

How a client is told where it is. A client that came with an id comes back with that id, or with the one in its URL,
even if it ignores an `id:` line without an event; so such a line is enough, and clients that follow the standard keep
it. A client that came for `now` has nothing to come back with, so it is told its cursor by an event, `headrace:cursor`,
since many clients keep only the id of an event. The same goes for gap, reset and goodbye: a client that does not keep
the cursor after them would be told of them again.
"""

from collections.abc import Iterable
from functools import lru_cache

from headrace import event
from headrace.event import Piece


def opening(
    headers: Iterable[tuple[str, str]], retry_ms: int, start: str | None, anchored: bool, chunked: bool
) -> Piece:
    """The response head, with further headers, and the body's first lines; start is the cursor, None if not known."""
    body = event.retry_line(retry_ms)
    if start is not None:
        body += _cursor(start, anchored)
    return (_head(tuple(headers), chunked) + _framed(body, chunked),)


def cursor(cursor: str, anchored: bool, chunked: bool) -> Piece:
    """Where a client is; anchored tells that it has an id to come back with."""
    return (_framed(_cursor(cursor, anchored), chunked),)


def told(sentinel: bytes, cursor: str | None, chunked: bool) -> Piece:
    """A sentinel and the cursor that follows from it, None if that is not known yet, as one: neither is lost alone."""
    return (_framed(sentinel + (b"" if cursor is None else event.cursor_frame(cursor)), chunked),)


def heartbeat(chunked: bool) -> Piece:
    """A comment, so that a quiet connection is seen to live."""
    return (_HEARTBEAT_CHUNK if chunked else event.HEARTBEAT,)


def goodbye(reason: str, cursor: str | None, chunked: bool) -> Piece:
    """A goodbye with the cursor, None if that is not known, and the end of a body in chunks."""
    words = event.goodbye_frame(reason) + (b"" if cursor is None else event.cursor_frame(cursor))
    return (_framed(words, chunked) + (event.LAST_CHUNK if chunked else b""),)


def _cursor(cursor: str, anchored: bool) -> bytes:
    return event.id_frame(cursor) if anchored else event.cursor_frame(cursor)


def _framed(data: bytes, chunked: bool) -> bytes:
    return event.chunk(data) if chunked else data


_HEARTBEAT_CHUNK = event.chunk(event.HEARTBEAT)


@lru_cache(maxsize=64)
def _head(headers: tuple[tuple[str, str], ...], chunked: bool) -> bytes:
    """Kept, since all clients get the same few headers, which depend on the origins that are allowed."""
    # Without chunks, the end of the connection is the end of the body.
    lines = [
        "HTTP/1.1 200 OK",
        *(f"{name}: {value}" for name, value in event.RESPONSE_HEADERS),
        *(["Transfer-Encoding: chunked"] if chunked else []),
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError(f"a response header with a line break: {lines!r}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
