"""How long to wait before the next try: exponential with full jitter, so that many do not try at once."""

import random


class Backoff:
    """Waits that double from first_s to at most most_s, each drawn at random from its upper half."""

    def __init__(self, first_s: float = 0.05, most_s: float = 2.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def reset(self) -> None:
        """The try succeeded: begin anew."""
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Seconds to wait now; the next wait is twice as long."""
        wait_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._most_s)
        return wait_s
