"""shard/postgres/sequencer_decisions.py: loads and times in; decisions out."""

from headrace.shard.postgres.sequencer_decisions import LONGEST_REST_S, rest_after


def test_the_rest_grows_with_what_a_round_costs() -> None:
    """A quick round is followed by the interval, a slow one by ten times itself, but not by more than the longest."""
    assert rest_after(0.0003, 0.005) == 0.005
    assert rest_after(0.0008, 0.005) == 0.008
    assert rest_after(5.0, 0.005) == LONGEST_REST_S


def test_an_interval_that_is_longer_than_the_longest_rest_is_kept() -> None:
    """An interval above the longest rest is kept, however quick or slow the rounds are."""
    assert rest_after(0.0003, 0.5) == 0.5
    assert rest_after(5.0, 0.5) == 0.5
