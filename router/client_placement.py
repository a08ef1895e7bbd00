"""Which shards of this node to try for a client, in order, from what is known of the directory.

Any shard can serve any stream, so an old answer costs nothing but balance. What must not happen is that there is no
answer. The rules, in this order:

    1 where the client belongs: the slot's owner or, if its stream is hot, the shard of its bucket
    2 the node's other shards that are up, in rendezvous order
    3 of both, those that are full or have too much more than their fair share, last
    4 if the directory is away or names no shard of this node: hand-off sockets found in the runtime directory
    5 shards that went silent lately, since each costs its client the hand-off deadline

While the whole node is drained there is no shard to try: a load balancer sends the client to another node.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.placement import bucket, overloaded, rendezvous, spread
from headrace.node.shard_entry import ShardEntry

logger = logging.getLogger(__name__)

SUSPICION_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shard that may take a client: its id and hand-off socket.

    guest tells that the client belongs to another shard, which has no room or has been silent.
    """

    id: str
    path: str
    guest: bool = False


class ClientPlacement:
    """What this process knows of its node's shards.

    Fed by the follower's greenlet, asked by request greenlets. Nothing here yields, so each call is atomic.
    """

    def __init__(
        self,
        node: str,
        *,
        hold_s: float,
        found: Callable[[], Iterable[Candidate]],
        load_factor: float = 1.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """hold_s: for how long after an outage, or in a new generation, shards may be missing that were known before.

        load_factor: from how many times its fair share of the connections on a shard has too many.
        """
        self._node = node
        self._hold_s = hold_s
        self._found = found
        self._load_factor = load_factor
        self._given: Counter[str] = Counter()
        self._clock = clock
        self._known = DirectorySnapshot()
        self._entries: dict[str, ShardEntry] = {}
        self._up: tuple[str, ...] = ()
        self._doubted_since = -math.inf
        self._suspects: dict[str, float] = {}
        self._generation = ""
        self.emptied = 0
        self.directory_condition = "away"

    def __repr__(self) -> str:
        state = "away" if self.directory_away else "known"
        return f"<Placement node={self._node!r} directory {state} {len(self.shards())} shards>"

    def shards(self) -> tuple[ShardEntry, ...]:
        """The entries of this node's shards as last known, in any state."""
        return tuple(self._entries.values())

    @property
    def known(self) -> DirectorySnapshot:
        """The directory as last known, other nodes with it."""
        return self._known

    @property
    def drained(self) -> bool:
        """Whether an operator wants this node without clients."""
        return self._node in self._known.drained_nodes

    @property
    def ends(self) -> Mapping[str, int]:
        """How many processes of this node's shards have ended in which way."""
        return Counter(self._known.ends.get(self._node, {}))

    @property
    def connections(self) -> int:
        """Clients of this node, with those that this process has given away since it was last told."""
        return sum(map(self._load, self._entries.values()))

    def gave(self, shard_id: str) -> None:
        """A shard has taken a client, of which the directory may not know yet."""
        self._given[shard_id] += 1

    def learn(self, snapshot: DirectorySnapshot) -> None:
        """Take a fresh snapshot, unless it knows less only because Redis was emptied, stood still or refused writes.

        Then the entries of living shards are gone, and come back one by one when they register again.
        """
        if self.directory_away and self._known.epoch[0]:
            self._doubted_since = self._clock()
        self.directory_condition = "ok"
        if snapshot.epoch[0]:
            if self._generation not in ("", snapshot.epoch[0]):
                self.emptied += 1
                self._doubted_since = self._clock()
                logger.warning("Redis was emptied; waiting up to %g s for shards to register again", self._hold_s)
            self._generation = snapshot.epoch[0]
        fresh = {entry.id for entry in snapshot.shards if entry.node == self._node}
        known = self._entries.keys()
        if known and not fresh:
            return
        if known - fresh and self._clock() - self._doubted_since < self._hold_s:
            return
        self._known = snapshot
        self._entries = {entry.id: entry for entry in snapshot.shards if entry.node == self._node}
        self._up = tuple(entry.id for entry in self._entries.values() if entry.state == "up")
        self._given.clear()

    @property
    def directory_away(self) -> bool:
        """Whether the directory cannot be used now, for whatever reason."""
        return self.directory_condition != "ok"

    def lose_directory(self, condition: str = "away") -> None:
        """Note that the directory cannot be used, and why, in a word. What is known of the shards stays."""
        self.directory_condition = condition

    def suspect(self, shard_id: str) -> None:
        """Try this shard last for a while: it was silent, and may be stopped."""
        self._suspects[shard_id] = self._clock() + SUSPICION_S

    def order(self, slot: int, stream: str = "", peer: str = "") -> list[Candidate]:
        """The shards to try for a new client of the slot, best first; empty if there is none.

        stream, its first, and peer, its address, matter where the stream is hot.
        """
        if self.drained:
            return []
        entries, up = self._entries, self._up
        home = self._known.slots.get(self._node, {}).get(slot)
        if up and stream in self._known.hot.get(self._node, ()):
            home = spread(up)[bucket(peer)]
        crowded = self._crowded()
        ranked = sorted(rendezvous(slot, up), key=lambda id_: (id_ in crowded, id_ != home))
        if self._suspects:
            now = self._clock()
            self._suspects = {id_: until for id_, until in self._suspects.items() if until > now}
        away = home in crowded or home in self._suspects
        candidates = [Candidate(id_, entries[id_].path, away and id_ != home) for id_ in ranked]
        if self.directory_away or not entries:
            found = {candidate.id: candidate for candidate in self._found() if candidate.id not in entries}
            candidates += [found[id_] for id_ in rendezvous(slot, found)]
        return sorted(candidates, key=lambda candidate: candidate.id in self._suspects)

    def _crowded(self) -> AbstractSet[str]:
        """The shards that are up, and full or with too much more than their fair share."""
        loads = {id_: self._load(self._entries[id_]) for id_ in self._up}
        full = {id_ for id_, load in loads.items() if load >= self._entries[id_].capacity}
        return full.union(overloaded(loads, self._load_factor))

    def _load(self, entry: ShardEntry) -> int:
        return entry.connections + self._given[entry.id]
