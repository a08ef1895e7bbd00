"""headrace/node/sse_client.py"""

import pytest

from headrace.node.sse_client import Message, Parser
from tests.fixtures.growth import grows_in_proportion


@pytest.mark.parametrize(
    ("raw", "messages"),
    [
        (b"data: a\n\n", [Message("", "message", "a")]),
        (b"data\n\n", [Message("", "message", "")]),
        (b"data:a\ndata: b\n\n", [Message("", "message", "a\nb")]),
        (b"data: a\r\rdata: b\r\n\r\n", [Message("", "message", "a"), Message("", "message", "b")]),
        (b"id: 1\n\ndata: a\n\n", [Message("1", "message", "a")]),
        (b"event: x\n\ndata: a\n\n", [Message("", "message", "a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Message("", "message", "a")]),
        (b": hi\ndata: a\n\n", [Message("", "message", "a")]),
        (b"id: 1\0\ndata: a\n\n", [Message("", "message", "a")]),
        (b"data: a\n", []),
    ],
)
def test_standard(raw: bytes, messages: list[Message]) -> None:
    """Streams are read as the standard says, also byte by byte."""
    assert Parser().feed(raw) == messages
    parser = Parser()
    assert [message for byte in raw for message in parser.feed(bytes([byte]))] == messages


def test_cursor_without_an_event() -> None:
    """A frame of an id line alone moves the cursor and dispatches nothing."""
    parser = Parser()
    assert parser.feed(b"retry: 1500\nid: 7\n\n: heartbeat\n") == []
    assert (parser.last_id, parser.retry_ms, parser.comments) == ("7", 1500, 1)


def test_a_frame_that_is_cut_off_does_not_move_the_cursor() -> None:
    """The id of an event counts from its blank line on: resuming after a cut in between must bring that event."""
    parser = Parser()
    parser.feed(b"id: 7\ndata: a\n\nid: 8\ndata: b\n")
    assert parser.last_id == "7"
    assert parser.feed(b"\n") == [Message("8", "message", "b")]
    assert parser.last_id == "8"


def test_a_long_line_costs_its_length() -> None:
    """An event that comes in small pieces takes twice as long when it is twice as long."""

    def parse(pieces: list[bytes]) -> None:
        parser = Parser()
        messages = [message for piece in pieces for message in parser.feed(piece)]
        assert len(messages[0].data) == sum(map(len, pieces)) - 8

    def make(n: int) -> list[bytes]:
        data = b"data: " + b"x" * n + b"\n\n"
        return [data[at : at + 16] for at in range(0, len(data), 16)]

    grows_in_proportion(parse, make, 1 << 17)
