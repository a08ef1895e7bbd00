"""shard/postgres/sequencer_decisions.py: loads and times in; decisions out."""

from headrace.shard.postgres.sequencer_decisions import LONGEST_REST_S, rest_after


def test_the_rest_grows_with_the_commits_and_with_what_a_round_costs() -> None:
    """Few commits and a quick round are followed by the interval, more by more, but not by more than the longest."""
    assert rest_after(0.0003, 100, 0.005) == 0.005
    assert rest_after(0.004, 100, 0.005) == 0.008
    assert rest_after(0.0003, 3000, 0.005) == 0.0075
    assert rest_after(0.006, 3000, 0.005) == 0.012
    assert rest_after(0.0003, 100_000, 0.005) == LONGEST_REST_S
    assert rest_after(5.0, 100, 0.005) == LONGEST_REST_S


def test_an_interval_that_is_longer_than_the_longest_rest_is_kept() -> None:
    """An interval above the longest rest is kept, however many commits there are and however slow the rounds."""
    assert rest_after(0.0003, 100_000, 0.5) == 0.5
    assert rest_after(5.0, 100, 0.5) == 0.5
