"""What one reading of the directory tells: its epoch, the live shards, and who owns which slots."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from headrace.node import runtime_directory
from headrace.node.shard_entry import ShardEntry, finite, read_entry

ENDS: Final = ("stopped", "died", "silent", "replaced")
"""The ways in which a shard's process ends, as the directory sees it: the process says that it leaves; another shard
finds it dead; it says nothing for as long as its entry lives; another process registers under its id."""


@dataclass(frozen=True, slots=True)
class DirectorySnapshot:
    """The directory at one moment. The defaults are those of an empty Redis."""

    epoch: tuple[str, int] = ("", 0)
    """(generation, count). The generation is random; a new one means that Redis was emptied, so that two counts compare
    only within one generation."""
    shards: tuple[ShardEntry, ...] = ()
    """The live shards by id."""
    slots: Mapping[str, Mapping[int, str]] = field(default_factory=lambda: MappingProxyType({}))
    """For each node, and each of its slots that has an owner, the owner's id."""
    drained: frozenset[str] = frozenset()
    """The ids of the shards that an operator drains, whether they are empty yet or not."""
    drained_nodes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """The nodes that an operator drains, each with the seconds over which its clients are to leave."""
    hot: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    """For each node its hot streams, each with the connections that it leads there."""
    ends: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    """For each node how many of its shards' processes have ended in which way, by a word of ENDS."""

    registered: int = 0
    """How many shards of all nodes are registered, also where only one node was read. Some may have died just now."""

    def owned(self) -> Mapping[str, int]:
        """For each shard, by its id, how many slots it owns."""
        return Counter(owner for slots in self.slots.values() for owner in slots.values())


def read_snapshot(answer: Sequence[Any], known: DirectorySnapshot) -> DirectorySnapshot:
    """The snapshot in an answer of the script's `read` (see `lua/call.lua`), its shards sorted by id.

    The answer has no slots if the directory is still in the epoch of known, whose slots then count. Raises ValueError
    where a stranger has written into the directory.
    """
    generation, count, shards, tables, drained, nodes, hot, ends, registered = answer
    entries = [read_entry(id_, dict(_pairs(values))) for id_, *values in shards if runtime_directory.is_plain(id_)]
    slots = {node: MappingProxyType({int(slot): owner for slot, owner in _pairs(pairs)}) for node, *pairs in tables}
    return DirectorySnapshot(
        (generation, int(count)),
        tuple(sorted((entry for entry in entries if entry), key=lambda entry: entry.id)),
        known.slots if (generation, int(count)) == known.epoch else MappingProxyType(slots),
        frozenset(drained),
        MappingProxyType({node: finite(over_s) for node, over_s in _pairs(nodes)}),
        MappingProxyType({node: {name: int(n) for name, n in _pairs(streams)} for node, *streams in hot}),
        MappingProxyType({node: dict(zip(ENDS, map(int, counts), strict=True)) for node, *counts in ends}),
        int(registered),
    )


def _pairs(flat: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(flat[::2], flat[1::2], strict=True)
