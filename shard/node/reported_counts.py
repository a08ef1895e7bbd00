"""What a shard counts and reports to the directory: largest streams, connections by user and by address."""

import heapq
from collections.abc import Mapping
from typing import Final

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.shard_entry import ShardEntry
from headrace.node.shard_report import ShardReport
from headrace.shard.registry import Registry

MOST_AT_ONCE: Final = 2000
MOST_CROWDS: Final = 64


class ReportedCounts:
    """Reports to the directory, once a second, what has changed; and everything, if the directory has lost its counts.

    Owned by the registration's greenlet; what it reads of the registry it reads without yielding. hot_connections is
    from how many connections on a node a stream is hot; at half of them it ceases to be.
    """

    def __init__(self, registry: Registry, hot_connections: int) -> None:
        self._registry = registry
        self._hot_connections = hot_connections
        self._serial = 0
        self._whole = True
        self._had_crowds = False

    def send(self, directory: Directory, entry: ShardEntry, hot: Mapping[str, int]) -> None:
        """Report. Yields. hot are the streams that are hot on this node as far as is known.

        Raises DirectoryUnavailableError; the next report is a whole one then.
        """
        crowds = self._crowds(hot)
        try:
            while True:
                whole, self._whole = self._whole, False
                if whole:
                    self._registry.connection_counts.forget()
                held, arrived = self._registry.connection_counts.take_changes(MOST_AT_ONCE)
                self._serial += 1
                low = max(1, self._hot_connections // 2)
                report = ShardReport(self._serial, crowds, self._hot_connections, low, whole, held, arrived)
                if not directory.report(entry, report):
                    self._whole = True
                    if whole:
                        # The entry belongs to another process at this moment: the next registration finds out which.
                        return
                elif max(len(held), len(arrived)) < MOST_AT_ONCE:
                    return
        except DirectoryUnavailableError:
            self._whole = True
            raise

    def _crowds(self, hot: Mapping[str, int]) -> Mapping[str, int] | None:
        """The streams whose number here matters; None where nothing has to be written or taken back."""
        if not self._hot_connections:
            return None
        largest = heapq.nlargest(MOST_CROWDS, self._registry.crowds, key=lambda stream: stream.leads)
        crowds = {stream.name: stream.leads for stream in largest}
        for name in hot:
            stream = self._registry.stream(name)
            if stream is not None and stream.leads:
                crowds[name] = stream.leads
        told = bool(crowds or hot or self._had_crowds)
        self._had_crowds = bool(crowds)
        return crowds if told else None
