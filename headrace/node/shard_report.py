"""What a shard counts, besides its entry: the streams that may be hot, and the connections of each user and address."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One report of a shard's process; the directory gets one each second.

    A report with a serial that is not above the last one's arrives late and is passed over.
    """

    serial: int
    """The number of the report; it rises from one report of a process to its next."""
    crowds: Mapping[str, int] | None
    """The shard's largest streams, each with the connections that it leads here; None where nothing is to be told."""
    high: int
    """A stream becomes hot on its node once it leads so many connections there."""
    low: int
    """A hot stream stays hot until it leads fewer connections than this."""
    whole: bool
    """Whether `held` has all users and addresses, not only those whose count has changed."""
    held: Mapping[str, int]
    """For each limit key (`headrace.node.limit_keys`) how many connections it has on this shard, 0 included."""
    arrived: Sequence[tuple[str, str]]
    """The connections counted in `held` that came through a router: for each a limit key and the request id."""
