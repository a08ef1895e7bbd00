"""How fast the shard has been lately: rates from counters that only grow."""

import time
from collections.abc import Callable
from typing import Final

WINDOW_S: Final = 1.0


class Pace:
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
