"""headrace/cursor.py"""

import pytest

from headrace.cursor import MAX_ID, Start, parse, render
from headrace.errors import CursorError


@pytest.mark.parametrize(
    ("text", "streams", "starts"),
    [
        (None, 2, ("now", "now")),
        ("", 1, ("now",)),
        ("  ", 1, ("now",)),
        ("now", 3, ("now", "now", "now")),
        ("all", 2, ("all", "all")),
        ("0", 1, (0,)),
        ("17", 1, (17,)),
        (str(MAX_ID), 1, (2**63 - 1,)),
        ("17.4.9", 3, (17, 4, 9)),
        ("17.4.9/1", 3, (17, 4, 9)),
        ("5/0", 1, (5,)),
    ],
)
def test_parse(text: str | None, streams: int, starts: tuple[Start, ...]) -> None:
    """A cursor gives one start per stream; missing and blank mean now."""
    assert parse(text, streams) == starts


@pytest.mark.parametrize(
    ("text", "streams"),
    [
        ("-1", 1),
        ("+1", 1),
        ("1.5", 1),
        ("1.", 2),
        ("1.2.3", 2),
        ("1", 2),
        ("x", 1),
        ("٣", 1),
        ("1e3", 1),
        ("0x1", 1),
        (str(2**63), 1),
        ("9" * 5000, 1),
        ("1/1", 1),
        ("1.2/2", 2),
        ("1.2/-1", 2),
        ("1.2/x", 2),
        ("now.1", 2),
        ("NOW", 1),
        ("1 2", 1),
        ("1\n", 2),
    ],
)
def test_refused(text: str, streams: int) -> None:
    """Whatever is not a cursor of so many streams is refused, never guessed."""
    with pytest.raises(CursorError, match="cursor"):
        parse(text, streams)


def test_error_is_short() -> None:
    """An endless cursor is not echoed whole."""
    with pytest.raises(CursorError) as caught:
        parse("9" * 100_000, 1)
    assert len(str(caught.value)) < 300


def test_round_trip() -> None:
    """What render writes, parse reads."""
    assert parse(render([3, 0, 2**40]), 3) == (3, 0, 2**40)
