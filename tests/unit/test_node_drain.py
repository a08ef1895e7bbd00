"""Which connections are asked to go when, while a node is drained."""

from headrace.shard.connection import Connection
from headrace.shard.node_drain import NodeDrain
from headrace.tokens import Context


def connections(count: int) -> list[Connection]:
    return [Connection(number, Context(), f"r{number}", "p") for number in range(count)]


def test_clients_leave_evenly_over_the_time() -> None:
    """At each moment as many have left as their share of the time that has passed, in random order, each once."""
    all_ = connections(100)
    drain = NodeDrain(all_, 10.0, now=50.0)
    assert drain.due(50.0) == []
    first = drain.due(52.5)
    assert len(first) == 25
    assert first != all_[-25:]
    assert drain.due(52.5) == []
    rest = [*drain.due(55.0), *drain.due(60.0), *drain.due(99.0)]
    assert sorted(c.fd for c in [*first, *rest]) == list(range(100))


def test_those_that_have_gone_are_passed_over() -> None:
    """A connection that has ended by itself is not asked to go."""
    all_ = connections(4)
    drain = NodeDrain(all_, 1.0, now=0.0)
    all_[0].dead = True
    assert len(drain.due(1.0)) == 3


def test_no_time_lets_everybody_go_at_once() -> None:
    """Over no seconds all leave at the first look, and an empty drain lets nobody go."""
    assert len(NodeDrain(connections(3), 0.0, now=0.0).due(0.0)) == 3
    assert NodeDrain((), 0.0, now=0.0).due(5.0) == []
