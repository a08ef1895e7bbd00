"""headrace/cursor.py"""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cursor import MAX_CHARS, MAX_ID, MAX_PENDING, Pending, Position, Start, join, parse, parse_part, render
from headrace.errors import CursorError


@pytest.mark.parametrize(
    ("text", "streams", "starts"),
    [
        (None, 2, ("now", "now")),
        ("", 1, ("now",)),
        ("  ", 1, ("now",)),
        ("now", 3, ("now", "now", "now")),
        ("all", 2, ("all", "all")),
        ("0", 1, (Position(0),)),
        ("17", 1, (Position(17),)),
        (str(MAX_ID), 1, (Position(2**63 - 1),)),
        ("17.4.9", 3, (Position(17), Position(4), Position(9))),
        ("17.4.9/1", 3, (Position(17), Position(4), Position(9))),
        ("5/0", 1, (Position(5),)),
        ("17-81-3-1", 1, (Position(17, Pending({81, 84, 85})),)),
        ("17-81-3.4.9-7/1", 3, (Position(17, Pending({81, 84})), Position(4), Position(9, Pending({7})))),
        (f"0-{MAX_ID}", 1, (Position(0, Pending({MAX_ID})),)),
        (f"0-1-{MAX_ID - 1}", 1, (Position(0, Pending({1, MAX_ID})),)),
        ("3" + "-2" * MAX_PENDING, 1, (Position(3, Pending(range(2, 2 * MAX_PENDING + 1, 2))),)),
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
        ("1-", 1),
        ("-1-2", 1),
        ("1--2", 1),
        ("1-2-", 1),
        ("1-0", 1),
        ("1-2-0", 1),
        ("1-x", 1),
        ("1-2-+3", 1),
        ("1-٣", 1),
        ("1- 2", 1),
        ("1-2/3", 1),
        ("1-2.now", 2),
        ("now-2", 1),
        (f"1-{MAX_ID + 1}", 1),
        (f"1-2-{MAX_ID - 1}", 1),
        ("1-" + "9" * 20, 1),
        ("3" + "-2" * (MAX_PENDING + 1), 1),
    ],
)
def test_refused(text: str, streams: int) -> None:
    """Whatever is not a cursor of so many streams is refused, never guessed."""
    with pytest.raises(CursorError, match="cursor"):
        parse(text, streams)


def test_error_is_short() -> None:
    """An endless cursor is not echoed whole."""
    for endless in ("9" * 100_000, "1-" + "9" * 100_000, "1" + "-1" * 100_000):
        with pytest.raises(CursorError) as caught:
            parse(endless, 1)
        assert len(str(caught.value)) < 300


positions = st.builds(
    Position,
    st.integers(0, MAX_ID),
    st.none()
    | st.builds(Pending, st.sets(st.integers(1, MAX_ID) | st.integers(1, 90), min_size=1, max_size=MAX_PENDING)),
)


@given(st.lists(positions, min_size=1, max_size=5))
def test_round_trip(several: list[Position]) -> None:
    """What render writes, parse reads; it has nothing that a URL or a header would escape."""
    text = render(several)
    assert parse(text, len(several)) == tuple(several)
    assert quote(text, safe="") == text
    assert [parse_part(part) for part in text.split(".")] == several


def test_ids_alone() -> None:
    """Numbers are positions without pending events."""
    assert render([3, 0, 2**40]) == "3.0.1099511627776"


def test_what_is_left() -> None:
    """A pending event leaves the set once; an empty set is none, and an event without a number is not in it."""
    pending = Pending({81, 84})
    assert 81 in pending and None not in pending and 17 not in pending
    left = pending.without(81)
    assert left == Pending({84}) and str(left) == "-84"
    assert left.without(84) is None
    assert str(pending) == "-81-3"


def test_watermarks_are_joined() -> None:
    """Several parts make one cursor, as long as it fits into a header; else those that name most name none."""
    assert join(["17-81-3", "4", "9-7"]) == "17-81-3.4.9-7"
    some, most = "17-81-3", "9-1000000000000" + "-1000000000" * (MAX_PENDING - 1)
    assert join([some, "4"] + [most] * 1) == f"{some}.4.{most}"
    assert join([some, most, most, "4"]) == f"{some}.9.{most}.4"
    assert len(join([most] * 64)) < MAX_CHARS
    for wrong in ("now", "", "1.2", "1/0"):
        with pytest.raises(CursorError):
            join([wrong])
