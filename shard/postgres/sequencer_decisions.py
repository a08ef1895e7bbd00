"""What the sequencer decides without a database: whether commits are many, and how long to rest."""

import math
from collections import deque
from typing import Final

SAMPLE: Final = 16
"""Of so many transactions that notify, one says so on the channel headrace_rate; headrace.announce decides which."""
WINDOW_S: Final = 2.0
"""The time over which commits are counted, before a shard takes office and before it leaves office."""
LONGEST_REST_S: Final = 0.03
"""The longest rest after a round, unless the interval is longer. Each round sets off a read and a burst of writes: few
large rounds cost less."""
MANY_PER_S: Final = 6000.0
"""From so many commits a second on, rests are the longest. Below, a rest falls with the square of the commits, so that
at 2,000 a second an event waits few milliseconds for its round, and rounds still take less than publishing does."""
REST_PER_ROUND: Final = 2.0
"""The sequencer rests so many times as long as its last round took, if that is more: on a busy machine, rounds leave
most of the time to publishers and shards."""


def rest_after(round_s: float, commits_per_s: float, interval_s: float) -> float:
    """How many seconds to rest after a round that took round_s: the interval, or more where that spares the machine.

    commits_per_s is how many transactions the round has numbered for each second since the round before.
    """
    busy_s = max(REST_PER_ROUND * round_s, LONGEST_REST_S * (commits_per_s / MANY_PER_S) ** 2)
    return max(interval_s, min(busy_s, LONGEST_REST_S))


class CommitLoad:
    """Whether commits are many, judged by a sample of them, or few, judged by a count.

    Owned by the sequencer. Commits are few below half of the rate from which they are many, so that a shard that has
    taken office does not leave it at once.
    """

    def __init__(self, above_per_s: float) -> None:
        """above_per_s is the rate from which commits are many; with 0 they never are."""
        self._above_per_s = above_per_s
        self._heard: deque[float] = deque(maxlen=max(1, math.ceil(above_per_s * WINDOW_S / SAMPLE)))

    def heard(self, now: float) -> bool:
        """Note that a transaction of the sample has notified; returns whether commits are many."""
        self._heard.append(now)
        full = len(self._heard) == self._heard.maxlen
        return full and now - self._heard[0] <= WINDOW_S and self._above_per_s > 0

    def few(self, count: int, seconds: float) -> bool:
        """Whether commits are few when count of them came in so many seconds."""
        return self._above_per_s <= 0 or count < self._above_per_s / 2 * seconds
