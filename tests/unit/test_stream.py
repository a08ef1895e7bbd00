"""headrace/stream.py"""

import hashlib

import pytest

from headrace.errors import StreamNameError
from headrace.stream import SLOTS, check_name, presence_stream, slot


@pytest.mark.parametrize("name", ["room:1", "room_1", "Room:1", "ж🚀", " ", "\n", "x" * 512, "é" * 256])
def test_names_are_exact(name: str) -> None:
    """Any Unicode text of 1 to 512 bytes names a stream, unchanged."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [("", "empty"), ("x" * 513, "513 bytes"), ("é" * 257, "514 bytes"), ("a\0b", "NUL"), ("\ud800", "surrogate")],
)
def test_refused_names(name: str, says: str) -> None:
    """A name that PostgreSQL or the wire cannot carry is refused with the reason."""
    with pytest.raises(StreamNameError, match=says):
        check_name(name)


@pytest.mark.parametrize("name", [b"room", None, 7])
def test_names_are_text(name: object) -> None:
    """Only text names a stream."""
    with pytest.raises(StreamNameError, match="must be text"):
        check_name(name)


def test_slot() -> None:
    """A stream's slot is the first two bytes of sha256 of its name, big-endian, modulo 1024."""
    digest = hashlib.sha256("ж".encode()).digest()
    assert slot("ж") == (digest[0] * 256 + digest[1]) % 1024
    assert {slot(f"s{i}") for i in range(20_000)} == set(range(SLOTS))


def test_companions() -> None:
    """A stream's companion is named after it; a companion has none, nor has a stream for whose name it is too long."""
    assert presence_stream("room:1") == "presence:room:1"
    assert len(presence_stream("x" * 503)) == 512
    for name in ("presence:room:1", "x" * 504):
        with pytest.raises(StreamNameError):
            presence_stream(name)
