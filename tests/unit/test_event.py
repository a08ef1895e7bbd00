"""headrace/event.py"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import event
from headrace.errors import EventError
from headrace.event import Frame
from headrace.node.sse_client import Message, Parser

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TYPE = TEXT.filter(lambda text: text and "\r" not in text and "\n" not in text and not text.startswith("headrace:"))


def test_plain_event() -> None:
    """An event of type message has an id and one data line."""
    assert Frame(17, "shipped").encoded(False) == b"id: 17\ndata: shipped\n\n"


def test_typed_event_with_lines() -> None:
    """Other types are named, and each line of the data is one data line, spaces kept."""
    frame = Frame(3, " a\nb\r\nc\rd\n", "order")
    assert frame.encoded(False) == b"id: 3\nevent: order\ndata:  a\ndata: b\ndata: c\ndata: d\ndata: \n\n"


def test_empty_data() -> None:
    """Empty data is still an event."""
    assert Frame(1, "").encoded(False) == b"id: 1\ndata: \n\n"


def test_composite_id() -> None:
    """A connection of several streams gets the same frame under its own cursor."""
    assert b"".join(Frame(4, "x", "t").with_id("17.4.9/1", False)) == b"id: 17.4.9/1\nevent: t\ndata: x\n\n"


@given(TEXT, TYPE, st.lists(st.integers(0, 400)))
def test_round_trip(data: str, type_: str, cuts: list[int]) -> None:
    """Any data and type arrive unchanged, but for line ends, wherever the bytes are cut."""
    raw = bytes(Frame(9, data, type_).encoded(False))
    parser = Parser()
    places = sorted({cut for cut in cuts if cut < len(raw)})
    pieces = [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]
    messages = [message for piece in pieces for message in parser.feed(piece)]
    assert messages == [Message("9", type_, data.replace("\r\n", "\n").replace("\r", "\n"))]


@pytest.mark.parametrize("type_", ["a\nb", "a\rb", "headrace:gap", "", None, "a\0b"])
def test_refused_types(type_: object) -> None:
    """A type that would break or forge a frame is refused."""
    with pytest.raises(EventError):
        event.check_type(type_)


def test_encoder_cannot_be_broken() -> None:
    """Even an unchecked type with a line break does not become a frame."""
    with pytest.raises(EventError):
        Frame(1, "x", "a\ndata: forged")


@given(data=st.text(), text=st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){0,3}/[0-9]", fullmatch=True))
def test_chunks_are_the_same_bytes_with_their_length(data: str, text: str) -> None:
    """A frame in chunks is one chunk of the frame without, also with another `id:` line, and shares its bytes."""
    frame = Frame(7, data, "t")
    plain = bytes(frame.encoded(False))
    assert frame.encoded(True) == event.chunk(plain) == b"%x\r\n%b\r\n" % (len(plain), plain)
    other = b"".join(frame.with_id(text, False))
    assert other == b"id: %b%b" % (text.encode(), plain[plain.index(b"\n") :])
    assert b"".join(frame.with_id(text, True)) == event.chunk(other)
    for chunked in (False, True):
        _, shared = frame.with_id(text, chunked)
        assert isinstance(shared, memoryview) and shared.obj is frame.chunk


def test_a_cursor_for_every_client() -> None:
    """A cursor that is told by an event has it in its id and in its data."""
    assert event.cursor_frame("17.4") == b'id: 17.4\nevent: headrace:cursor\ndata: {"cursor":"17.4"}\n\n'


def test_sentinels_have_no_id() -> None:
    """Sentinels carry compact JSON and no id, whatever the stream's name."""
    assert event.gap_frame("a\n\nid: 1", 1, 4) == (
        b'event: headrace:gap\ndata: {"stream":"a\\n\\nid: 1","missed_from":1,"missed_to":4}\n\n'
    )
    assert event.reset_frame("ж", 7) == 'event: headrace:reset\ndata: {"stream":"ж","head":7}\n\n'.encode()
    assert event.goodbye_frame("shutdown") == b'event: headrace:goodbye\ndata: {"reason":"shutdown"}\n\n'


def test_small_frames() -> None:
    """What dispatches nothing in a browser; only the cursor has an empty line, which keeps it."""
    assert event.retry_line(2143) == b"retry: 2143\n"
    assert event.id_frame("17.4") == b"id: 17.4\n\n"
    assert event.HEARTBEAT == b": heartbeat\n"
