"""Cursors: where a client is in each stream of its connection, as text in URLs, headers and `id:` lines.

17          one stream: the last id seen
17.4.9      several streams: one id each, in the token's order
17.4.9/1    the same in an `id:` line: the event came from stream 1; ignored on input
now, all    each stream's head at connect; each stream's oldest kept event
"""

from collections.abc import Sequence
from typing import Final, Literal

from headrace.errors import CursorError

Start = int | Literal["now", "all"]
"""Where one stream begins: after an id, at its head, or at its oldest kept event."""

_WORDS: Final[tuple[Literal["now", "all"], ...]] = ("now", "all")
MAX_ID: Final = 2**63 - 1


def parse(text: str | None, streams: int) -> tuple[Start, ...]:
    """Read a cursor for a connection of so many streams; None and blank text mean `now`.

    Returns one start per stream. Raises CursorError, with the text and what is wrong, for anything that is
    not `now`, `all`, or one id from 0 to 2**63-1 per stream joined with dots.
    """
    text = (text or "now").strip() or "now"
    for word in _WORDS:
        if text == word:
            return (word,) * streams
    ids, slash, index = text.partition("/")
    if slash and not (_is_number(index) and int(index) < streams):
        raise CursorError(f"cursor {_short(text)} ends in a stream's index that this connection does not have")
    parts = ids.split(".")
    if len(parts) != streams:
        raise CursorError(
            f"cursor {_short(text)} has {len(parts)} ids for {streams} streams; send back the last id received"
        )
    return tuple(_id(part, text) for part in parts)


def render(positions: Sequence[int]) -> str:
    """The cursor as text: the ids in the token's order, joined with dots."""
    return ".".join(map(str, positions))


def _id(part: str, text: str) -> int:
    if not _is_number(part):
        raise CursorError(f"cursor {_short(text)} is not a number; send `now`, `all` or the last id received")
    value = int(part)
    if value > MAX_ID:
        raise CursorError(f"cursor {_short(text)} is above {MAX_ID}; send back the last id received")
    return value


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 19


def _short(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:64] + "…")
