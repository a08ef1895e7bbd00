"""What a shard concludes from the directory."""

import dataclasses
from typing import Any

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.placement import BUCKETS
from headrace.node.shard_entry import ShardEntry, ShardState
from headrace.shard.messages import Assign
from headrace.shard.node.registration import assignment, successor
from headrace.stream import SLOTS

OLD = ShardEntry("n-0", "n", 10, "/run/old.sock", "up", 100, 0, 0, "0.2.0", born="10 b 1000", started_ms=9000)
NEW = dataclasses.replace(OLD, pid=11, path="/run/new.sock", born="11 b 5000", started_ms=8000)
FIRST = dataclasses.replace(OLD, born="")
"""Of version 0.1."""


def sees(other: ShardEntry, entry: ShardEntry) -> bool:
    return successor(DirectorySnapshot(shards=(other,)), entry) == other


def test_the_younger_of_two_processes_succeeds() -> None:
    """The older process sees its successor, the younger one sees none in the older, whatever the clock says."""
    assert sees(NEW, OLD)
    assert not sees(OLD, NEW)
    assert not sees(OLD, OLD)


def test_a_process_of_another_boot_is_no_successor() -> None:
    """Sockets are handed over within one machine; ages of two boots do not compare."""
    assert not sees(dataclasses.replace(NEW, born="11 other 5000"), OLD)


def test_version_0_1_is_succeeded_and_succeeds() -> None:
    """With a process of version 0.1 wall time decides: after an upgrade, and after going back to it."""
    later = dataclasses.replace(NEW, started_ms=9001)
    assert not sees(FIRST, later)
    assert sees(dataclasses.replace(FIRST, pid=12, started_ms=9002), later)


def test_what_a_successor_left_in_the_hash_is_not_believed() -> None:
    """Version 0.1 that registers over its successor's entry leaves that one's birth in the hash, with its own pid."""
    later = dataclasses.replace(NEW, started_ms=9001)
    assert not sees(dataclasses.replace(FIRST, born=later.born), later)


def snapshot(*entries: ShardEntry, **changes: Any) -> DirectorySnapshot:
    return dataclasses.replace(DirectorySnapshot(("g", 7), entries), **changes)


def others(*ids: str, state: ShardState = "up") -> list[ShardEntry]:
    return [dataclasses.replace(OLD, id=id_, pid=20, path=f"/run/{id_}.sock", state=state) for id_ in ids]


def test_connections_belong_to_the_owners_of_their_slots() -> None:
    """A slot of another shard that is up goes there; one whose owner is unknown or not up stays."""
    slots = {"n": {1: "n-0", 2: "n-1", 3: "n-2", 4: "gone"}}
    known = snapshot(OLD, *others("n-1"), *others("n-2", state="draining"), slots=slots)
    assert assignment(known, OLD) == Assign("g 7", {2: "/run/n-1.sock"})


def test_a_drained_shard_keeps_nobody() -> None:
    """Every slot has a shard to go to, guests too, and the hot streams are spread over the others alone."""
    known = snapshot(OLD, *others("n-1", "n-2"), drained=frozenset(["n-0"]), hot={"n": {"a": 900}})
    found = assignment(known, OLD)
    assert found.everybody
    assert set(found.paths) == set(range(SLOTS))
    assert set(found.spread) == set(found.paths.values()) == {"/run/n-1.sock", "/run/n-2.sock"}


def test_a_hot_stream_is_shared_by_all_that_are_up() -> None:
    """Each shard keeps the same share of a hot stream's buckets, and all agree whose they are."""
    entries = [OLD, *others("n-1", "n-2")]
    known = snapshot(*entries, *others("n-3", state="drained"), hot={"n": {"a": 900}, "m": {"b": 900}})
    spreads = {entry.id: assignment(known, entry).spread for entry in entries}
    assert assignment(known, OLD).hot == {"a"}
    for number in range(BUCKETS):
        (keeper,) = [entry for entry in entries if not spreads[entry.id][number]]
        assert {spread[number] for spread in spreads.values()} == {"", keeper.path}
    assert all(330 < spread.count("") < 350 for spread in spreads.values())
