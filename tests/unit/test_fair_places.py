"""Few places, shared fairly."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headrace.shard.fair_places import FairPlaces, Place


def taken(places: FairPlaces, holder: str, gone: list[Place], patient: bool = False) -> Place:
    place = places.take(holder)
    if not patient:
        place.vacate = lambda: gone.append(place)
    return place


def test_who_holds_most_gives_way() -> None:
    """A newcomer gets the oldest place of the greediest; the greediest gets no more."""
    places, gone = FairPlaces(4), []  # type: tuple[FairPlaces, list[Place]]
    first, *_ = [taken(places, "greedy", gone) for _ in range(4)]
    assert not places.has_room("greedy")
    assert places.has_room("other")
    taken(places, "other", gone)
    assert gone == [first]
    places.free(first)
    assert len(places) == 4
    taken(places, "other", gone)
    assert [place.holder for place in gone] == ["greedy"] * 2
    assert not places.has_room("other")
    assert places.has_room("third")


def test_a_place_that_cannot_be_given_up_is_kept() -> None:
    """Where none of the greediest can be asked, there is no room."""
    places, gone = FairPlaces(2), []  # type: tuple[FairPlaces, list[Place]]
    taken(places, "greedy", gone, patient=True)
    last = taken(places, "greedy", gone, patient=True)
    assert not places.has_room("other")
    last.vacate = lambda: gone.append(last)
    assert places.has_room("other")
    taken(places, "other", gone)
    assert gone == [last]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.integers(1, 5))
def test_nobody_is_kept_out_by_one_who_has_more(steps: list[tuple[str, bool]], most: int) -> None:
    """There are never more places taken than there are, and a holder that is refused has about as many as any."""
    places, gone, held = FairPlaces(most), [], []  # type: tuple[FairPlaces, list[Place], list[Place]]
    for holder, leaves in steps:
        if leaves and held:
            places.free(held.pop(0))
        elif places.has_room(holder):
            held.append(taken(places, holder, gone))
            held = [place for place in held if place not in gone]
        else:
            counts = Counter(place.holder for place in held)
            assert counts[holder] + 1 >= max(counts.values())
        assert len(places) == len(held) <= most
