"""Which shards a router tries: snapshots in, orders out."""

from collections import Counter
from dataclasses import replace

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.placement import rendezvous
from headrace.node.shard_entry import ShardEntry, ShardState
from headrace.router.client_placement import SUSPICION_S, Candidate, ClientPlacement


class Clock:
    """Time that moves only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(id_: str, state: ShardState = "up", node: str = "n1") -> ShardEntry:
    return ShardEntry(id_, node, 1, f"/run/{id_}.sock", state, 10, 0, 0, "0")


def snapshot(*entries: ShardEntry, generation: str = "g1", slots: dict[int, str] | None = None) -> DirectorySnapshot:
    return DirectorySnapshot((generation, 1), entries, {"n1": slots or {}})


def placement(clock: Clock | None = None, found: tuple[str, ...] = ()) -> ClientPlacement:
    candidates = [Candidate(id_, f"/found/{id_}.sock") for id_ in found]
    return ClientPlacement("n1", hold_s=3, found=lambda: candidates, clock=clock or Clock())


def ids(made: ClientPlacement, slot: int = 7) -> list[str]:
    return [candidate.id for candidate in made.order(slot)]


def test_the_owner_comes_first_then_rendezvous_order() -> None:
    """The slot's owner is tried first, the others in the order that everybody computes."""
    made = placement()
    expected = rendezvous(7, "abcd")
    owner = expected[2]
    made.learn(snapshot(*map(entry, "abcd"), slots={7: owner}))
    assert ids(made) == [owner, *(id_ for id_ in expected if id_ != owner)]
    assert ids(made, 8) == rendezvous(8, "abcd")
    assert made.order(7)[0].path == f"/run/{owner}.sock"


def test_only_shards_that_are_up_on_this_node_are_tried() -> None:
    """Draining, drained and stopping shards are passed over, the slot's owner too, and other nodes' shards."""
    made = placement()
    states = [entry("a", "draining"), entry("b", "drained"), entry("c", "stopping"), entry("d", node="n2")]
    made.learn(snapshot(*states, entry("e"), slots={7: "a"}))
    assert ids(made) == ["e"]


def test_an_owner_that_is_gone_is_passed_over() -> None:
    """A slot whose owner is no longer registered goes to its next choice."""
    made = placement()
    made.learn(snapshot(entry("a"), slots={7: "gone"}))
    assert ids(made) == ["a"]


def test_an_emptied_redis_takes_nothing_away() -> None:
    """An empty directory never means that there are no shards."""
    made = placement()
    made.learn(snapshot(entry("a"), entry("b")))
    for empty in (DirectorySnapshot(), snapshot(generation="g2"), snapshot(), snapshot(entry("z", node="n2"))):
        made.learn(empty)
        assert sorted(ids(made)) == ["a", "b"]


def test_an_emptied_redis_is_counted_once() -> None:
    """A new generation is one emptying, however often it is read; an empty Redis before it, and the first, are none."""
    made = placement()
    for generation in ("", "g1", "g1", "", "g2", "g2"):
        made.learn(snapshot(entry("a"), generation=generation))
    assert made.emptied == 1


def test_a_new_generation_waits_for_all_to_register_again() -> None:
    """The first shard to register in an emptied Redis does not hide the others that serve on."""
    made = placement()
    made.learn(snapshot(entry("a"), entry("b")))
    made.learn(snapshot(entry("a"), generation="g2"))
    assert sorted(ids(made)) == ["a", "b"]
    made.learn(snapshot(entry("a"), entry("b"), entry("c"), generation="g2"))
    assert sorted(ids(made)) == ["a", "b", "c"]


def test_a_new_generation_does_not_wait_for_ever() -> None:
    """A shard that does not register in the new generation is dropped after the expiry of entries."""
    clock = Clock()
    made = placement(clock)
    made.learn(snapshot(entry("a"), entry("b")))
    made.learn(snapshot(entry("a"), generation="g2"))
    clock.now += 2.9
    made.learn(snapshot(entry("a"), generation="g2"))
    assert sorted(ids(made)) == ["a", "b"]
    clock.now += 0.2
    made.learn(snapshot(entry("a"), generation="g2"))
    assert ids(made) == ["a"]


def test_within_a_generation_a_missing_shard_is_gone() -> None:
    """A shard that left or expired is no longer tried."""
    made = placement()
    made.learn(snapshot(entry("a"), entry("b")))
    made.learn(snapshot(entry("b")))
    assert ids(made) == ["b"]


def test_what_expired_while_redis_was_away_is_waited_for() -> None:
    """After an outage, or while nobody could write, a shard that is missing is believed dead when it stays missing."""
    clock = Clock()
    made = placement(clock)
    made.learn(snapshot(entry("a"), entry("b")))
    made.lose_directory("read-only")
    assert made.directory_condition == "read-only"
    clock.now += 60
    made.learn(snapshot(entry("b")))
    assert sorted(ids(made)) == ["a", "b"]
    clock.now += 2.9
    made.learn(snapshot(entry("b")))
    assert sorted(ids(made)) == ["a", "b"]
    clock.now += 0.2
    made.learn(snapshot(entry("b")))
    assert ids(made) == ["b"]


def test_without_a_directory_sockets_that_are_found_are_used() -> None:
    """A router that never saw the directory uses the hand-off sockets of the runtime directory."""
    made = placement(found=("a", "b"))
    assert ids(made) == rendezvous(7, "ab")
    made.learn(DirectorySnapshot())
    assert ids(made) == rendezvous(7, "ab")
    assert made.order(7)[0].path.startswith("/found/")


def test_during_an_outage_found_sockets_come_after_known_shards() -> None:
    """While Redis is away a shard that started since can be found; one that is known to drain stays excluded."""
    made = placement(found=("a", "b", "z"))
    made.learn(snapshot(entry("a"), entry("b", "draining")))
    assert ids(made) == ["a"]
    made.lose_directory()
    assert ids(made) == ["a", "z"]
    made.learn(snapshot(entry("a")))
    assert ids(made) == ["a"]


def test_a_silent_shard_is_tried_last_for_a_while() -> None:
    """A suspected shard stays a last resort until the suspicion ends."""
    clock = Clock()
    made = placement(clock)
    made.learn(snapshot(*map(entry, "abc")))
    first, *others = rendezvous(7, "abc")
    made.suspect(first)
    assert ids(made) == [*others, first]
    clock.now += SUSPICION_S
    assert ids(made) == [first, *others]


def test_the_repr_tells_the_state() -> None:
    """What a developer prints says how many shards are known and whether Redis is away."""
    made = placement()
    assert "away" in repr(made)
    made.learn(snapshot(replace(entry("a"), state="drained")))
    assert repr(made) == "<Placement node='n1' directory known 1 shards>"


def test_a_shard_with_too_many_is_passed_over() -> None:
    """A shard above its fair share by more than the factor comes last, and who goes to another is a guest there."""
    made = placement()
    first, second, third = rendezvous(7, "abc")
    loads = {first: 400, second: 100, third: 100}
    made.learn(snapshot(*(replace(entry(id_), connections=n, capacity=5000) for id_, n in loads.items())))
    assert [(c.id, c.guest) for c in made.order(7)] == [(second, False), (third, False), (first, False)]
    made.learn(
        snapshot(*(replace(entry(id_), connections=n, capacity=5000) for id_, n in loads.items()), slots={7: first})
    )
    assert [(c.id, c.guest) for c in made.order(7)] == [(second, True), (third, True), (first, False)]


def test_who_is_passed_over_for_its_silence_is_not_sent_the_client_later() -> None:
    """While the owner is suspected, whoever goes to another shard is a guest there."""
    clock = Clock()
    made = placement(clock)
    made.learn(snapshot(*map(entry, "ab"), slots={7: "a"}))
    assert [(c.id, c.guest) for c in made.order(7)] == [("a", False), ("b", False)]
    made.suspect("a")
    assert [(c.id, c.guest) for c in made.order(7)] == [("b", True), ("a", False)]
    clock.now += SUSPICION_S
    assert [(c.id, c.guest) for c in made.order(7)] == [("a", False), ("b", False)]


def test_a_full_shard_is_passed_over() -> None:
    """A shard that has as many clients as it takes, by the directory or since by our own count, comes last."""
    made = placement()
    made.learn(snapshot(*map(entry, "ab"), slots={7: "a"}))
    assert ids(made) == ["a", "b"]
    for _ in range(10):
        made.gave("a")
    assert ids(made) == ["b", "a"]
    assert made.connections == 10
    made.learn(snapshot(*map(entry, "ab"), slots={7: "a"}))
    assert ids(made) == ["a", "b"]


def test_a_hot_stream_goes_by_the_clients_address() -> None:
    """Clients of a hot stream are spread over all shards that are up; those of others in its slot are not."""
    made = placement()
    known = snapshot(*map(entry, "abc"), entry("d", "drained"), slots={7: "a"})
    made.learn(replace(known, hot={"n1": {"hot": 2000}, "n2": {"cold": 9}}))
    homes = Counter(made.order(7, "hot", f"127.0.0.1:{port}")[0].id for port in range(3000))
    assert set(homes) == set("abc")
    assert min(homes.values()) > 800
    assert {made.order(7, "cold", f"127.0.0.1:{port}")[0].id for port in range(50)} == {"a"}


def test_a_drained_node_takes_nobody() -> None:
    """While the node is drained there is nobody to try, without Redis too."""
    made = placement(found=("a",))
    made.learn(replace(snapshot(entry("a")), drained_nodes={"n1": 60.0}))
    assert made.drained
    made.lose_directory()
    assert ids(made) == []
