"""Whether somebody has set this machine's clock: wall time has moved by much more, or less, than monotonic time."""

import logging
import time
from collections.abc import Callable
from typing import Final

from headrace.shard.numbers.counters import Tally

logger = logging.getLogger(__name__)

LEAST_S: Final = 1.0
"""The least difference that counts as a jump: an NTP client slews by less between two looks."""


class WallClock:
    """Counts the jumps of wall time, by direction. A machine that was suspended sees a jump `forward`.

    Owned by the greenlet that calls `look` again and again; each call finds a jump since the call before. Never yields.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.jumps = Tally(("back", "forward"))
        self._wall = wall
        self._monotonic = monotonic
        self._ahead_s = wall() - monotonic()

    def look(self) -> None:
        """Compare the two clocks, and count and log a jump since the last look."""
        ahead_s = self._wall() - self._monotonic()
        jump_s, self._ahead_s = ahead_s - self._ahead_s, ahead_s
        if abs(jump_s) >= LEAST_S:
            way = "forward" if jump_s > 0 else "back"
            self.jumps.add(way)
            logger.warning("this machine's clock was set %s by %.1f s", way, abs(jump_s))
