"""Cursors: where a client is in each stream of its connection, as text in URLs, headers and `id:` lines.

17                  one stream: the last id seen
17-81-3-1           the same, and the client has the pending events with the sequence numbers 81, 84 and 85
17-81-3.4.9-7       several streams: a part for each, in the token's order
17-81-3.4.9-7/1     the same in an `id:` line: the event came from stream 1; ignored on input
now, all            each stream's head at connect; each stream's oldest kept event

A pending event is one that was committed, but had no id yet, when the client's page was made: the page shows it. The
first sequence number of a part is written as it is, each further one as its difference to the one before it. When a
pending event gets its id, the client is not sent it, and its number leaves the cursor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from headrace.errors import CursorError

_WORDS: Final[tuple[Literal["now", "all"], ...]] = ("now", "all")
MAX_ID: Final = 2**63 - 1
"""The greatest id, and the greatest sequence number."""
MAX_PENDING: Final = 500
"""The most pending events that a part of a cursor names."""
MAX_CHARS: Final = 7000
"""The most characters of a cursor that `join` makes: proxies take 8 KiB for a header, or for the path of a URL."""


class Pending:
    """The sequence numbers of the pending events that a client has already; at least one. Immutable."""

    __slots__ = ("_text", "seqs")

    def __init__(self, seqs: Iterable[int]) -> None:
        self.seqs = frozenset(seqs)
        self._text = ""

    def __contains__(self, seq: int | None) -> bool:
        return seq in self.seqs

    def __len__(self) -> int:
        return len(self.seqs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pending) and other.seqs == self.seqs

    def __hash__(self) -> int:
        return hash(self.seqs)

    def __repr__(self) -> str:
        return f"<Pending {self}>"

    def __str__(self) -> str:
        """As it stands in a cursor behind the id: `-81-3-1`. Made when it is first asked for."""
        if not self._text:
            seqs = sorted(self.seqs)
            self._text = "".join([f"-{seq - before}" for before, seq in zip([0, *seqs], seqs, strict=False)])
        return self._text

    def without(self, seq: int) -> "Pending | None":
        """What is left when the event with this sequence number has got its id; None if nothing is."""
        rest = self.seqs - {seq}
        return Pending(rest) if rest else None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a client is in one stream: it has every event up to id, and the pending ones."""

    id: int
    pending: Pending | None = None

    def __str__(self) -> str:
        return str(self.id) if self.pending is None else f"{self.id}{self.pending}"


Start = Position | Literal["now", "all"]
"""Where one stream begins: after a position, at its head, or at its oldest kept event."""


def parse(text: str | None, streams: int) -> tuple[Start, ...]:
    """Read a cursor for a connection of so many streams; None and blank text mean `now`.

    Returns one start per stream. Raises CursorError, with the text and what is wrong, for anything that is not `now`,
    `all`, or one part per stream joined with dots. A part is an id from 0 to 2**63-1 and, behind dashes, at most
    MAX_PENDING sequence numbers of pending events.
    """
    text = (text or "now").strip() or "now"
    for word in _WORDS:
        if text == word:
            return (word,) * streams
    joined, slash, index = text.partition("/")
    if slash and not (_is_number(index) and int(index) < streams):
        raise CursorError(f"cursor {_short(text)} ends in a stream's index that this connection does not have")
    parts = joined.split(".")
    if len(parts) != streams:
        raise CursorError(
            f"cursor {_short(text)} has {len(parts)} ids for {streams} streams; send back the last id received"
        )
    return tuple(_position(part, text) for part in parts)


def parse_part(text: str) -> Position:
    """Read the part of one stream. Raises CursorError for any other text, `now` and `all` among them."""
    return _position(text, text)


def render(positions: Iterable[int | Position]) -> str:
    """The cursor as text: a part for each stream in the token's order, joined by dots. An int is an id alone."""
    return ".".join(map(str, positions))


def join(parts: Sequence[str]) -> str:
    """One cursor of the parts of several streams, in the token's order, such as their watermarks.

    Where it would have more than MAX_CHARS characters, the parts that name most lose their pending events, which the
    client is then sent though it has them. Raises CursorError for text that is no part.
    """
    positions = [parse_part(part) for part in parts]
    while len(text := render(positions)) > MAX_CHARS and any(position.pending for position in positions):
        longest = max(range(len(positions)), key=lambda index: len(positions[index].pending or ()))
        positions[longest] = Position(positions[longest].id)
    return text


def _position(part: str, text: str) -> Position:
    first, *steps = part.split("-")
    if not _is_number(first):
        raise CursorError(f"cursor {_short(text)} is not a number; send `now`, `all` or the last id received")
    if int(first) > MAX_ID:
        raise CursorError(f"cursor {_short(text)} is above {MAX_ID}; send back the last id received")
    return Position(int(first), Pending(_seqs(steps, text)) if steps else None)


def _seqs(steps: Sequence[str], text: str) -> list[int]:
    """The sequence numbers of which the first one and then the differences are given."""
    if len(steps) > MAX_PENDING:
        raise CursorError(
            f"cursor {_short(text)} names more than {MAX_PENDING} pending events; send back the last id received"
        )
    found = []
    seq = 0
    for step in steps:
        if not _is_number(step) or not int(step):
            raise CursorError(
                f"cursor {_short(text)} has {_short(step)} where the number of a pending event should be; "
                "send back the last id received"
            )
        seq += int(step)
        found.append(seq)
    if seq > MAX_ID:
        raise CursorError(f"cursor {_short(text)} names a pending event above {MAX_ID}; send back the last id received")
    return found


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 19


def _short(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "…")
