"""The directory in a real Redis."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from headrace.directory import Directory, ShardEntry
from headrace.errors import DirectoryUnavailableError
from headrace.placement import rendezvous
from headrace.stream import SLOTS
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import wait_until


def entry(id_: str, node: str = "n1", pid: int = 1, **changes: Any) -> ShardEntry:
    made = ShardEntry(id_, node, pid, f"/run/{id_}.sock", "up", 100, 0, 0, "0.1.0")
    return dataclasses.replace(made, **changes)


@pytest.fixture
def directory(redis_server: RedisServer) -> Iterator[Directory]:
    made = Directory(redis_server.url, expiry_s=30)
    yield made
    made.close()


@pytest.fixture
def brief(redis_server: RedisServer) -> Iterator[Directory]:
    """A directory whose entries expire at once."""
    made = Directory(redis_server.url, expiry_s=0.05)
    yield made
    made.close()


def test_an_empty_redis_is_an_empty_snapshot(directory: Directory) -> None:
    """Reading an empty Redis gives no shards and the epoch before all others, and begins nothing."""
    assert directory.read().epoch == ("", 0)
    assert directory.read().shards == ()


def test_an_entry_is_read_as_it_was_registered(directory: Directory) -> None:
    """Every field of a shard's entry survives the way through Redis."""
    sent = entry("s1", pid=77, connections=5, streams=3, lag_s=0.25, last_error="PostgreSQL is away; é")
    directory.register(sent)
    assert directory.read().shards == (sent,)


def test_a_long_error_is_cut(directory: Directory) -> None:
    """An error message without end does not fill Redis."""
    directory.register(entry("s1", last_error="x" * 10_000))
    assert len(directory.read().shards[0].last_error) == 300


def test_only_a_change_moves_the_epoch(directory: Directory) -> None:
    """Registering again with other counts is no change; another process, path or state is one."""
    assert directory.register(entry("s1"))
    generation, count = directory.read().epoch
    assert not directory.register(entry("s1", connections=9))
    assert directory.read().epoch == (generation, count)
    assert directory.read().shards[0].connections == 9
    for changed in (entry("s1", pid=2), entry("s1", pid=2, state="draining"), entry("s1", path="/other")):
        assert directory.register(changed)
        count += 1
        assert directory.read().epoch == (generation, count)


def test_leaving_is_for_the_process_that_registered(directory: Directory) -> None:
    """A process that was replaced cannot remove its successor's entry."""
    directory.register(entry("s1", pid=2))
    assert not directory.leave("s1", 1)
    assert directory.read().shards
    assert directory.leave("s1", 2)
    assert not directory.read().shards
    assert not directory.leave("s1", 2)


def test_a_shard_that_stops_registering_disappears(brief: Directory, directory: Directory) -> None:
    """An entry expires by itself, and the next claim makes that a change of the epoch."""
    brief.register(entry("s1"))
    directory.register(entry("s2"))
    before = directory.read().epoch
    wait_until(lambda: [shard.id for shard in directory.read().shards] == ["s2"], "s1 expired")
    directory.claim("n1", settle_s=30)
    assert directory.read().epoch[1] == before[1] + 1


def test_slots_go_to_their_first_choice(directory: Directory) -> None:
    """Claiming gives every slot of the node to the first of its rendezvous order, once."""
    ids = ["s1", "s2", "s3"]
    for id_ in ids:
        directory.register(entry(id_))
    assert directory.claim("n1", settle_s=0) == SLOTS
    assert directory.claim("n1", settle_s=0) == 0
    assert dict(directory.read().slots["n1"]) == {slot: rendezvous(slot, ids)[0] for slot in range(SLOTS)}


def test_nothing_is_given_before_the_node_has_settled(directory: Directory) -> None:
    """The first shard to start does not get the slots of those that start with it."""
    directory.register(entry("s1"))
    assert directory.claim("n1", settle_s=0.2) == 0
    directory.register(entry("s2"))
    assert directory.claim("n1", settle_s=0.2) == 0
    wait_until(lambda: directory.claim("n1", settle_s=0.2) == SLOTS, "the node has settled")
    assert set(directory.read().slots["n1"].values()) == {"s1", "s2"}


def test_a_restarted_shard_finds_its_slots(directory: Directory) -> None:
    """A shard that is back before the node has settled keeps what it owned, though its pid changed."""
    for id_ in ("s1", "s2"):
        directory.register(entry(id_))
    directory.claim("n1", settle_s=0)
    before = dict(directory.read().slots["n1"])
    directory.leave("s1", 1)
    assert directory.claim("n1", settle_s=30) == 0
    directory.register(entry("s1", pid=2))
    assert directory.claim("n1", settle_s=0) == 0
    assert dict(directory.read().slots["n1"]) == before


def test_only_a_dead_shards_slots_are_given_away(directory: Directory) -> None:
    """When a shard is gone its slots go to those that are left, and no other slot moves."""
    for id_ in ("s1", "s2", "s3"):
        directory.register(entry(id_))
    directory.claim("n1", settle_s=0)
    before = dict(directory.read().slots["n1"])
    directory.leave("s2", 1)
    assert directory.claim("n1", settle_s=0) == Counter(before.values())["s2"]
    after = directory.read().slots["n1"]
    assert {slot for slot in before if before[slot] != after[slot]} == {s for s in before if before[s] == "s2"}
    assert set(after.values()) == {"s1", "s3"}


def test_a_draining_shard_keeps_its_slots_and_gets_none(directory: Directory) -> None:
    """A shard that drains is alive, so its slots are not taken from it, but it is given no others."""
    directory.register(entry("s1"))
    directory.claim("n1", settle_s=0)
    directory.register(entry("s1", state="draining"))
    directory.register(entry("s2"))
    assert directory.claim("n1", settle_s=0) == 0
    directory.leave("s1", 1)
    directory.register(entry("s3", state="drained"))
    directory.claim("n1", settle_s=0)
    assert set(directory.read().slots["n1"].values()) == {"s2"}


def test_nodes_have_tables_of_their_own(directory: Directory) -> None:
    """Each node assigns every slot to its own shards only."""
    directory.register(entry("s1", node="n1"))
    directory.register(entry("s2", node="n2"))
    directory.claim("n1", settle_s=0)
    directory.claim("n2", settle_s=0)
    slots = directory.read().slots
    assert set(slots["n1"].values()) == {"s1"}
    assert set(slots["n2"].values()) == {"s2"}


def test_claims_at_the_same_time_give_each_slot_once(directory: Directory, redis_server: RedisServer) -> None:
    """When all shards claim at once, what they are given adds up to the slots there are."""
    for id_ in ("s1", "s2", "s3", "s4"):
        directory.register(entry(id_))
    given: list[int] = []
    barrier = threading.Barrier(4)

    def claim() -> None:
        mine = Directory(redis_server.url, expiry_s=30)
        barrier.wait(5)
        given.append(mine.claim("n1", settle_s=0))
        mine.close()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sum(given) == SLOTS


def test_an_unchanged_epoch_saves_reading_the_slots(directory: Directory) -> None:
    """Reading with the last snapshot gives the same as without it, before and after a change."""
    directory.register(entry("s1"))
    directory.claim("n1", settle_s=0)
    known = directory.read()
    directory.register(entry("s1", connections=4))
    again = directory.read(known)
    assert again.slots is known.slots
    assert again == directory.read()
    directory.leave("s1", 1)
    directory.register(entry("s2"))
    directory.claim("n1", settle_s=0)
    assert directory.read(known) == directory.read()
    assert set(directory.read(known).slots["n1"].values()) == {"s2"}


def test_an_emptied_redis_begins_a_new_generation(directory: Directory, redis_server: RedisServer) -> None:
    """After Redis was emptied, a shard's next heartbeat is a change of a generation not seen before."""
    directory.register(entry("s1"))
    before = directory.read().epoch
    redis_server.empty()
    assert directory.read().epoch == ("", 0)
    assert directory.register(entry("s1"))
    assert directory.read().epoch[0] not in ("", before[0])
    assert directory.claim("n1", settle_s=0) == SLOTS


def test_a_damaged_entry_is_passed_over(directory: Directory, redis_server: RedisServer) -> None:
    """An entry that this version cannot read hides itself alone."""
    directory.register(entry("s1"))
    directory.register(entry("s2"))
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.hset("headrace:shard:s2", "state", "dancing")
        raw.hset("headrace:shards", "s3", "n1")
        raw.hset("headrace:shard:s3", "node", "n1")
    assert [shard.id for shard in directory.read().shards] == ["s1"]


def test_entries_of_other_versions_are_read(directory: Directory, redis_server: RedisServer) -> None:
    """An entry without what was added since, or with what is added later, is read; the next registration is whole."""
    made = entry("s1")
    directory.register(dataclasses.replace(made, born="1 b 2"))
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.hdel("headrace:shard:s1", "born", "moving")
        raw.hset("headrace:shard:s1", "mood", "gay")
        assert directory.read().shards == (made,)
        directory.register(made)
        assert raw.hget("headrace:shard:s1", "mood") is None


def test_watchers_hear_of_changes_only(directory: Directory, redis_server: RedisServer) -> None:
    """A watcher is told at once of a change, and otherwise after its timeout that there was none."""
    watcher = Directory(redis_server.url, expiry_s=30)
    changes = watcher.changes(timeout_s=0.05)
    assert next(changes) is True
    assert next(changes) is False
    directory.register(entry("s1"))
    directory.register(entry("s2"))
    assert next(changes) is True
    directory.register(entry("s1", connections=1))
    while next(changes):
        """Both changes may come apart; what follows is silence."""
    directory.leave("s1", 1)
    assert next(changes) is True
    changes.close()
    watcher.close()


def test_a_killed_redis_is_an_error_and_its_return_needs_nothing(own_redis: RedisServer) -> None:
    """While Redis is away calls and watching fail with what to do; afterwards the same object works."""
    directory = Directory(own_redis.url, expiry_s=30)
    changes = directory.changes(timeout_s=5)
    next(changes)
    directory.register(entry("s1"))
    own_redis.kill()
    for call in (directory.read, lambda: directory.register(entry("s1")), lambda: directory.claim("n1")):
        with pytest.raises(DirectoryUnavailableError, match="HEADRACE_REDIS_URL"):
            call()
    with pytest.raises(DirectoryUnavailableError):
        list(changes)
    own_redis.start()
    assert directory.register(entry("s1"))
    assert next(directory.changes(timeout_s=1)) is True
    directory.close()


def test_a_stopped_redis_is_noticed_in_time(own_redis: RedisServer) -> None:
    """A Redis that neither answers nor closes costs a caller about a second, not for ever."""
    directory = Directory(own_redis.url, expiry_s=30)
    directory.register(entry("s1"))
    own_redis.pause()
    began = time.monotonic()
    with pytest.raises(DirectoryUnavailableError):
        directory.read()
    assert time.monotonic() - began < 3
    own_redis.resume()
    assert directory.read().shards
    directory.close()


def test_a_clock_set_back_delays_a_claim_by_the_settling_only(directory: Directory, redis_server: RedisServer) -> None:
    """A node whose last change lies in the future settles anew from now, not when the clock gets there again."""
    directory.register(entry("s1"))
    with redis.Redis.from_url(redis_server.url) as client:
        client.hincrby("headrace:node:n1", "joined_ms", 7_200_000)
        assert directory.claim("n1", settle_s=0.05) == 0
        wait_until(lambda: directory.claim("n1", settle_s=0.05) == SLOTS, "the slots are given", 5)
