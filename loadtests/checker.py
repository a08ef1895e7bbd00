"""Checks what a client received: per stream every event once, in order, under ids that rise by one.

Where a cursor names pending events, the ids of those that leave it are passed over, since the client has these events.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from headrace import cursor
from headrace.cursor import Position
from headrace.errors import CursorError
from headrace.node.sse_client import Message
from loadtests.payload import Payload

_MOST_MISSING = 10_000


@dataclass(frozen=True, slots=True)
class Problem:
    """A promise that was broken.

    kind is one of
        hole        an id is above the one that was due
        disorder    an event comes after a later one
        repeat      an event comes a second time
        gap, reset  the server says that it cannot give everything
        cursor      the server's cursor is not the last event that the client was sent
        content     the ids are right, but by its content an event is not the publisher's next
        phantom     an event of a transaction that was rolled back
        malformed   not as headrace writes it
    """

    kind: str
    detail: str


class Checker:
    """What one subscriber has received, over any number of connections.

    Owned by the subscriber. `cursor` is what to send as Last-Event-ID, "" at first; `positions` are the last ids,
    one per stream, None where nothing is known yet; `pending` counts the pending events that the cursor names of each
    stream; `checked` counts events. A hidden
    event counts as lost, so it is for streams on which every client sees every event.
    """

    def __init__(self, streams: Sequence[str]) -> None:
        self.streams = tuple(streams)
        self.cursor = ""
        self.positions: list[int | None] = [None] * len(streams)
        self.pending = [0] * len(streams)
        self.checked = 0
        self._missing: list[set[int]] = [set() for _ in streams]
        self._numbers: dict[tuple[int, str], int] = {}

    def __repr__(self) -> str:
        return f"<Checker at {self.cursor!r}, {self.checked} events of {len(self.streams)} streams>"

    def place(self, id_: str) -> list[Problem]:
        """Check the server's word on where the client is: an `id:` line without an event."""
        try:
            told = _positions(id_, len(self.streams))
        except CursorError as error:
            return [Problem("malformed", str(error))]
        problems = list(self._compare(told, range(len(told))))
        self.cursor = id_
        return problems

    def take(self, message: Message, payload: Payload | None = None) -> list[Problem]:
        """Check one message; payload is its data, decoded, if a load test published it."""
        if message.type.startswith("headrace:"):
            return self._sentinel(message)
        try:
            told = _positions(message.id, len(self.streams))
        except CursorError as error:
            return [Problem("malformed", str(error))]
        _, slash, number = message.id.partition("/")
        if bool(slash) != (len(self.streams) > 1):
            return [Problem("malformed", f"id {message.id!r} on {len(self.streams)} streams")]
        index = int(number or 0)
        self.checked += 1
        problems = list(self._step(index, told))
        if payload is not None:
            problems += self._content(index, payload)
        self.cursor = message.id
        return problems

    def behind(self, heads: Sequence[int]) -> list[Problem]:
        """What the client still lacks of the streams up to these heads."""
        return [
            Problem("hole", f"{stream!r}: nothing after {position}, though the log has {head}")
            for stream, position, head in zip(self.streams, self.positions, heads, strict=True)
            if position is None or position < head
        ]

    def _step(self, index: int, told: Sequence[Position]) -> Iterator[Problem]:
        stream, id_, last = self.streams[index], told[index].id, self.positions[index]
        missing = self._missing[index]
        if last is None or id_ == last + 1 + self._left_out(index, told[index]):
            self.positions[index] = id_
        elif id_ > last:
            yield Problem("hole", f"{stream!r}: {id_} after {last}")
            missing.update(range(last + 1, min(id_, last + 1 + _MOST_MISSING - len(missing))))
            self.positions[index] = id_
        elif id_ in missing:
            missing.discard(id_)
            yield Problem("disorder", f"{stream!r}: {id_} after {last}")
        else:
            yield Problem("repeat", f"{stream!r}: {id_} again, after {last}")
        self.pending[index] = len(told[index].pending or ())
        yield from self._compare(told, [other for other in range(len(told)) if other != index])

    def _compare(self, told: Sequence[Position], indexes: Iterable[int]) -> Iterator[Problem]:
        """Take the server's word on where the client is in these streams, and compare it with what was received."""
        for index in indexes:
            held, position = self.positions[index], told[index]
            if held is not None and held != position.id - self._left_out(index, position):
                yield Problem("cursor", f"{self.streams[index]!r}: the server says {position}, {held} was received")
            self.positions[index], self.pending[index] = position.id, len(position.pending or ())

    def _left_out(self, index: int, position: Position) -> int:
        """How many events the client was not sent on its way to a position, since they were pending."""
        return max(0, self.pending[index] - len(position.pending or ()))

    def _content(self, index: int, payload: Payload) -> Iterator[Problem]:
        if payload.number == 0:
            yield Problem("phantom", f"{self.streams[index]!r}: {payload}")
            return
        key = (index, payload.publisher)
        last = self._numbers.get(key)
        self._numbers[key] = payload.number
        if last is not None and payload.number != last + 1:
            yield Problem(
                "content",
                f"{self.streams[index]!r}: number {payload.number} of publisher {payload.publisher} after {last}",
            )

    def _sentinel(self, message: Message) -> list[Problem]:
        kind = message.type.removeprefix("headrace:")
        if kind not in ("gap", "reset"):
            return []
        try:
            value = json.loads(message.data)
            index = self.streams.index(value["stream"])
            self.positions[index] = int(value["missed_to"] if kind == "gap" else value["head"])
            self.pending[index] = 0
        except (ValueError, KeyError, TypeError) as error:
            return [Problem("malformed", f"{message!r}: {error!r}")]
        # After a gap or a reset, a publisher's next event need not have its next number.
        self._numbers = {key: number for key, number in self._numbers.items() if key[0] != index}
        return [Problem(kind, message.data)]


def _positions(id_: str, streams: int) -> tuple[Position, ...]:
    positions = [start for start in cursor.parse(id_, streams) if isinstance(start, Position)]
    if len(positions) < streams:
        raise CursorError(f"cursor {id_!r} has no ids")
    return tuple(positions)
