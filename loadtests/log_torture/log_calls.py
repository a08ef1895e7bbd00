"""The SQL with which the torture uses the log, and the notation of watermarks. All that depends on headrace's schema.

The parser of watermarks is written here once more, since the judge must not share a mistake with what it judges.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

Connection = psycopg.Connection[Any]

PUBLISH: Final = "select headrace.publish(%s, %s, %s, %s)"
PUBLISH_MANY: Final = "select headrace.publish_many(%s, %s, %s, %s)"
PUBLISH_NOW: Final = "select headrace.publish_now(%s, %s, %s, %s)"
PUBLISH_MANY_NOW: Final = "select headrace.publish_many_now(%s, %s, %s, %s)"
TAKE_OFFICE: Final = "select headrace.take_office()"
LEAVE_OFFICE: Final = "select headrace.leave_office()"
NOBODY_DEFERS: Final = "select headrace.nobody_defers()"
HEAD: Final = "headrace.head(%(stream)s)::text"
WATERMARK: Final = "headrace.watermark(%(stream)s)"
READ: Final = """
    select ordinal, head, jumps, unread, id, seq, type, data, visible_to
      from headrace.read_events(%s, %s, %s, %s, %s)"""
FORGET: Final = "select headrace.forget_turns()"
"""Removes what rounds have numbered and no longer need, as a shard does now and then."""
PRUNE: Final = "select headrace.prune(1000)"
KEEP: Final = "select headrace.set_retention('*', '1 day')"
"""A rule of retention that removes nothing while a run lasts."""

MAX_PENDING: Final = 500
"""With more pending events than this a watermark is the plain head."""
SAFE_COMMITS: Final = frozenset({"repeatable read", "serializable"})
"""Isolation levels in which no commit fails by the log's doing."""
REFUSES_NOW: Final = frozenset({"repeatable read", "serializable"})
"""Isolation levels in which an event cannot be numbered at once."""

AMBUSHES: Final = (
    ("headrace.tick", "access exclusive"),
    ("headrace.tick", "share"),
    ("headrace.turn", "access exclusive"),
    ("headrace.turn", "share"),
    ("headrace.round", "exclusive"),
    ("headrace.deployment", "access exclusive"),
    ("headrace.stream", "access exclusive"),
    ("headrace.stream", "exclusive"),
    ("headrace.stream", "share"),
    ("headrace.behind", "access exclusive"),
    ("headrace.behind", "share"),
    ("headrace.jump", "share"),
    ("headrace.event", "share"),
    ("headrace.payload", "access exclusive"),
)
"""Tables and locks of them, at which a round or a numbering at commit waits, each at another point of its way."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round says: how many turns it has numbered, and how many streams it has passed over."""

    numbered: int
    skipped: int


def do_round(connection: Connection) -> Round:
    """One round, as a sequencer does it. Raises psycopg.Error."""
    row = connection.execute("select transactions, skipped from headrace.sequence()").fetchone()
    assert row is not None
    return Round(max(row[0], 0), row[1])


@dataclass(frozen=True, slots=True)
class Watermark:
    """A head, and the sequence numbers of the events that are in the page and have no id yet."""

    head: int
    pending: frozenset[int] = frozenset()


def parse_watermark(text: str) -> Watermark:
    """Read `17`, or `17-81-3-1`: the head 17, and pending the events with the numbers 81, 84 and 85.

    Raises ValueError for any other text.
    """
    head, *steps = text.split("-")
    if not all(part.isascii() and part.isdigit() and (part == "0" or part[0] != "0") for part in (head, *steps)):
        raise ValueError(f"no watermark: {text!r}")
    pending, number = set(), 0
    for step in steps:
        if int(step) < 1:
            raise ValueError(f"a difference below 1: {text!r}")
        number += int(step)
        pending.add(number)
    if len(pending) > MAX_PENDING:
        raise ValueError(f"{len(pending)} pending events: {text[:60]!r}")
    return Watermark(int(head), frozenset(pending))


@dataclass(frozen=True, slots=True)
class LogEvent:
    """An event as the log gives it out."""

    id: int
    seq: int | None
    type: str | None
    data: str
    visible_to: str | None

    @property
    def token(self) -> int:
        """The token of the publication: the first word of the data. -1 if there is none."""
        word = self.data.split(":", 1)[0]
        return int(word) if word.isascii() and word.isdigit() else -1


@dataclass(slots=True)
class StreamRead:
    """What one read says of one stream. jumps are ranges of ids, first and last."""

    head: int
    jumps: list[tuple[int, int]]
    unread: bool = False
    events: list[LogEvent] = field(default_factory=list)


def read(
    connection: Connection,
    after: dict[str, int],
    *,
    max_events: int = 1000,
    max_bytes: int = 1 << 20,
    total_bytes: int = 4 << 20,
) -> dict[str, StreamRead]:
    """What the streams have after these ids, by the function that shards call. Raises psycopg.Error."""
    names = list(after)
    rows = connection.execute(READ, [names, list(after.values()), max_events, max_bytes, total_bytes]).fetchall()
    found: dict[str, StreamRead] = {}
    for ordinal, head, jumps, unread, id_, seq, type_, data, visible_to in rows:
        bounds = jumps or []
        jumped = list(zip(bounds[::2], bounds[1::2], strict=True))
        one = found.setdefault(names[ordinal - 1], StreamRead(head, jumped))
        one.unread = one.unread or bool(unread)
        if id_ is not None:
            one.events.append(LogEvent(id_, seq, type_, data, visible_to))
    return found
