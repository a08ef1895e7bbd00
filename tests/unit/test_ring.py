"""shard/ring.py"""

from headrace.event import Frame
from headrace.shard.ring import Ring, RingBudget

SIZE = len(Frame(1, "x"))


def frames(*ids: int) -> list[Frame]:
    return [Frame(i, "x") for i in ids]


def ids(found: list[Frame] | None) -> list[int] | None:
    return None if found is None else [frame.id for frame in found]


def test_after() -> None:
    """A ring gives what follows a position it covers, and says when it does not cover it."""
    ring = Ring(3, 1000)
    ring.append(frames(4, 5, 6))
    assert ids(ring.after(3, 1000)) == [4, 5, 6]
    assert ids(ring.after(5, 1000)) == [6]
    assert ids(ring.after(6, 1000)) == []
    assert ring.after(2, 1000) is None
    assert ring.after(7, 1000) is None


def test_inside_a_jump() -> None:
    """An id inside a recorded jump is not covered: only the log knows what it is."""
    ring = Ring(3, 1000)
    ring.append(frames(4, 100, 101))
    assert ids(ring.after(4, 1000)) == [100, 101]
    assert ring.after(50, 1000) is None


def test_bounded_answer() -> None:
    """At most so many bytes are given, but always one frame."""
    ring = Ring(0, 1000)
    ring.append(frames(1, 2, 3))
    assert ids(ring.after(0, 2 * SIZE)) == [1, 2]
    assert ids(ring.after(0, 1)) == [1]


def test_forgets_oldest() -> None:
    """Beyond its limit a ring forgets its oldest frames, and no longer covers what came before."""
    ring = Ring(0, 2 * SIZE)
    ring.append(frames(1, 2, 3))
    assert (ring.start, ring.size) == (1, 2 * SIZE)
    assert ring.after(0, 1000) is None
    assert ids(ring.after(1, 1000)) == [2, 3]


def test_no_memory() -> None:
    """A ring of no bytes covers exactly the newest id."""
    ring = Ring(0, 0)
    ring.append(frames(1, 2))
    assert ids(ring.after(2, 1000)) == []
    assert ring.after(1, 1000) is None


def test_prepend() -> None:
    """A page of the log that meets the ring extends it backwards, overlap or not."""
    ring = Ring(5, 1000)
    ring.append(frames(6))
    assert ring.prepend(3, frames(4, 5, 6))
    assert ids(ring.after(3, 1000)) == [4, 5, 6]
    assert not ring.prepend(1, frames(2)), "a hole"
    assert not ring.prepend(3, frames(4)), "nothing new"
    assert not ring.prepend(5, []), "nothing"


def test_prepend_within_limit() -> None:
    """Extending backwards never pushes out anything."""
    ring = Ring(2, 2 * SIZE)
    ring.append(frames(3))
    assert not ring.prepend(0, frames(1, 2))
    assert (ring.start, ring.size) == (2, SIZE)


def test_budget() -> None:
    """All rings together stay within one number of bytes; the longest silent gives first."""
    old, new = Ring(0, 1000), Ring(0, 1000)
    budget = RingBudget(3 * SIZE)
    old.append(frames(1, 2))
    budget.account(old)
    new.append(frames(1, 2))
    budget.account(new)
    assert (old.start, new.start, budget.size) == (1, 0, 3 * SIZE)
    new.append(frames(3, 4, 5))
    budget.account(new)
    assert (old.size, new.start, budget.size) == (0, 2, 3 * SIZE)
    budget.forget(new)
    assert budget.size == 0
