"""Does the judge notice? Schemas that are broken on purpose, each by one replacement in the definition of a function.

Each break is a mistake that somebody could make. A break that no violation tells of is a hole in the torture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg


@dataclass(frozen=True, slots=True)
class Break:
    """In the definition of a function, with these arguments' types, text stands once and is replaced."""

    function: str
    text: str
    instead: str


BREAKS: Final[dict[str, Sequence[Break]]] = {
    # Events come in the order in which they were published, not in that of the commits.
    "order-of-calls": (
        Break("headrace.sequence()", "order by e.turn, e.seq", "order by e.seq"),
        Break("headrace.number_waiting(text[],integer[],bigint[])", "order by d.turn, p.seq", "order by p.seq"),
    ),
    # A page's watermark does not name what the page shows without an id.
    "set-left-out": (Break("headrace.watermark(text)", "if seqs is null or", "if true or seqs is null or"),),
    # A page's watermark is that of the last commits, not of the page's snapshot.
    "watermark-of-now": (Break("headrace.watermark(text)", " STABLE ", " VOLATILE "),),
    # A round does not come back to the streams that it has passed over.
    "passed-over-forgotten": (Break("headrace.sequence()", "if skipped > 0 then", "if skipped > 1000 then"),),
    # A round comes back to the streams that it has passed over from its own snapshot on.
    "passed-over-from-now": (
        Break("headrace.sequence()", "select w.stream, before from", "select w.stream, sequence.seen from"),
    ),
    # A round forgets that transactions were open in the last round.
    "open-forgotten": (
        Break("headrace.sequence()", "were_open := array(select pg_snapshot_xip(before));", "were_open := '{}';"),
    ),
    # A transaction that numbers at commit numbers its own events alone.
    "no-look-at-commit": (
        Break(
            "headrace.number_own(xid8,bigint)",
            "befores := headrace.number_waiting(names, stream_ids, befores);",
            "",
        ),
    ),
    # A numbering at once numbers its own event alone.
    "no-look-at-once": (
        Break(
            "headrace.publish_now(text,text,text,text)",
            "(headrace.number_waiting(array[stream], array[taken.stream_id], array[taken.before]))[1]",
            "taken.before",
        ),
    ),
    # A transaction with an old snapshot numbers itself.
    "old-snapshot-numbers": (
        Break("headrace.take_turn()", "elsif in_office or isolation = 'repeatable read' then", "elsif in_office then"),
    ),
    # The first turn of a transaction counts, not the last.
    "first-turn-counts": (
        Break(
            "headrace.leave_turns(xid8,bigint)",
            "do update set turn = default, alone = false",
            "do update set alone = false",
        ),
    ),
    # A transaction that left turns before numbers the rest of its events itself.
    "own-turns-overlooked": (
        Break(
            "headrace.number_own(xid8,bigint)",
            "if exists (select from headrace.turn t",
            "if false and exists (select from headrace.turn t",
        ),
    ),
    # Numbering leaves the turns behind, for a round to number them again.
    "turns-stay": (
        Break(
            "headrace.number_waiting(text[],integer[],bigint[])",
            "where t.stream = d.stream and t.xid = d.xid",
            "where t.stream = d.stream and t.xid = d.xid and d.turn % 5 > 0",
        ),
    ),
    # Turns are removed before they are numbered in streams that rounds have passed over.
    "forgotten-too-early": (
        Break(
            "headrace.forget_turns(xid8)",
            "(select min(pg_snapshot_xmin(b.seen)) from headrace.behind b)",
            "null",
        ),
    ),
    # Rounds do not lock the streams that they number.
    "round-without-locks": (
        Break(
            "headrace.sequence()",
            "where s.name = any (wanted) for no key update skip locked",
            "where s.name = any (wanted)",
        ),
    ),
    # A round notifies nobody of the head of a stream in which it has numbered one event.
    "one-event-untold": (
        Break("headrace.sequence()", "h.stream)) from heads h", "h.stream)) from heads h where h.count > 1"),
    ),
    # A commit is not made durable, or a round is not.
    "publish-not-durable": (Break("headrace.take_turn()", "= 'off' then", "= 'never' then"),),
    "numbering-not-durable": (Break("headrace.begin_numbering()", "= 'off' then", "= 'never' then"),),
}
"""By name, what is broken."""


def apply(url: str, name: str) -> None:
    """Break the schema of a database. Raises LookupError if a text is not there exactly once."""
    with psycopg.connect(url) as connection:
        for one in BREAKS[name]:
            row = connection.execute("select pg_get_functiondef(%s::regprocedure)", [one.function]).fetchone()
            assert row is not None
            if (count := row[0].count(one.text)) != 1:
                raise LookupError(
                    f"{one.function} has {one.text!r} {count} times, not once; correct "
                    "loadtests/log_torture/broken_schemas.py"
                )
            connection.execute(row[0].replace(one.text, one.instead).encode())
