"""Places of which there are few, shared fairly: who holds many cannot keep out who holds none.

While there is room everybody has as many as they like. When there is none, a newcomer gets the oldest place of the
holder who has most of them, unless that would only turn the tables.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Place:
    """One place, held from `take` to `free`.

    vacate() has its holder give it up soon; None as long as that cannot be asked for. It MUST NOT switch greenlets.
    """

    holder: str
    vacate: Callable[[], None] | None = None


class FairPlaces:
    """Counts who holds how many of at most so many places. Nothing here yields, so each call is atomic."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[Place, None] = {}  # in the order of taking
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    def has_room(self, holder: str) -> bool:
        """Whether the holder can take one more."""
        return len(self._taken) < self._most or self._dispensable(holder) is not None

    def take(self, holder: str) -> Place:
        """Take a place, another's if there is no free one. There MUST be room."""
        if len(self._taken) >= self._most:
            dispensable = self._dispensable(holder)
            assert dispensable is not None and dispensable.vacate is not None
            self.free(dispensable)
            dispensable.vacate()
        place = Place(holder)
        self._taken[place] = None
        self._held[holder] += 1
        return place

    def free(self, place: Place) -> None:
        """Give a place back; one that was taken away is back already."""
        if place in self._taken:
            del self._taken[place]
            self._held[place.holder] -= 1
            self._held += Counter()  # without those who hold none

    def _dispensable(self, holder: str) -> Place | None:
        most = max(self._held.values(), default=0)
        if most <= self._held[holder] + 1:
            return None
        return next(
            (place for place in self._taken if self._held[place.holder] == most and place.vacate is not None), None
        )
