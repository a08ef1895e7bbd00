"""An outage of a server, as one part of a process sees it: one log line when it begins and one when it ends, and how
long to wait between two tries.
"""

import logging
import random
import time
from collections.abc import Callable

from headrace.errors import one_line


class Outage:
    """Whether a part of this process can do its work, which it cannot while a server is away.

    Shared by the greenlets of that part. No method yields. condition is "ok", or the kind of the failure in a word;
    last_error is the last failure in one line, "" without an outage; since is when the outage began, in seconds of the
    monotonic clock, None without one.
    """

    def __init__(
        self,
        logger: logging.Logger,
        begins: str,
        ends: str = "",
        *,
        first_s: float = 0.05,
        most_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """logger is that of the part. begins is the log message when an outage begins, followed by the error; ends the
        one when it ends, followed by how long it has lasted. Waits grow from first_s to most_s, in seconds.
        """
        self.condition = "ok"
        self.last_error = ""
        self.since: float | None = None
        self._logger = logger
        self._begins = begins
        self._ends = ends
        self._first_s = first_s
        self._most_s = most_s
        self._clock = clock

    def failed(self, error: BaseException, condition: str = "away") -> float:
        """Note that a try has failed; returns for how many seconds to wait before the next.

        The wait is as long as the outage has lasted, within its two limits, so that it about doubles each time,
        however many greenlets try. It is drawn at random from its upper half, so that not all processes try at once.
        """
        now = self._clock()
        # The last error tells why the server is still away; the first one told only that it went.
        self.last_error = one_line(error)
        if self.condition != condition:
            self._logger.warning("%s: %s", self._begins, self.last_error)
        self.condition = condition
        if self.since is None:
            self.since = now
        return min(max(now - self.since, self._first_s), self._most_s) * random.uniform(0.5, 1.0)

    def ended(self) -> bool:
        """Note that a try has succeeded; returns whether that ends an outage."""
        if self.since is None:
            return False
        if self._ends:
            self._logger.warning("%s after %.1f s", self._ends, self._clock() - self.since)
        self.condition, self.last_error, self.since = "ok", "", None
        return True
