"""The log of a stream as the judge knows it: every event that was ever committed, and what was removed."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Committed:
    """An event of the log, with its data as it must arrive, and when its transaction's COMMIT began and returned.

    nonce names the transaction.
    """

    id: int
    data: str
    type: str = "message"
    label: str | None = None
    began: float | None = None
    ended: float | None = None
    nonce: int = 0


class StreamLog:
    """All events that were ever committed to one stream, and up to where retention has removed them."""

    def __init__(self, events: Iterable[Committed], trimmed_to: int = 0) -> None:
        self.events = {event.id: event for event in events}
        self.trimmed_to = trimmed_to
        self._visible: dict[tuple[bool, ...], list[int]] = {}
        self._told: list[tuple[float, int]] = []
        self._heads: list[int] = []
        self._labels = sorted({event.label for event in self.events.values() if event.label is not None})

    def visible(self, sees: Callable[[str], bool]) -> list[int]:
        """The ids of the events that a client sees, in order. sees says of each label whether the client sees it."""
        key = tuple(map(sees, self._labels))
        if key not in self._visible:
            shown = {label for label, seen in zip(self._labels, key, strict=True) if seen} | {None}
            self._visible[key] = sorted(id_ for id_, event in self.events.items() if event.label in shown)
        return self._visible[key]

    def told(self, id_: int, at: float) -> None:
        """Note that a client had been told this id at that time: the event had its id by then."""
        self._told.append((at, id_))
        self._heads = []

    def head_before(self, at: float) -> int:
        """The highest id that any client had been told before that time; 0 if there was none."""
        if not self._heads:
            self._told.sort()
            self._heads = list(accumulate((id_ for _, id_ in self._told), max))
        told = bisect_left(self._told, (at, 0))
        return self._heads[told - 1] if told else 0
