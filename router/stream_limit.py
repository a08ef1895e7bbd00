"""The limit of the streams that a publisher token makes: a bucket for each token, in each router worker.

level     how many streams the token has made lately; it sinks by per_s a second
room      BURST_S seconds' worth; a request for more than that is let in when the bucket is empty
"""

import hashlib
import time
from collections.abc import Callable, Collection
from typing import Final

BURST_S: Final = 10.0
"""For how many seconds a token may make streams in one go, at the rate of the limit."""
MAX_TOKENS: Final = 10_000
"""Tokens that are remembered; the one that has asked for no stream for longest may begin anew."""
MAX_NAMES: Final = 10_000
"""Streams that are known to exist, of which PostgreSQL is not asked; above it, the first of them is asked for again."""


class StreamLimit:
    """Decides whether a token may make streams now. per_s is how many a second, on average; 0: any number.

    Owned by the worker's process: any greenlet may call it, and no method switches greenlets.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._levels: dict[bytes, tuple[float, float]] = {}
        self._names: dict[str, None] = {}

    def unknown(self, names: Collection[str]) -> list[str]:
        """Those of the streams that may not exist yet; none of them if there is no limit."""
        return [name for name in names if name not in self._names] if self._per_s else []

    def know(self, names: Collection[str]) -> None:
        """These streams exist, or are about to be made."""
        self._names.update(dict.fromkeys(names))
        while len(self._names) > MAX_NAMES:
            del self._names[next(iter(self._names))]

    def wait_s(self, token: str, streams: int) -> float:
        """Count the streams that the token makes now, and return 0; or, uncounted, the seconds that it must wait."""
        if not streams:
            return 0.0
        room = self._per_s * BURST_S
        now = self._clock()
        key = hashlib.sha256(token.encode()).digest()
        level, at = self._levels.pop(key, (0.0, now))
        level = max(0.0, level - (now - at) * self._per_s)
        above = level + min(streams, room) - room
        if above <= 0:
            level += streams
        self._levels[key] = level, now
        while len(self._levels) > MAX_TOKENS:
            del self._levels[next(iter(self._levels))]
        return max(0.0, above / self._per_s)
