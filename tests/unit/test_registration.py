"""What a shard concludes from the directory."""

import dataclasses

from headrace.directory import ShardEntry, Snapshot
from shard.registration import successor

OLD = ShardEntry("n-0", "n", 10, "/run/old.sock", "up", 100, 0, 0, "0.1.0", boot="b", started_ms=1000)
NEW = dataclasses.replace(OLD, pid=11, path="/run/new.sock", started_ms=5000)


def test_the_younger_of_two_processes_succeeds() -> None:
    """The older process sees its successor, the younger one sees none in the older."""
    assert successor(Snapshot(shards=(NEW,)), OLD) == NEW
    assert successor(Snapshot(shards=(OLD,)), NEW) is None
    assert successor(Snapshot(shards=(OLD,)), OLD) is None


def test_a_process_of_another_boot_is_no_successor() -> None:
    """Sockets are handed over within one machine; ages of two boots do not compare."""
    assert successor(Snapshot(shards=(dataclasses.replace(NEW, boot="other"),)), OLD) is None
