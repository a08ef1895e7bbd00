"""What a shard has done since its start, as plain numbers: cheap to count, and turned into metrics only when asked."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final

MAX_REASONS: Final = 32
"""The most words that are counted one by one; any word that comes later is counted as `other`."""
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES: Final = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


class Histogram:
    """How many values fell between which bounds, and their sum.

    counts has one number per bound, of the values up to it and above the one before, and one for what is above all.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count so many values of this size."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def spread(self, low: float, high: float, count: int) -> None:
        """Count so many values that lie evenly between low and high."""
        first, last = bisect_left(self.bounds, low), bisect_left(self.bounds, high)
        done = 0
        for index in range(first, last):
            below = round(count * (self.bounds[index] - low) / (high - low))
            self.counts[index] += below - done
            done = below
        self.counts[last] += count - done
        self.sum += (low + high) / 2 * count

    def deliveries(self, ages: Sequence[float], began: float, ended: float, count: int) -> None:
        """Count the deliveries of a batch of events: each as old as it was when asked for, plus the time since.

        The writes went on evenly from began to ended, seconds after the asking, and each event counts as written
        equally often. It costs one sort, however many the receivers are.
        """
        if len(ages) == 1:
            self.spread(ages[0] + began, ages[0] + ended, count)
            return
        ordered = sorted(ages)
        middle = (began + ended) / 2
        first = bisect_left(self.bounds, ordered[0] + middle)
        last = bisect_left(self.bounds, ordered[-1] + middle)
        done = 0
        for index in range(first, last):
            below = count * bisect_right(ordered, self.bounds[index] - middle) // len(ordered)
            self.counts[index] += below - done
            done = below
        self.counts[last] += count - done
        self.sum += (sum(ordered) / len(ordered) + middle) * count

    def quantile(self, share: float) -> float:
        """The value that this share of the values does not exceed, as far as the bounds tell; 0 without values.

        Values are taken to lie evenly between two bounds, and those above all bounds at the last.
        """
        wanted = share * sum(self.counts)
        low = seen = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= wanted:
                return low + (bound - low) * (wanted - seen) / count
            low, seen = bound, seen + count
        return low if self.counts[-1] else 0.0


class Tally:
    """Counts by a word, such as an outcome. At most MAX_REASONS words are told apart."""

    __slots__ = ("counts",)

    def __init__(self, words: Iterable[str] = ()) -> None:
        """words are known beforehand, so that they are there with 0 before they happen."""
        self.counts = dict.fromkeys(words, 0)

    def add(self, word: str) -> None:
        """Count one more."""
        if word not in self.counts and len(self.counts) >= MAX_REASONS:
            word = "other"
        self.counts[word] = self.counts.get(word, 0) + 1


class Counters:
    """What delivery has done since the start: plain numbers that others read.

    Owned by the dispatcher greenlet; reading is safe anywhere. stalls counts how often a client's socket was full;
    latency is from when an event got its id, in the last moment before its commit, to when the kernel had its bytes,
    for clients that were waiting for it. By PostgreSQL's clock up to when it was asked, and from then on by ours: that
    the two differ does not matter.
    """

    __slots__ = (
        "_before",
        "_began_at",
        "_clock",
        "bytes",
        "closed",
        "deliveries",
        "events",
        "gaps",
        "latency",
        "resets",
        "stalls",
        "writes",
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        self.events = 0
        self.deliveries = 0
        self.writes = 0
        self.bytes = 0
        self.stalls = 0
        self.gaps = 0
        self.resets = 0
        self.closed = Tally(("peer gone", "write deadline", "unsent limit"))
        self.latency = Histogram(SECONDS)
        self._clock = clock
        self._before = 0
        self._began_at = 0.0

    def begin(self) -> None:
        """What a read has found is about to be written."""
        self._began_at, self._before = self._clock(), self.deliveries

    def written(self, asked_at: float, ages: Sequence[float]) -> None:
        """All is written. ages are those of the events, in seconds, at the time asked_at (of the monotonic clock)."""
        count = self.deliveries - self._before
        if count and ages:
            self.latency.deliveries(ages, self._began_at - asked_at, self._clock() - asked_at, count)
