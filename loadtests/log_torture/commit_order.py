"""Does the order of ids follow the order of commits? Pure; nothing here does I/O.

A transaction T *follows* a transaction S if T began after S's COMMIT was answered, or if T got a chain that S had
before, so that S had committed by then. If T follows S, all events of S in a stream have lower ids than those of T.
That holds over any number of steps, also where the transactions between them have nothing in the stream. An event takes
its place at its turn: a chain that the transaction got only after this turn obliges nobody.

The transactions are walked through in the order of time. Each carries, for every stream, the highest id that any
transaction has which it follows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtests.log_torture.notes import TransactionNote

Ids = dict[str, tuple[int, int]]
"""By stream, an id and the number of the transaction that has it."""


@dataclass(frozen=True, slots=True)
class Link:
    """The transaction got this version of the chain in its step."""

    chain: str
    version: int
    transaction: int
    step: int


@dataclass(frozen=True, slots=True)
class Placed:
    """An event of a transaction, with its place."""

    stream: str
    id: int
    turn: int


def disorders(
    notes: Mapping[int, TransactionNote], placed: Mapping[int, Sequence[Placed]], links: Sequence[Link]
) -> Iterator[str]:
    """Say of each event that is out of order why. placed has the events of each committed transaction by its number."""
    followed = _followed(links)
    times: list[tuple[float, int, int]] = []
    for number in {*placed, *(link.transaction for link in links)}:
        note = notes[number]
        if note.commit_began is None:
            yield f"transaction {number} is visible though nobody has committed it"
            continue
        times += [(note.began, 0, number), (note.commit_began, 1, number)]
        if note.ended is not None:
            times.append((note.ended, 2, number))
    answered: Ids = {}
    before: dict[int, Ids] = {}
    after: dict[int, Ids] = {}
    for _, what, number in sorted(times):
        if what == 0:
            before[number] = answered
        elif what == 2:
            answered = _highest(answered, after[number])
        else:
            reached = before.pop(number)
            waiting = sorted(followed.get(number, ()))
            for event in sorted(placed.get(number, ()), key=lambda one: one.turn):
                while waiting and waiting[0][0] < event.turn:
                    reached = _highest(reached, after.get(waiting.pop(0)[1], {}))
                id_, who = reached.get(event.stream, (0, 0))
                if event.id < id_:
                    yield (
                        f"{event.stream}: event {event.id} of transaction {number} follows event {id_} of transaction "
                        f"{who}, and has the lower id"
                    )
            for _, predecessor in waiting:
                reached = _highest(reached, after.get(predecessor, {}))
            own: Ids = {}
            for event in placed.get(number, ()):
                own[event.stream] = max(own.get(event.stream, (0, 0)), (event.id, number))
            after[number] = _highest(reached, own)


def _followed(links: Sequence[Link]) -> dict[int, list[tuple[int, int]]]:
    """By transaction: in which steps it has got chains, and from which transactions."""
    found: dict[int, list[tuple[int, int]]] = {}
    last: Link | None = None
    for link in sorted(links, key=lambda one: (one.chain, one.version)):
        if last is not None and last.chain == link.chain and last.transaction != link.transaction:
            found.setdefault(link.transaction, []).append((link.step, last.transaction))
        last = link
    return found


def _highest(one: Ids, other: Ids) -> Ids:
    """For each stream the higher of two ids. Returns one of the two where that will do."""
    if all(one.get(stream, (0, 0)) >= value for stream, value in other.items()):
        return one
    return other | {stream: value for stream, value in one.items() if value > other.get(stream, (0, 0))}
