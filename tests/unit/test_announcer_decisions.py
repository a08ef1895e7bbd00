"""shard/postgres/announcer_decisions.py: loads, times and snapshots in; decisions out."""

from headrace.shard.postgres.announcer_decisions import LONGEST_REST_S, LOOK_BACK_S, SeenTransactions, rest_after


def test_the_rest_grows_with_what_a_round_costs() -> None:
    """A quick round is followed by the interval, a slow one by ten times itself, but not by more than the longest."""
    assert rest_after(0.0003, 0.005) == 0.005
    assert rest_after(0.0008, 0.005) == 0.008
    assert rest_after(5.0, 0.005) == LONGEST_REST_S


def test_an_interval_that_is_longer_than_the_longest_rest_is_kept() -> None:
    """An interval above the longest rest is kept, however quick or slow the rounds are."""
    assert rest_after(0.0003, 0.5) == 0.5
    assert rest_after(5.0, 0.5) == 0.5


def test_a_session_looks_at_all_rows_until_it_can_look_back() -> None:
    """A session's first round has nothing to begin from; one that looks back finds nothing old enough for a while."""
    seen = SeenTransactions()
    assert seen.since(100.0, back=False) is None
    seen.add(100.0, "first")
    assert seen.since(100.1, back=False) == "first"
    seen.add(100.1, "second")
    assert seen.since(100.2, back=False) == "second"
    assert seen.since(100.2, back=True) is None
    assert seen.since(100.0 + LOOK_BACK_S, back=True) == "first"


def test_looking_back_goes_far_enough_and_hardly_further() -> None:
    """Over a minute of rounds every 10 ms, looking back begins between LOOK_BACK_S and a second more ago."""
    seen = SeenTransactions()
    for number in range(6000):
        now = 100 + number / 100
        seen.add(now, str(now))
        since = seen.since(now, back=True)
        if now >= 100 + LOOK_BACK_S + 1:
            assert since is not None
            assert LOOK_BACK_S <= now - float(since) <= LOOK_BACK_S + 1.1
