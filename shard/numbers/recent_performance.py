"""How the shard has performed lately, for its entry in the directory: rates, latency, and the slowest clients."""

import heapq
import time
from collections.abc import Callable, Collection
from typing import Final

from headrace.shard.connection import Connection
from headrace.shard.numbers.counters import Histogram

WINDOW_S: Final = 1.0
LATENCY_WINDOW_S: Final = 5.0
"""Long enough to have something in it on a quiet deployment, too."""
MOST_SLOW_CLIENTS: Final = 3
MAX_USER_CHARS: Final = 24
"""With these two limits, the text about slow clients fits into the space that a field of a directory entry has."""


class RecentRates:
    """Rates over the last second or more. Owned by whoever asks; asking often does not make them coarser."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._counts = (0, 0)
        self._rates = (0.0, 0.0)

    def rates(self, events: int, deliveries: int) -> tuple[float, float]:
        """Events and deliveries a second, given how many there have been since the start."""
        now = self._clock()
        seconds = now - self._at
        if seconds >= WINDOW_S:
            before_events, before_deliveries = self._counts
            self._rates = ((events - before_events) / seconds, (deliveries - before_deliveries) / seconds)
            self._at, self._counts = now, (events, deliveries)
        return round(self._rates[0], 1), round(self._rates[1], 1)


class RecentLatency:
    """Quantiles of what a histogram has counted lately. Owned by whoever asks."""

    def __init__(self, histogram: Histogram, clock: Callable[[], float] = time.monotonic) -> None:
        self._histogram = histogram
        self._clock = clock
        self._at = clock()
        self._counts = list(histogram.counts)
        self._found = (0.0, 0.0)

    def quantiles_ms(self) -> tuple[float, float]:
        """The median and the 99th percentile of the last seconds, in milliseconds; 0 if there was nothing."""
        now = self._clock()
        if now - self._at >= LATENCY_WINDOW_S:
            counts = list(self._histogram.counts)
            lately = Histogram(self._histogram.bounds)
            lately.counts = [count - before for count, before in zip(counts, self._counts, strict=True)]
            self._found = (round(lately.quantile(0.5) * 1000, 2), round(lately.quantile(0.99) * 1000, 2))
            self._at, self._counts = now, counts
        return self._found


def slowest(blocked: Collection[Connection], now: float) -> str:
    """The clients that have taken no byte for the longest time, one a line: address, seconds, user.

    blocked are the connections whose socket is full; now is by the monotonic clock.
    """
    waiting = ((now - connection.blocked_at, connection) for connection in blocked if connection.blocked_at is not None)
    worst = heapq.nlargest(MOST_SLOW_CLIENTS, waiting, key=lambda one: one[0])
    return "\n".join(f"{connection.peer} {max(0.0, seconds):.0f} {_user(connection)}" for seconds, connection in worst)


def _user(connection: Connection) -> str:
    user = connection.context.user or ""
    return (user if user.isprintable() else ascii(user))[:MAX_USER_CHARS]
