"""Rendezvous hashing."""

from collections import Counter

from headrace.placement import rendezvous
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
