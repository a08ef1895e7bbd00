"""The schema's functions as a shard calls them: reading events, pruning, presence, revocations, and what is left over.

The statements are those functions of the schema that nobody but its owner may call.
"""

import logging
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader

from headrace.event import Frame
from headrace.node.session import block
from headrace.shard.messages import Page
from headrace.shard.postgres.presence_members import PresenceReport
from headrace.shard.postgres.unsendable import Unsendable
from headrace.stream import PRESENCE_PREFIX, presence_stream

logger = logging.getLogger(__name__)

READ_EVENTS: Final = """
    select ordinal, head, trimmed_to, begins_after, jumps, audiences, removed_to, unread,
           (select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end),
           id, seq, type, data, visible_to,
           (1000000 * date_part('epoch', statement_timestamp() - created_at))::bigint
      from headrace.read_log(%s::text[], %s::bigint[], %s, %s, %s)"""
"""The ninth column is the timeline of the server's write-ahead log, in hexadecimal digits; null during recovery."""

REPORT_PRESENCE: Final = """
    select known, reached
      from headrace.presence_report(%s, %s, %s, %s, %s, %s::text[], %s::text[], %s::text[], %s::text[])"""


READ_REVOCATIONS: Final = """
    select floor::text, revocation_id, user_name, stream, reason, issued_to_ms, age_ms
      from headrace.read_revocations(%s::text::xid8)"""
FIRST_FLOOR: Final = "0"
HELD_COMPANIONS: Final = """
    with free as materialized (
        select s.name from headrace.stream s where s.name = any (%s::text[]) for no key update skip locked)
    select s.name from headrace.stream s where s.name = any (%s::text[]) except select f.name from free f"""
LOCK_PATIENCE: Final = "set local lock_timeout = '3s'"
"""How long a presence report waits for locks of others, who wait for its streams meanwhile. Longer than LOCK_LIFE."""
LOCK_LIFE: Final = "set local idle_in_transaction_session_timeout = '2s'"
"""A process that stops or is cut off in the middle of a transaction loses its locks before others give up waiting."""


EventRows = list[tuple[Any, ...]]
"""The rows of READ_EVENTS about one stream."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was published.

    seq is its sequence number, None if it had its id from the beginning. visible_to is the audience that may see it,
    None for everybody.
    """

    id: int
    seq: int | None
    type: str
    data: str
    visible_to: str | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """One disconnect of a user, whose tokens issued up to issued_to_ms are refused, or of a stream, age_ms ago."""

    id: int
    user: str | None
    stream: str | None
    reason: str
    issued_to_ms: int
    age_ms: int


def read_pages(
    connection: psycopg.Connection[Any],
    streams: Sequence[str],
    after: Sequence[int | None],
    max_events: int,
    max_bytes: int,
    total_bytes: int,
    unsendable: Unsendable | None = None,
) -> tuple[tuple[Page, ...], list[float], str | None]:
    """One page per stream, all of one snapshot, in the order asked, the age of each event, and the timeline. Yields.

    after is the last id not wanted, None to learn of the head only. max_events and max_bytes bound each stream's
    page, of which the first event counts for nothing, and total_bytes all pages together, but for the first event of
    all: a page for which nothing was left is `unread`. An event's age is for how many seconds it had had its id when
    the server got the question. The timeline is that of the server's write-ahead log, None during recovery. unsendable
    is told of events that must be skipped. Raises psycopg.Error.
    """
    skips = unsendable or Unsendable()
    found = read_rows(connection, streams, after, max_events, max_bytes, total_bytes)
    pages = tuple(page(stream, start, rows, skips) for stream, start, rows in zip(streams, after, found, strict=True))
    ages = [row[-1] / 1e6 for rows in found for row in rows if row[-1] is not None]
    return pages, ages, timeline(found[0]) if found else None


def read_rows(
    connection: psycopg.Connection[Any],
    streams: Sequence[str],
    after: Sequence[int | None],
    max_events: int,
    max_bytes: int,
    total_bytes: int,
) -> list[EventRows]:
    """The rows of READ_EVENTS for each stream, in the order asked; at least one each. Otherwise as `read_pages`."""
    found: list[EventRows] = [[] for _ in streams]
    for row in _rows(connection, (list(streams), list(after), max_events, max_bytes, total_bytes)):
        found[row[0] - 1].append(row)
    return found


def timeline(rows: EventRows) -> str | None:
    """The timeline that the rows of a stream were read in, None during recovery."""
    found: str | None = rows[0][8]
    return found


def read_events(
    connection: psycopg.Connection[Any],
    stream: str,
    after: int,
    max_events: int,
    max_bytes: int,
    unsendable: Unsendable | None = None,
) -> tuple[Page, list[Event]]:
    """Where one stream stands and its events after an id, with their data as it was published. Yields.

    max_events and max_bytes bound them; there is at least one if there is any. unsendable is told of events that
    must be skipped. Raises psycopg.Error.
    """
    skips = unsendable or Unsendable()
    rows = _rows(connection, ([stream], [after], max_events, max_bytes, max_bytes))
    events = [
        Event(id_, seq, *skips.checked(stream, id_, type_, data, label))
        for *_, id_, seq, type_, data, label, _ in rows
        if id_ is not None
    ]
    return _standing(rows[0], []), events


def prune(connection: psycopg.Connection[Any], batch: int) -> int:
    """Delete one batch of events past their retention; how many, or -1 if another shard is at it. Yields."""
    row = connection.execute("select headrace.prune(%s)", (batch,)).fetchone()
    assert row is not None
    return int(row[0])


def report_presence(connection: psycopg.Connection[Any], shard_id: str, report: PresenceReport) -> dict[uuid.UUID, int]:
    """Tell who is here and who is gone; all sessions with their serials, without the own if it was not taken. Yields.

    The connection MUST begin transactions as READ COMMITTED. Raises psycopg.Error, of which LockNotAvailable means that
    nothing was told, since a transaction holds one of the streams or its companion for longer than LOCK_PATIENCE.
    """
    pairs = [[pair[i] for pair in some] for some in (report.here, report.gone) for i in (0, 1)]
    with block(connection, LOCK_LIFE, LOCK_PATIENCE):
        return _sessions(
            connection.execute(
                REPORT_PRESENCE, (report.session, shard_id, report.serial, report.after, report.opens, *pairs)
            )
        )


def held_rooms(connection: psycopg.Connection[Any], streams: Collection[str]) -> set[str]:
    """Those of the streams on whose companion a transaction has published that is still open. Yields.

    A companion that such a transaction has made is not seen. Raises psycopg.Error.
    """
    companions = [presence_stream(stream) for stream in streams]
    found = connection.execute(HELD_COMPANIONS, (companions, companions)).fetchall()
    return {name.removeprefix(PRESENCE_PREFIX) for (name,) in found}


def presence_sessions(connection: psycopg.Connection[Any]) -> dict[uuid.UUID, int]:
    """All sessions that hold members, with the serial of each one's last report. Yields. Raises psycopg.Error."""
    return _sessions(connection.execute("select known, reached from headrace.presence_sessions()"))


def expire_presence(connection: psycopg.Connection[Any], session: uuid.UUID, serial: int) -> int | None:
    """Give up a session that stands at that serial: how many have left, None if it no longer does. Yields.

    The connection MUST begin transactions as READ COMMITTED. Raises psycopg.Error.
    """
    with block(connection, LOCK_LIFE, LOCK_PATIENCE):
        row = connection.execute("select headrace.presence_expire(%s, %s)", (session, serial)).fetchone()
    assert row is not None
    return None if row[0] is None else int(row[0])


def _sessions(cursor: psycopg.Cursor[Any]) -> dict[uuid.UUID, int]:
    return {session: int(serial) for session, serial in cursor}


def read_revocations(connection: psycopg.Connection[Any], floor: str) -> tuple[str, list[Revocation]]:
    """The revocations from floor on, all of them from FIRST_FLOOR, and the floor of the next reading. Yields.

    Some of them may have been read before. A floor is good for the connection that it came over, which MUST be a
    lasting one: the statement is prepared on it, as it is repeated twice a second. Raises psycopg.Error.
    """
    rows = psycopg.Cursor(connection).execute(READ_REVOCATIONS, (floor,), prepare=True).fetchall()
    return rows[0][0], [Revocation(*row[1:]) for row in rows if row[1] is not None]


def forget_revocations(connection: psycopg.Connection[Any], token_life_s: float) -> None:
    """Remove the revocations that no token can be hit by, if tokens live for so long; 0 is for ever. Yields."""
    connection.execute("select headrace.forget_revocations(make_interval(secs => %s))", (token_life_s or None,))


def forget_publications(connection: psycopg.Connection[Any], keep_s: float) -> None:
    """Remove the idempotency keys that were used longer ago than keep_s. Yields."""
    connection.execute("select headrace.forget_publications(make_interval(secs => %s))", (keep_s,))


def note_used(connection: psycopg.Connection[Any], streams: Sequence[str], keep_s: float) -> None:
    """Note that these streams have subscribers, so that they are not forgotten. Yields. Raises psycopg.Error."""
    connection.execute("select headrace.note_used(%s::text[], make_interval(secs => %s))", (list(streams), keep_s))


def forget_streams(connection: psycopg.Connection[Any], keep_s: float, batch: int) -> tuple[int, bool]:
    """Forget streams that were idle for keep_s: how many, and whether the search goes on now. Yields.

    It is (0, False) if another shard is at it, or if no search is due. Raises psycopg.Error.
    """
    row = connection.execute(
        "select forgotten, more from headrace.forget_streams(make_interval(secs => %s), %s)", (keep_s, batch)
    ).fetchone()
    assert row is not None
    return int(row[0]), bool(row[1])


def estimate_streams(connection: psycopg.Connection[Any]) -> int:
    """About how many streams the log has. Yields. Raises psycopg.Error."""
    row = connection.execute("select headrace.estimate_streams()").fetchone()
    assert row is not None
    return int(row[0])


def number_left(connection: psycopg.Connection[Any]) -> int:
    """Number what committed transactions have left to others, and return how many turns that were. Yields.

    It is 0 if another session is doing a round. Raises psycopg.Error.
    """
    row = connection.execute("select transactions from headrace.sequence()").fetchone()
    assert row is not None
    return max(0, int(row[0]))


def _pairs(jumps: list[int] | None) -> tuple[tuple[int, int], ...]:
    return tuple(zip(jumps[::2], jumps[1::2], strict=True)) if jumps else ()


def _rows(connection: psycopg.Connection[Any], parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
    """The rows of a read; text that is not UTF-8 comes as bytes."""
    try:
        return connection.execute(READ_EVENTS, parameters).fetchall()
    except UnicodeDecodeError:
        with connection.cursor() as cursor:
            cursor.adapters.register_loader("text", _Lenient)
            return cursor.execute(READ_EVENTS, parameters).fetchall()


class _Lenient(Loader):
    """Text as str, or as bytes where it is none. Slower than psycopg's own."""

    def load(self, data: Buffer) -> str | bytes:
        try:
            return bytes(data).decode()
        except UnicodeDecodeError:
            return bytes(data)


def page(stream: str, after: int | None, rows: EventRows, skips: Unsendable) -> Page:
    """The page of a stream after an id that its rows of READ_EVENTS make. skips is told of events to be skipped."""
    frames = [
        skips.frame(stream, id_, seq, type_, data, visible_to)
        for *_, id_, seq, type_, data, visible_to, _ in rows
        if id_ is not None
    ]
    found = _standing(rows[0], frames)
    if after is None or frames or found.unread or found.foreign(after):
        return found
    if (last := max(after, found.trimmed_to)) < found.head:
        # Somebody has deleted events by hand: unless told of a gap, clients would wait for them for ever.
        logger.error("stream %r has a head of %d and no event after %d", stream, found.head, last)
        return Page(found.head, found.head, found.jumps, begins_after=found.begins_after)
    return found


def _standing(row: tuple[Any, ...], frames: list[Frame]) -> Page:
    """The page of these frames, with what each of its rows says of the stream."""
    _, head, trimmed_to, begins_after, jumps, audiences, removed_to, unread, *_ = row
    removed = tuple(zip(audiences, removed_to, strict=True)) if audiences else ()
    return Page(head, trimmed_to, _pairs(jumps), frames, removed, unread, begins_after)
