"""A small number of places, shared fairly: a holder of many places cannot keep out a holder of none.

While there are free places, each holder has as many as it asks for. When there is none, another holder gets the oldest
place of the holder that has most of them, unless it would then have as many itself.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Place:
    """One place, held from `take` to `free`.

    vacate() makes its holder give the place up soon; it is None as long as the place cannot be taken away. It MUST NOT
    switch greenlets.
    """

    holder: str
    vacate: Callable[[], None] | None = None


class FairPlaces:
    """Gives out at most most places, and counts those of each holder.

    Shared by the greenlets of all holders. Nothing here yields, so each call is atomic.
    """

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
        """Take a free place or, if there is none, one of another holder. There MUST be room."""
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
        """Give a place back. Does nothing for a place that was taken away."""
        if place in self._taken:
            del self._taken[place]
            self._held[place.holder] -= 1
            self._held += Counter()  # Adding nothing removes the holders with a count of 0.

    def _dispensable(self, holder: str) -> Place | None:
        most = max(self._held.values(), default=0)
        if most <= self._held[holder] + 1:
            return None
        return next(
            (place for place in self._taken if self._held[place.holder] == most and place.vacate is not None), None
        )
