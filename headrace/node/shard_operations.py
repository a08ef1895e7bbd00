"""What operators do with shards: drain, undrain, move and rebalance.

An operation writes the wish into the directory, and waits until it is fulfilled. The shards read the directory, move
their connections, and write into their entries which epoch they have carried out. If the operation or a shard dies in
the middle, the shards go on from what the directory says.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.errors import DirectoryUnavailableError, UnavailableError, UsageError
from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.placement import rendezvous
from headrace.node.shard_entry import ShardEntry
from headrace.stream import SLOTS, slot

POLL_S: Final = 0.2
SAY_S: Final = 1.0
"""The least time between two lines of progress."""
PATIENCE_S: Final = 10.0
"""For how long an operation that has written its wish waits for a Redis that is away."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """New owners for slots of one node, as of an epoch of the directory.

    owners has the new owner of each slot that gets another. before and after have, for each shard of the node, how many
    slots it owns; connections has how many connections it has now.
    """

    node: str
    epoch: tuple[str, int]
    owners: Mapping[int, str]
    before: Mapping[str, int]
    after: Mapping[str, int]
    connections: Mapping[str, int]

    @property
    def moves(self) -> int:
        """How many slots get another owner."""
        return len(self.owners)


class ShardOperations:
    """Operations on the shards of one deployment. say is given a line of progress whenever there is news.

    Owned by its caller. Every operation raises UsageError for a shard or node that does not exist, UnavailableError if
    it is not done within deadline_s, and DirectoryUnavailableError without Redis: at once before the wish is written,
    after PATIENCE_S later.
    """

    def __init__(self, directory: Directory, say: Say, *, deadline_s: float = 60.0) -> None:
        self._directory = directory
        self._say = say
        self._deadline_s = deadline_s

    def drain(self, shard_id: str) -> None:
        """Have a shard's connections move to other shards of its node, and no new clients be given to it."""
        node = self.drain_plan(shard_id).node
        self._directory.drain(shard_id)
        self._directory.claim(node, settle_s=0)
        self._wait(
            lambda now: self._shard(now, shard_id).state == "drained",
            lambda now: f"{shard_id}: {self._shard(now, shard_id).connections} connections left",
        )

    def undrain(self, shard_id: str) -> bool:
        """Let a drained shard serve again, with its share of the slots.

        Returns False if the shard is gone: then only its mark in the directory is removed. Raises UsageError if the
        whole node of the shard is drained.
        """
        snapshot = self._directory.read()
        if shard_id in snapshot.drained and not any(entry.id == shard_id for entry in snapshot.shards):
            self._directory.undrain(shard_id)
            return False
        entry = self._shard(snapshot, shard_id)
        if entry.node in snapshot.drained_nodes:
            node = entry.node
            raise UsageError(
                f"{shard_id} would not serve, since its whole node is drained; `headrace undrain --node {node}` first"
            )
        self._directory.undrain(shard_id)
        self._wait(
            lambda now: self._shard(now, shard_id).state == "up",
            lambda now: f"{shard_id} is {self._shard(now, shard_id).state}",
        )
        self._carry_out([plan for plan in self.plans() if plan.node == entry.node])
        return True

    def drain_node(self, node: str, over_s: float) -> None:
        """Have the clients of a whole node go to other nodes within about over_s seconds, and no new clients come."""
        snapshot = self._directory.read()
        self._node(snapshot, node)
        if not any(_willing(snapshot, other) for other in {entry.node for entry in snapshot.shards} - {node}):
            raise UsageError("no other node has a shard that is up; start one first")
        self._directory.drain_node(node, over_s)
        self._wait(
            # A node without entries is not done: its shards are cut off from Redis, and still have their clients.
            lambda now: {entry.state for entry in now.shards if entry.node == node} == {"drained"},
            lambda now: f"node {node}: {sum(e.connections for e in now.shards if e.node == node)} connections left",
            deadline_s=self._deadline_s + over_s,
        )

    def undrain_node(self, node: str) -> list[str] | None:
        """Let a drained node serve again. Returns the ids of those of its shards that an operator drains one by one.

        Returns None if the node is gone: then only its mark in the directory is removed.
        """
        snapshot = self._directory.read()
        if node in snapshot.drained_nodes and not any(entry.node == node for entry in snapshot.shards):
            self._directory.undrain_node(node)
            return None
        self._node(snapshot, node)
        self._directory.undrain_node(node)

        def down(now: DirectorySnapshot) -> list[str]:
            mine = (entry for entry in now.shards if entry.node == node and entry.id not in now.drained)
            return [entry.id for entry in mine if entry.state != "up"]

        self._wait(
            lambda now: any(entry.node == node for entry in now.shards) and not down(now),
            lambda now: f"waiting for {', '.join(down(now)) or 'any shard of it'}",
        )
        now = self._directory.read()
        return [entry.id for entry in now.shards if entry.node == node and entry.id in now.drained]

    def move(self, what: str, shard_id: str) -> int:
        """Give a slot, or the slot of a stream, with all its connections to a shard; returns the slot.

        what is the slot's number, or the stream's name.
        """
        snapshot = self._directory.read()
        entry = self._shard(snapshot, shard_id)
        if shard_id in snapshot.drained:
            raise UsageError(f"shard {shard_id!r} is drained; `headrace undrain {shard_id}` first")
        number = int(what) if what.isascii() and what.isdigit() and int(what) < SLOTS else slot(what)
        self._directory.assign(entry.node, {number: shard_id})
        self._settle(entry.node)
        return number

    def join(self, shard_ids: list[str], require_them: Callable[[], None] = lambda: None) -> None:
        """Wait until these shards are registered. require_them is called again and again; it raises to give up."""

        def joined(now: DirectorySnapshot) -> bool:
            if set(shard_ids) <= {entry.id for entry in now.shards if entry.state == "up"}:
                return True
            require_them()
            return False

        self._wait(
            joined,
            lambda now: f"waiting for {', '.join(sorted(set(shard_ids) - {entry.id for entry in now.shards}))}",
        )

    def plans(self) -> list[Plan]:
        """What `rebalance` would do: give every slot of each node to the shard that it prefers of those that are up."""
        return list(_plans(self._directory.read()))

    def drain_plan(self, shard_id: str) -> Plan:
        """What `drain` would do: give each slot of the shard to the shard that it prefers of the others."""
        snapshot = self._directory.read()
        node = self._shard(snapshot, shard_id).node
        others = [other for other in _willing(snapshot, node) if other != shard_id]
        if not others:
            raise UsageError(f"no other shard of node {node!r} is up; add one with `headrace scale` first")
        return _plan(snapshot, node, others, keep=True)

    def undrain_plan(self, shard_id: str) -> Plan:
        """What `undrain` would do: give each slot of the node to the shard that it prefers, this one included."""
        snapshot = self._directory.read()
        node = self._shard(snapshot, shard_id).node
        return _plan(snapshot, node, [*_willing(snapshot, node), shard_id])

    def rebalance(self, plans: Sequence[Plan] | None = None) -> None:
        """Carry out plans that `plans` returned, or new ones if None."""
        self._carry_out(self.plans() if plans is None else plans)

    def _carry_out(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            self._directory.assign(plan.node, plan.owners)
        for plan in plans:
            self._settle(plan.node)

    def _settle(self, node: str) -> None:
        """Wait until every shard of the node has carried out the directory's present epoch."""
        wanted = self._directory.read().epoch

        def waiting(now: DirectorySnapshot) -> list[ShardEntry]:
            return [entry for entry in now.shards if entry.node == node and not entry.has_carried_out(wanted)]

        self._wait(
            lambda now: not waiting(now),
            lambda now: _progress(waiting(now)),
        )

    def _wait(
        self,
        done: Callable[[DirectorySnapshot], bool],
        progress: Callable[[DirectorySnapshot], str],
        *,
        deadline_s: float | None = None,
    ) -> None:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        deadline = time.monotonic() + deadline_s
        said, said_at = "", -math.inf
        read_at = time.monotonic()
        while True:
            try:
                now = self._directory.read()
                read_at = time.monotonic()
                if done(now):
                    return
                line = progress(now)
            except DirectoryUnavailableError as error:
                if time.monotonic() >= read_at + PATIENCE_S:
                    raise
                line = f"waiting for Redis: {error}"
            if line and line != said and time.monotonic() >= said_at + SAY_S:
                self._say(line)
                said, said_at = line, time.monotonic()
            if time.monotonic() >= deadline:
                left = line or "not every shard has followed"
                raise UnavailableError(f"not done within {deadline_s:g} s: {left}; `headrace status` tells more")
            time.sleep(POLL_S)

    def _node(self, snapshot: DirectorySnapshot, node: str) -> None:
        known = sorted({entry.node for entry in snapshot.shards})
        if node not in known:
            raise UsageError(f"there is no node {node!r}; registered are {', '.join(known) or 'none'}")

    def _shard(self, snapshot: DirectorySnapshot, shard_id: str) -> ShardEntry:
        for entry in snapshot.shards:
            if entry.id == shard_id:
                return entry
        known = ", ".join(entry.id for entry in snapshot.shards) or "none"
        raise UsageError(f"there is no shard {shard_id!r}; registered are {known}")


def _progress(entries: Sequence[ShardEntry]) -> str:
    """How many connections move from where to where, as far as the shards tell; "" for none."""
    moves = [f"{target} {count} from {entry.id}" for entry in entries for target, count in entry.moves()]
    moving = sum(entry.moving for entry in entries)
    return f"{moving} connections are to move (to {', '.join(moves)})" if moving else ""


def _willing(snapshot: DirectorySnapshot, node: str) -> list[str]:
    return [
        entry.id
        for entry in snapshot.shards
        if entry.node == node and entry.state == "up" and entry.id not in snapshot.drained
    ]


def _plans(snapshot: DirectorySnapshot) -> Iterator[Plan]:
    for node in sorted({entry.node for entry in snapshot.shards}):
        willing = _willing(snapshot, node)
        if willing:
            yield _plan(snapshot, node, willing)


def _plan(snapshot: DirectorySnapshot, node: str, willing: Sequence[str], *, keep: bool = False) -> Plan:
    """Give each slot of a node to the willing shard that it prefers; with keep, only if no willing shard has it."""
    current = snapshot.slots.get(node, {})
    then = {
        number: current[number] if keep and current.get(number) in willing else rendezvous(number, willing)[0]
        for number in range(SLOTS)
    }
    owners = {number: owner for number, owner in then.items() if current.get(number) != owner}
    shards = sorted(entry.id for entry in snapshot.shards if entry.node == node)
    connections = {entry.id: entry.connections for entry in snapshot.shards if entry.node == node}
    return Plan(node, snapshot.epoch, owners, _share(current, shards), _share(then, shards), connections)


def _share(owners: Mapping[int, str], shards: list[str]) -> dict[str, int]:
    return {shard: sum(owner == shard for owner in owners.values()) for shard in shards}
