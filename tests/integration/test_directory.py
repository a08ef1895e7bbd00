"""The directory in a real Redis: shards, slots and what operators want."""

import dataclasses
import threading
import time
from collections import Counter

import pytest
import redis

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.placement import rendezvous
from headrace.stream import SLOTS
from tests.fixtures.directory import entry
from tests.fixtures.redis import PRODUCT_TIMEOUT_S, RedisServer
from tests.fixtures.waiting import DEADLINE_S, took_less, wait_until


def test_an_empty_redis_is_an_empty_snapshot(directory: Directory) -> None:
    """Reading an empty Redis gives no shards and the epoch before all others, and begins nothing."""
    assert directory.read().epoch == ("", 0)
    assert directory.read().shards == ()


def test_an_entry_is_read_as_it_was_registered(directory: Directory) -> None:
    """Every field of a shard's entry survives the way through Redis."""
    sent = entry("s1", pid=77, connections=5, streams=3, lag_s=0.25, last_error="PostgreSQL is away; é")
    directory.register(sent)
    assert directory.read().shards == (sent,)


def test_a_node_reads_what_is_its_own(directory: Directory) -> None:
    """Other nodes' entries, slots and hot streams are left out, so that a large fleet costs each process no more."""
    for shard in (entry("s1", node="n1"), entry("s2", node="n2"), entry("s3", node="n3")):
        directory.register(shard)
        directory.claim(shard.node)
    directory.drain("s3")
    found = directory.read(None, "n1", "s2")
    assert [shard.id for shard in found.shards] == ["s1", "s2"], "one of the id is a successor on another node"
    assert directory.read(None, "n1").slots.keys() == {"n1"}
    assert directory.read(None, "n1").ends.keys() == {"n1"}
    assert directory.read(None, "n1").drained == {"s3"}
    again = directory.read(directory.read(None, "n1"), "n1")
    assert again.slots["n1"] == directory.read().slots["n1"]
    assert directory.read().slots.keys() == {"n1", "n2", "n3"}


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


def test_an_ended_session_is_remembered_for_its_time(directory: Directory) -> None:
    """That a session was ended is known to all, and forgotten when it would have ended by itself."""
    assert not directory.session_ended("s1")
    directory.end_session("s1", 60)
    directory.end_session("s2", 0.05)
    assert directory.session_ended("s1")
    wait_until(lambda: not directory.session_ended("s2"), "it is forgotten")
    assert directory.session_ended("s1")


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
    assert directory.claim("n1", settle_s=30) == 0
    directory.register(entry("s2"))
    assert directory.claim("n1", settle_s=30) == 0
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
        barrier.wait(DEADLINE_S)
        given.append(mine.claim("n1", settle_s=0))
        mine.close()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
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
    """A watcher is told of a change, and otherwise after its timeout that there was none."""
    watcher = Directory(redis_server.url, expiry_s=30)
    changes = watcher.changes(timeout_s=0.05)
    assert next(changes) is True
    assert next(changes) is False
    directory.register(entry("s1"))
    directory.register(entry("s2"))
    wait_until(lambda: next(changes), "the watcher hears of a change")
    directory.register(entry("s1", connections=1))
    while next(changes):
        """Both changes may come apart; what follows is silence."""
    directory.leave("s1", 1)
    wait_until(lambda: next(changes), "the watcher hears of the next")
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


def test_a_stopped_redis_is_noticed_in_time(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that neither answers nor closes costs a caller about a second, not for ever."""
    monkeypatch.setattr("headrace.node.directory_script._TIMEOUT_S", PRODUCT_TIMEOUT_S)
    directory = Directory(own_redis.url, expiry_s=30)
    directory.register(entry("s1"))
    own_redis.pause()

    def read() -> float:
        began = time.monotonic()
        with pytest.raises(DirectoryUnavailableError):
            directory.read()
        return time.monotonic() - began

    took_less(3, read)
    own_redis.resume()
    assert directory.read().shards
    directory.close()


def test_a_clock_set_back_delays_a_claim_by_the_settling_only(directory: Directory, redis_server: RedisServer) -> None:
    """A node whose last change lies in the future settles anew from now, not when the clock gets there again."""
    directory.register(entry("s1"))
    with redis.Redis.from_url(redis_server.url) as client:
        client.hincrby("headrace:node:n1", "joined_ms", 7_200_000)
        assert directory.claim("n1", settle_s=0.05) == 0
        wait_until(lambda: directory.claim("n1", settle_s=0.05) == SLOTS, "the slots are given")


def test_a_buried_shards_slots_are_claimed_at_once(directory: Directory, redis_server: RedisServer) -> None:
    """Who was found dead is not waited for as one who leaves, and only its own entry can be buried."""
    for id_ in ("s1", "s2"):
        directory.register(entry(id_))
    directory.claim("n1", settle_s=0)
    with redis.Redis.from_url(redis_server.url) as client:
        # The node has been what it is for long: it has settled.
        client.hincrby("headrace:node:n1", "joined_ms", -7_200_000)
    assert not directory.bury("s1", 99)
    before = directory.read()
    assert directory.bury("s1", 1)
    assert not directory.bury("s1", 1)
    assert directory.claim("n1", settle_s=30) == Counter(before.slots["n1"].values())["s1"]
    after = directory.read()
    assert set(after.slots["n1"].values()) == {"s2"}
    assert after.epoch > before.epoch


def test_the_ends_of_processes_are_counted_by_how(brief: Directory, directory: Directory) -> None:
    """One leaves, one is found dead, one falls silent, one is replaced: each counts once, for its node alone."""
    for id_ in ("left", "dead", "old", "here"):
        directory.register(entry(id_))
    directory.register(entry("other", node="n2"))
    directory.leave("left", 1)
    directory.bury("dead", 1)
    directory.register(entry("old", pid=2))
    directory.register(entry("old", pid=2, state="draining"))
    brief.register(entry("mute"))
    wait_until(lambda: len(directory.read().shards) == 3, "its entry has expired")
    directory.claim("n1")
    directory.claim("n1")
    assert directory.read().ends == {
        "n1": {"stopped": 1, "died": 1, "silent": 1, "replaced": 1},
        "n2": {"stopped": 0, "died": 0, "silent": 0, "replaced": 0},
    }
    brief.register(entry("mute"))
    wait_until(lambda: len(directory.read().shards) == 3, "its entry has expired again")
    directory.register(entry("mute", pid=2))
    assert directory.read().ends["n1"]["silent"] == 2


def test_a_newcomer_gets_its_share_where_that_is_wanted(directory: Directory) -> None:
    """A shard without slots is given those whose first choice it is, and every other slot stays."""
    for id_ in ("s1", "s2"):
        directory.register(entry(id_))
    directory.claim("n1", settle_s=0)
    before = directory.read().slots["n1"]
    directory.register(entry("s3"))
    assert directory.claim("n1", settle_s=0) == 0
    directory.register(entry("s4", state="drained"))
    given = directory.claim("n1", settle_s=0, balance=True)
    after = directory.read().slots["n1"]
    mine = {slot for slot in range(SLOTS) if rendezvous(slot, ["s1", "s2", "s3"])[0] == "s3"}
    assert given == len(mine)
    assert {slot for slot in range(SLOTS) if before[slot] != after[slot]} == mine
    assert directory.claim("n1", settle_s=0, balance=True) == 0
    # An operator's word stands: it is no newcomer any more.
    directory.assign("n1", dict.fromkeys(range(SLOTS), "s1"))
    assert directory.claim("n1", settle_s=0, balance=True) == 0
    assert set(directory.read().slots["n1"].values()) == {"s1"}


def test_a_move_before_the_slots_are_given_out_stands(directory: Directory) -> None:
    """An operator who moves a slot while the shards have just come is not undone when the others are given out."""
    for id_ in ("s1", "s2"):
        directory.register(entry(id_))
    theirs = next(slot for slot in range(SLOTS) if rendezvous(slot, ["s1", "s2"])[0] == "s1")
    for owner in ("s1", "s2"):
        directory.assign("n1", {theirs: owner})
    for _ in range(3):
        directory.claim("n1", settle_s=0, balance=True)
    slots = directory.read().slots["n1"]
    assert len(slots) == SLOTS
    assert slots[theirs] == "s2"
    assert all(owner == rendezvous(slot, ["s1", "s2"])[0] for slot, owner in slots.items() if slot != theirs)


def test_what_operators_want_outlives_an_emptied_redis(directory: Directory, redis_server: RedisServer) -> None:
    """Drained shards and nodes are marked again by the shards that knew, and only where nothing was known."""
    directory.register(entry("s1"))
    directory.drain("s1")
    directory.drain_node("n2", 30)
    redis_server.empty()
    directory.register(entry("s1", state="drained", wish="shard"))
    directory.register(entry("s2", node="n2", state="draining", wish="30"))
    found = directory.read()
    assert found.drained == {"s1"}
    assert found.drained_nodes == {"n2": 30.0}
    directory.undrain("s1")
    directory.undrain_node("n2")
    directory.register(entry("s1", state="drained", wish="shard"))
    directory.register(entry("s2", node="n2", state="draining", wish="30"))
    assert not directory.read().drained
    assert not directory.read().drained_nodes


def test_a_shard_that_was_cut_off_brings_no_old_wish(directory: Directory, redis_server: RedisServer) -> None:
    """What operators took back while its entry had lapsed stays so: only a directory that was emptied is told."""
    directory.register(entry("s1"))
    directory.drain("s1")
    directory.drain_node("n2", 30)
    settled = "{} {}".format(*directory.read().epoch)
    wishes = (
        entry("s1", state="drained", wish="shard", settled=settled),
        entry("s2", node="n2", state="drained", wish="30", settled=settled),
    )
    directory.undrain("s1")
    directory.undrain_node("n2")
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete("headrace:shard:s1", "headrace:shard:s2")
    for wish in wishes:
        directory.register(wish)
    assert not directory.read().drained
    assert not directory.read().drained_nodes
    redis_server.empty()
    for wish in wishes:
        directory.register(wish)
    assert directory.read().drained == {"s1"}
    assert directory.read().drained_nodes == {"n2": 30.0}
