"""How often something has happened lately."""

from collections import deque
from typing import Final

WINDOW_S: Final = 2.0
STEPS: Final = 10


class RecentRate:
    """Counts over the last WINDOW_S, in STEPS parts. Owned by one part of a shard; nothing switches."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, float]] = deque(maxlen=STEPS)

    def add(self, now: float, count: float = 1) -> None:
        """It has happened so many times more at now, in seconds of the monotonic clock."""
        step = int(now * STEPS / WINDOW_S)
        if self._counts and self._counts[-1][0] == step:
            count += self._counts.pop()[1]
        self._counts.append((step, count))

    def per_s(self, now: float) -> float:
        """How many times a second it has happened in the last WINDOW_S."""
        first = int(now * STEPS / WINDOW_S) - STEPS
        return sum(count for step, count in self._counts if step > first) / WINDOW_S
