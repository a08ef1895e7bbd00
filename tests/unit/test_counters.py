"""A shard's numbers: histograms that cost the same for one delivery and for thousands."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shard.numbers.counters import MAX_REASONS, SECONDS, Counters, Histogram, Tally


def test_a_value_counts_in_the_first_bucket_that_reaches_it() -> None:
    """A value at a bound belongs to it, one above all bounds to the last bucket."""
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 6):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert histogram.sum == 14


def test_a_spread_is_shared_out_evenly() -> None:
    """Values that lie evenly between two ends fall into the buckets by how much of the way lies in each."""
    histogram = Histogram((1, 2, 5))
    histogram.spread(0, 10, 1000)
    assert histogram.counts == [100, 100, 300, 500]
    assert histogram.sum == 5000


@given(st.lists(st.floats(-0.1, 40), min_size=1, max_size=20), st.floats(0, 5), st.floats(0, 5), st.integers(0, 10_000))
def test_no_delivery_is_counted_twice_or_forgotten(ages: list[float], began: float, took: float, count: int) -> None:
    """However events and receivers are mixed, the histogram has each delivery once and never a negative bucket."""
    histogram = Histogram(SECONDS)
    histogram.deliveries(ages, began, began + took, count)
    assert sum(histogram.counts) == count
    assert min(histogram.counts) >= 0


def test_latency_is_the_age_when_asked_and_the_time_since() -> None:
    """An event 2 s old when PostgreSQL was asked and written 1 s later took 3 s; what nobody got does not count."""
    counters = Counters(lambda: 101.0)
    counters.begin()
    counters.deliveries += 7
    counters.written(100.0, [2.0])
    assert counters.latency.sum == pytest.approx(21.0)
    assert counters.latency.counts[bisect_left(SECONDS, 3.0)] == 7
    counters.begin()
    counters.written(100.0, [2.0])
    assert sum(counters.latency.counts) == 7


def test_old_and_new_events_of_one_batch_are_told_apart() -> None:
    """Each event of a batch counts by its own age, in whatever order they come."""
    histogram = Histogram((1, 2, 5))
    histogram.deliveries([4.5, 0.5, 1.5, 0.6], 0.0, 0.2, 40)
    assert histogram.counts == [20, 10, 10, 0]


def test_words_without_end_do_not_become_series_without_end() -> None:
    """Whatever reasons are given, only so many are told apart, and none is lost."""
    tally = Tally(("full",))
    for number in range(100):
        tally.add(f"reason {number}")
    tally.add("full")
    assert len(tally.counts) == MAX_REASONS + 1
    assert tally.counts["full"] == 1
    assert sum(tally.counts.values()) == 101
