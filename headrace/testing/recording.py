"""What a test has published, whether its transaction commits or not.

Theory. A transaction sees its own rows of headrace.payload at once, and those that a rolled-back savepoint has inserted
no more. So a block needs to know only which transactions were its own, and where it began:

    after each statement of the block    in a transaction: the transaction's id. In autocommit: the number of the
                                         session's last event (`currval`), whose row tells the transaction
    at the block's end                   all rows of these transactions that are visible, and were published after the
                                         number that the block has taken from the same sequence at its beginning

Rows that other connections publish belong to other transactions. The events of `publish_now` have no number, and are
found by the transaction that wrote the row, or, in autocommit, by the time: then those that other connections publish
with it at the same time are among them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from typing import Any, Final

from headrace.database_connection import is_of
from headrace.errors import SchemaError, UsageError
from headrace.event import DEFAULT_TYPE
from headrace.sql_execution import numbered
from headrace.testing.published_event import PublishedEvent
from headrace.testing.watched_connection import IDLE, IN_TRANSACTION, WatchedConnection

_READABLE: Final = """
    select case when n.oid is null then 'missing' when pg_catalog.pg_has_role(n.nspowner, 'USAGE') then 'readable'
            else 'closed' end
      from (values (1)) one left join pg_catalog.pg_namespace n on n.nspname = 'headrace'"""
_BEGIN: Final = """
    select pg_catalog.nextval(pg_catalog.pg_get_serial_sequence('headrace.payload', 'seq')::pg_catalog.regclass)::text,
            extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.text"""
_OWN: Final = "select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text"
_LAST: Final = """
    select p.xid::pg_catalog.text from headrace.payload p
     where p.seq = pg_catalog.currval(pg_catalog.pg_get_serial_sequence('headrace.payload', 'seq')::pg_catalog.regclass)
    """
_EVENTS: Final = """
    with written as (
        select e.stream_id, e.type, e.data, e.visible_to, e.created_at, e.id, e.xmin::text::bigint as low,
                pg_snapshot_xmax(pg_current_snapshot())::text::bigint as top
          from headrace.event e where e.seq is null and extract(epoch from e.created_at) >= %s::numeric
    ), whole as (
        select w.*, w.top + (w.low - (w.top & 4294967295) + 6442450944) %% 4294967296 - 2147483648 as xid
          from written w
    )
    select u.stream, coalesce(u.type, %s), u.data, u.visible_to
      from (
        select p.stream, p.type, p.data, p.visible_to, p.seq, null::timestamptz as created_at, null::bigint as id
          from headrace.payload p where p.xid = any (%s::text[]::xid8[]) and p.seq > %s
        union all
        select s.name, w.type, w.data, w.visible_to, null, w.created_at, w.id
          from whole w join headrace.stream s on s.stream_id = w.stream_id
         where %s or w.xid::text = any (%s::text[]) or pg_xact_status(w.xid::text::xid8) = 'in progress'
      ) u
     order by u.seq, u.created_at, u.id"""
_KEPT: Final = """
    select u.stream, coalesce(u.type, %s), u.data, u.visible_to
      from (
        select p.stream, p.type, p.data, p.visible_to, p.seq, null::timestamptz as created_at, null::bigint as id
          from headrace.payload p
        union all
        select s.name, e.type, e.data, e.visible_to, null, e.created_at, e.id
          from headrace.event e join headrace.stream s on s.stream_id = e.stream_id where e.seq is null
      ) u
     order by u.seq, u.created_at, u.id"""

_open: list["Recording"] = []


class Recording:
    """What has been published over one connection since a moment. Owned by the block `recorded` that makes it."""

    def __init__(self, connection: WatchedConnection) -> None:
        self.connection = connection
        self._own: set[str] = set()
        self._autocommitted = False
        with connection.raw() as raw:
            _require_readable(raw)
            ((after, since),) = _rows(raw, _BEGIN)
        self._after, self._since = str(after), str(since)

    def read(self) -> list[PublishedEvent]:
        """What has been published until now, in order; what was rolled back is not there."""
        self.note()
        own = _array(self._own)
        parameters = (self._since, DEFAULT_TYPE, own, self._after, "true" if self._autocommitted else "false", own)
        with self.connection.raw() as raw:
            return _published(raw, _EVENTS, parameters)

    def note(self) -> None:
        """Remember the transaction of the statement that was just executed."""
        if not self.connection.is_connected():
            return
        with self.connection.raw() as raw:
            if is_of("psycopg", raw) and raw.pgconn.pipeline_status:
                return  # what is in a pipeline is looked at before and after it
            status = raw.info.transaction_status
            if status == IN_TRANSACTION:
                self._own |= _texts(raw, _OWN)
            elif status == IDLE and raw.autocommit:
                self._autocommitted = True
                # A session that has published nothing yet has no last event; the error ends with its statement.
                with suppress(Exception):
                    self._own |= _texts(raw, _LAST)


@contextmanager
def recorded(connection: WatchedConnection) -> Iterator[Recording]:
    """Record what the block publishes over the connection.

    Raises UsageError for a connection whose role does not own the schema, and SchemaError without a schema.
    """
    recording = Recording(connection)
    _open.append(recording)
    try:
        with connection.watched(recording.note):
            yield recording
    finally:
        _open.remove(recording)


def innermost() -> list[PublishedEvent] | None:
    """What has been published in the innermost block that is open, whichever its connection; None without one."""
    return _open[-1].read() if _open else None


def so_far(connection: WatchedConnection) -> list[PublishedEvent]:
    """What has been published over the connection: in the innermost open block; else in the open transaction.

    Where no transaction is open, it is all that is kept in the database, whoever has published it.
    """
    for recording in reversed(_open):
        if recording.connection.key == connection.key:
            return recording.read()
    with connection.raw() as raw:
        in_transaction = raw.info.transaction_status == IN_TRANSACTION
        _require_readable(raw)
        if not in_transaction:
            return _published(raw, _KEPT, (DEFAULT_TYPE,))
        own = _array(_texts(raw, _OWN))
        return _published(raw, _EVENTS, ("0", DEFAULT_TYPE, own, "-1", "false", own))


def _require_readable(raw: Any) -> None:
    (found,) = _texts(raw, _READABLE)
    if found == "missing":
        raise SchemaError(
            "the test's database has no schema of headrace; run `headrace migrate`, or let Django migrate"
        )
    if found == "closed":
        raise UsageError(
            "the role of the test's connection may not read what it publishes; connect as the owner of the schema"
        )


def _published(raw: Any, sql: str, parameters: Sequence[str]) -> list[PublishedEvent]:
    return [
        PublishedEvent(str(stream), str(type_), str(data), label)
        for stream, type_, data, label in _rows(raw, sql, parameters)
    ]


def _texts(raw: Any, sql: str) -> set[str]:
    """The texts in the single column of a statement without parameters."""
    return {text for (text,) in _rows(raw, sql) if text is not None}


def _array(words: Iterable[str]) -> str:
    """An array of plain words, as PostgreSQL reads it."""
    return "{" + ",".join(sorted(words)) + "}"


def _rows(raw: Any, sql: str, parameters: Sequence[str] = ()) -> list[tuple[str | None, ...]]:
    """The rows of a statement whose parameters and columns are texts.

    psycopg's connection is used by libpq alone: that begins no transaction of the driver's, needs no lock that the
    driver holds, and works for asynchronous connections as well.
    """
    if is_of("psycopg2", raw):
        with closing(import_module("psycopg2.extensions").cursor(raw)) as cursor:
            cursor.execute(sql, tuple(parameters))
            return list(cursor.fetchall())
    statement = numbered(sql).replace("%%", "%").encode()
    result = raw.pgconn.exec_params(statement, [text.encode() for text in parameters])
    if result.error_message:
        raise import_module("psycopg.errors").error_from_result(result)
    return [
        tuple(
            None if (value := result.get_value(row, column)) is None else value.decode()
            for column in range(result.nfields)
        )
        for row in range(result.ntuples)
    ]
