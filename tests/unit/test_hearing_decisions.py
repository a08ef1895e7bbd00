"""By which way a shard hears of new events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shard.bus.hearing_decisions import FEW_SHARE, Facts, HearingMode, next_mode
from headrace.shard.bus.wanted_pages import KEEP_S, MOST_STREAMS, WantedPages
from headrace.shard.recent_rate import RecentRate

LISTENING, JOINING, ON_BUS, ON_DUTY = HearingMode
MANY, FEW, BETWEEN = 20.0, 1.0, 12.0


@pytest.mark.parametrize(
    ("mode", "rate", "fresh", "joined", "expected"),
    [
        (LISTENING, BETWEEN, True, True, LISTENING),
        (LISTENING, MANY, False, False, ON_DUTY),
        (LISTENING, MANY, True, False, JOINING),
        (JOINING, MANY, True, False, JOINING),
        (JOINING, BETWEEN, True, True, ON_BUS),
        (JOINING, MANY, False, True, LISTENING),
        (ON_BUS, BETWEEN, True, False, ON_BUS),
        (ON_BUS, FEW, True, True, LISTENING),
        (ON_BUS, MANY, False, True, LISTENING),
        (ON_DUTY, BETWEEN, False, False, ON_DUTY),
        (ON_DUTY, FEW, True, True, LISTENING),
    ],
)
def test_the_mode_follows(mode: HearingMode, rate: float, fresh: bool, joined: bool, expected: HearingMode) -> None:
    """Many notifications lead to the bus, few of them and any doubt about the bus lead back."""
    found = next_mode(mode, Facts(20, rate, True, fresh, joined))
    assert found is expected or (mode is JOINING and joined and fresh and found is ON_BUS)


@given(st.sampled_from(HearingMode), st.floats(0, 1e6), st.booleans(), st.booleans())
def test_a_shard_alone_listens(mode: HearingMode, rate: float, fresh: bool, joined: bool) -> None:
    """Without other shards, or with the bus turned off, nothing passes through Redis."""
    assert next_mode(mode, Facts(20, rate, False, fresh, joined)) is LISTENING
    assert next_mode(mode, Facts(0, rate, True, fresh, joined)) is LISTENING


@given(st.floats(20 * FEW_SHARE, 19.9))
def test_nobody_goes_back_and_forth(rate: float) -> None:
    """Between few and many each stays where it is."""
    for mode in (LISTENING, ON_BUS, ON_DUTY):
        assert next_mode(mode, Facts(20, rate, True, True, True)) is mode


def test_the_rate_is_that_of_the_last_seconds() -> None:
    """What happened long ago counts no more."""
    rate = RecentRate()
    for tenth in range(100):
        rate.add(tenth / 10)
    assert rate.per_s(9.95) == pytest.approx(10, abs=1)
    rate.add(10, 50)
    assert rate.per_s(10.1) > 30
    assert rate.per_s(30) == 0


def test_wants_of_different_shards_count_until_they_end() -> None:
    """A want is renewed, or forgotten; the oldest give way when there are too many."""
    wants = WantedPages()
    wants.note("n-1", ["a"], 0)
    wants.note("n-1", ["a"], 1)
    wants.note("n-2", ["a", "b"], 2)
    assert (wants.count("a", 3), wants.count("b", 3), wants.count("c", 3)) == (2, 1, 0)
    assert (wants.count("a", KEEP_S + 1.5), wants.count("b", KEEP_S + 3)) == (1, 0)
    wants.note("n-3", map(str, range(MOST_STREAMS)), 4)
    assert wants.count("a", 4) == 0
