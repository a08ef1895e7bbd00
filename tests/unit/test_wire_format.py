"""shard/wire_format.py: each kind of what a client is sent, without chunks and with."""

import pytest

from headrace.event import LAST_CHUNK, Piece, chunk
from headrace.shard import wire_format


def sent(piece: Piece) -> bytes:
    return b"".join(piece)


@pytest.mark.parametrize("chunked", [False, True])
def test_the_opening_is_one_piece(chunked: bool) -> None:
    """The response head, `retry:` and the cursor; the charset is named, and chunks only where there are any."""
    opening = sent(wire_format.opening([("Vary", "Origin")], 2143, "17", True, chunked))
    head, _, body = opening.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert "Content-Type: text/event-stream; charset=utf-8" in lines
    assert lines[-1] == "Vary: Origin"
    assert ("Transfer-Encoding: chunked" in lines) == chunked
    text = b"retry: 2143\nid: 17\n\n"
    assert body == (chunk(text) if chunked else text)


def test_who_came_for_now_is_told_by_an_event() -> None:
    """A client without an id of its own gets its cursor as an event; one that has an id gets the line alone."""
    assert sent(wire_format.cursor("17", False, False)) == b'id: 17\nevent: headrace:cursor\ndata: {"cursor":"17"}\n\n'
    assert sent(wire_format.cursor("17", True, False)) == b"id: 17\n\n"


def test_nothing_that_dispatches_nothing_ends_with_an_empty_line() -> None:
    """Clients that dispatch an empty event for an empty line get none of a heartbeat or of `retry:`."""
    assert sent(wire_format.heartbeat(False)) == b": heartbeat\n"
    assert sent(wire_format.heartbeat(True)) == b"c\r\n: heartbeat\n\r\n"
    assert sent(wire_format.opening([], 2143, None, False, False)).endswith(b"\r\n\r\nretry: 2143\n")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_sentinel_and_its_cursor_are_one_piece(chunked: bool) -> None:
    """What follows from a sentinel is in the same chunk, so that neither is handed on alone."""
    told = sent(wire_format.told(b"event: headrace:gap\ndata: {}\n\n", "9", chunked))
    text = b'event: headrace:gap\ndata: {}\n\nid: 9\nevent: headrace:cursor\ndata: {"cursor":"9"}\n\n'
    assert told == (chunk(text) if chunked else text)


def test_a_goodbye_ends_the_body() -> None:
    """A body in chunks ends with the last chunk; one without has nothing after the cursor."""
    assert sent(wire_format.goodbye("shutdown", "9", True)).endswith(b"\n\n\r\n" + LAST_CHUNK)
    assert sent(wire_format.goodbye("shutdown", "9", False)).endswith(b'{"cursor":"9"}\n\n')
    assert sent(wire_format.goodbye("shutdown", None, False)).endswith(b'{"reason":"shutdown"}\n\n')


def test_a_header_cannot_add_lines() -> None:
    """A header with a line break ends in an error, and not in another header."""
    with pytest.raises(ValueError, match="line break"):
        wire_format.opening([("A", "b\r\nSet-Cookie: c")], 1, None, True, False)
