"""How fast a shard has been lately."""

from headrace.shard.numbers.counters import SECONDS, Histogram
from headrace.shard.numbers.recent_performance import LATENCY_WINDOW_S, RecentLatency


def test_a_quantile_lies_between_the_bounds_of_its_values() -> None:
    """Values spread evenly within a bucket; above all bounds the last one is told; without values it is 0."""
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.quantile(0.5) == 0
    histogram.observe(1.5, 50)
    histogram.observe(3.0, 50)
    assert histogram.quantile(0.5) == 2.0
    assert histogram.quantile(0.75) == 3.0
    assert histogram.quantile(0.25) == 1.5
    histogram.observe(100.0, 900)
    assert histogram.quantile(0.99) == 4.0


def test_latency_is_of_the_last_seconds_alone() -> None:
    """What was delivered before counts no more, and when nothing was delivered there is none."""
    now = 0.0
    histogram = Histogram(SECONDS)
    histogram.observe(20.0, 1000)
    latency = RecentLatency(histogram, lambda: now)
    assert latency.quantiles_ms() == (0, 0)
    histogram.observe(0.002, 100)
    now += LATENCY_WINDOW_S
    p50, p99 = latency.quantiles_ms()
    assert 1 <= p50 <= p99 <= 2.5
    now += LATENCY_WINDOW_S
    assert latency.quantiles_ms() == (0, 0)
