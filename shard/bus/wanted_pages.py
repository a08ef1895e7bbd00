"""Which streams other shards want pages of: only what several shards serve is read for all."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

KEEP_S: Final = 25.0
"""How long a want holds. A shard that still reads the stream says so again every WANT_S, which is less than half."""
MOST_STREAMS: Final = 50_000


class WantedPages:
    """The wants of other shards, by stream. Owned by the greenlets of the herald; nothing here switches.

    The streams that were wanted longest ago are forgotten beyond MOST_STREAMS.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[str, dict[str, float]] = OrderedDict()

    def note(self, shard_id: str, streams: Iterable[str], now: float) -> None:
        """A shard wants pages of these streams."""
        for stream in streams:
            self._until.setdefault(stream, {})[shard_id] = now + KEEP_S
            self._until.move_to_end(stream)
        while len(self._until) > MOST_STREAMS:
            self._until.popitem(last=False)

    def count(self, stream: str, now: float) -> int:
        """How many other shards want pages of a stream."""
        shards = self._until.get(stream)
        if not shards:
            return 0
        for shard_id in [shard_id for shard_id, until in shards.items() if until <= now]:
            del shards[shard_id]
        return len(shards)
