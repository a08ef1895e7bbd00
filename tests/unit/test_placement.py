"""Rendezvous hashing."""

from collections import Counter

from headrace.node.placement import BUCKETS, bucket, overloaded, rendezvous, spread
from headrace.stream import SLOTS

IDS = [f"n1-{number}" for number in range(8)]


def test_the_order_is_the_same_for_everybody() -> None:
    """The order depends on the slot and the set of shards alone, and stays the same from release to release."""
    assert rendezvous(17, IDS) == rendezvous(17, [*reversed(IDS), IDS[0]])
    assert rendezvous(0, ["a", "b", "c", "d"]) == ["b", "a", "c", "d"]
    assert rendezvous(1, ["a", "b", "c", "d"]) == ["b", "a", "d", "c"]


def test_every_shard_is_in_the_order() -> None:
    """An order names each shard once, and no shards give an empty one."""
    assert sorted(rendezvous(5, IDS)) == IDS
    assert rendezvous(5, []) == []


def test_a_shard_that_goes_takes_only_its_own_slots_along() -> None:
    """Without one shard every other slot keeps its first choice, and its slots spread over all the others."""
    gone, *left = IDS
    before = {slot: rendezvous(slot, IDS)[0] for slot in range(SLOTS)}
    after = {slot: rendezvous(slot, left)[0] for slot in range(SLOTS)}
    moved = [slot for slot in range(SLOTS) if before[slot] != after[slot]]
    assert {before[slot] for slot in moved} == {gone}
    assert {after[slot] for slot in moved} == set(left)


def test_slots_spread_evenly() -> None:
    """No shard of eight is first choice for much more or less than an eighth of the slots."""
    counts = Counter(rendezvous(slot, IDS)[0] for slot in range(SLOTS))
    assert min(counts.values()) > 90
    assert max(counts.values()) < 170


def test_a_hot_stream_is_spread_evenly() -> None:
    """Every shard takes the same share of the buckets, and most keep theirs when a shard goes."""
    before, after = spread("abcd"), spread("abc")
    assert set(Counter(before).values()) == {BUCKETS // 4}
    assert max(Counter(after).values()) - min(Counter(after).values()) <= 2
    kept = sum(then == now for then, now in zip(before, after, strict=True))
    assert kept > BUCKETS // 2
    peers = Counter(before[bucket(f"127.0.0.1:{port}")] for port in range(40_000, 42_000))
    assert all(400 <= count <= 600 for count in peers.values())


def test_who_has_too_many() -> None:
    """A shard is above its fair share only by the factor and by more than a few, and never are all."""
    assert overloaded({}, 1.5) == ()
    assert overloaded({"a": 30, "b": 0}, 1.5) == set()
    assert overloaded({"a": 600, "b": 200, "c": 300}, 1.5) == {"a"}
    assert overloaded({"a": 500, "b": 300, "c": 300}, 1.5) == set()
    assert overloaded({"a": 5000, "b": 5000}, 1.05) == set()
