"""What a shard concludes from the directory."""

import dataclasses

from headrace.directory import ShardEntry, Snapshot
from shard.registration import successor

OLD = ShardEntry("n-0", "n", 10, "/run/old.sock", "up", 100, 0, 0, "0.2.0", born="10 b 1000", started_ms=9000)
NEW = dataclasses.replace(OLD, pid=11, path="/run/new.sock", born="11 b 5000", started_ms=8000)
FIRST = dataclasses.replace(OLD, born="")
"""Of version 0.1."""


def sees(other: ShardEntry, entry: ShardEntry) -> bool:
    return successor(Snapshot(shards=(other,)), entry) == other


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
