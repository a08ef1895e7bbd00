"""Log lines about clients that come and go: so many a second, since ten thousand of them help nobody.

    {"event": "hand-off", …}                        the first lines of a second are written
    {"event": "hand-off", "left_out": 812, …}       the next line says how many were not

Lines at WARNING and above are always written. A line that is left out costs next to nothing: no log record is made.
"""

import logging
import time
from collections.abc import Callable


class ClientLines:
    """The lines of one kind, which is what they say as their `event`. Owned by the part that writes them."""

    def __init__(
        self, logger: logging.Logger, kind: str, most_per_s: int, clock: Callable[[], float] = time.time
    ) -> None:
        """logger is that of the part; with most_per_s 0 only lines at WARNING and above are written."""
        self._logger = logger
        self._kind = kind
        self._most_per_s = most_per_s
        self._clock = clock
        self._second = 0
        self._written = 0
        self._left_out = 0

    def log(self, level: int, **about: object) -> None:
        """Write a line with these keys, or leave it out; one that comes behind such lines gets the key left_out."""
        if not self._logger.isEnabledFor(level):
            return
        if level <= logging.INFO:
            second = int(self._clock())
            if second != self._second:
                self._second, self._written = second, 0
            if self._written >= self._most_per_s:
                self._left_out += 1
                return
            self._written += 1
            if self._left_out:
                about["left_out"] = self._left_out
                self._left_out = 0
        self._logger.log(level, self._kind, extra=about)
