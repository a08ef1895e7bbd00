"""Publishing from Python: the SQL functions of the schema `headrace`, over the application's own connection.

Everything here runs in the transaction of the connection that is given, and never commits: an event is
delivered when that transaction commits, and vanishes if it does not. A connection is any of

    a DB-API connection (psycopg 3, psycopg2, …), or a cursor of one
    Django's `connection`
    SQLAlchemy's Connection, Session or scoped_session

None of these libraries is imported. What can be seen to be wrong is refused before anything is sent, since
an error in SQL makes the application's whole transaction fail; errors that the database raises are the
driver's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Any

from headrace.errors import EventError, UsageError
from headrace.event import check_type
from headrace.stream import check_name

# The SQL functions refuse longer event types, audience labels and patterns.
MAX_WORD_BYTES = 512


def publish(connection: Any, stream: str, data: str, *, event: str = "message", visible_to: str | None = None) -> None:
    """Publish data to the stream when, and only if, the connection's transaction commits.

    The id is given out at commit, so neither an open transaction nor the order of publishing can hold up or
    deadlock others. In autocommit this call is the transaction.

    event is the type that browsers dispatch on: 1 to 512 bytes, without a line break, not beginning with
    `headrace:`. visible_to is the audience label that a connection must have to receive the event; None means
    everybody. data has at most 1 MiB of UTF-8, unless the database's `headrace.max_payload_bytes` says
    otherwise.

    Raises StreamNameError for a name without 1 to 512 bytes, EventError for the other arguments, UsageError
    for an asynchronous connection.
    """
    _check(stream, data, event, visible_to)
    _execute(connection, "select headrace.publish(%s, %s, %s, %s)", (stream, data, event, visible_to))


def publish_now(
    connection: Any, stream: str, data: str, *, event: str = "message", visible_to: str | None = None
) -> int:
    """Publish like `publish`, but number at once and return the id.

    For a transaction of its own: until it ends, everybody else who publishes to the stream waits for it,
    and two transactions that call this for the same streams in different orders may deadlock. Raises like
    `publish`.
    """
    _check(stream, data, event, visible_to)
    return int(
        _fetch(
            connection,
            "select headrace.publish_now(%s, %s, %s, %s) as id",
            (stream, data, event, visible_to),
        )
    )


def publish_many(
    connection: Any,
    streams: Sequence[str],
    data: Sequence[str],
    *,
    events: Sequence[str | None] | None = None,
    visible_to: Sequence[str | None] | None = None,
) -> None:
    """Publish one event per position of the sequences, in their order, in one round trip.

    All sequences have the same length; None in events means "message", in visible_to everybody. Empty ones
    publish nothing. Otherwise like `publish`, and raises like it.
    """
    for name, values in (
        ("streams", streams),
        ("data", data),
        ("events", events),
        ("visible_to", visible_to),
    ):
        if isinstance(values, str):
            raise EventError(f"{name} is one text; publish_many takes a sequence with one entry per event")
    events = [None] * len(streams) if events is None else events
    visible_to = [None] * len(streams) if visible_to is None else visible_to
    if not len(streams) == len(data) == len(events) == len(visible_to):
        raise EventError(
            f"the sequences must have the same length: {len(streams)} streams, {len(data)} data, "
            f"{len(events)} events, {len(visible_to)} visible_to"
        )
    if not streams:
        return
    for stream, payload, event, label in zip(streams, data, events, visible_to, strict=True):
        _check(stream, payload, "message" if event is None else event, label)
    _execute(
        connection,
        "select headrace.publish_many(%s::text[], %s::text[], %s::text[], %s::text[])",
        (list(streams), list(data), list(events), list(visible_to)),
    )


def head(connection: Any, stream: str) -> int:
    """The newest id of the stream, 0 if there is none: what a page rendered now hands to its subscription.

    Under READ COMMITTED the head MUST be read before the page's data. An event published between the two is
    then delivered though the page shows it already; in the other order it would be lost. In one REPEATABLE
    READ transaction the order does not matter, and the two meet exactly.
    """
    check_name(stream)
    return int(_fetch(connection, "select headrace.head(%s) as id", (stream,)))


def set_retention(connection: Any, pattern: str, keep: timedelta | None, keep_count: int | None = None) -> None:
    """Keep the events of all streams whose name matches pattern for the time keep, when the transaction commits.

    In pattern `*` is any text and `?` any one character. Of several patterns that match a stream the longest
    applies; `*` itself is there from the start, with 5 minutes. With keep_count no more than that many of the
    newest events of each stream are kept. A keep of None removes the rule. For the owner of the schema only.

    Raises UsageError for arguments that are not allowed.
    """
    _check_text("pattern", pattern, MAX_WORD_BYTES, UsageError)
    if keep is not None and not isinstance(keep, timedelta):
        raise UsageError(f"keep must be a timedelta or None, not {keep!r}")
    if keep is not None and keep <= timedelta(0):
        raise UsageError(f"events must be kept for more than nothing, not for {keep!r}")
    if keep_count is not None and (keep is None or keep_count < 1):
        raise UsageError(f"keep_count needs a keep and must be at least 1 event, not {keep_count!r}")
    interval = None if keep is None else f"{keep // timedelta(microseconds=1)} microseconds"
    _execute(
        connection,
        "select headrace.set_retention(%s, %s::interval, %s::bigint)",
        (pattern, interval, keep_count),
    )


def _check(stream: str, data: str, event: str, visible_to: str | None) -> None:
    check_name(stream)
    _check_text("data", data)
    check_type(event)
    _check_text("event", event, MAX_WORD_BYTES)
    if visible_to is not None:
        _check_text("visible_to", visible_to, MAX_WORD_BYTES)


def _check_text(name: str, value: object, most: int | None = None, error: type[UsageError] = EventError) -> None:
    """Refuse what PostgreSQL's text cannot hold, and if most is given, what has not 1 to so many bytes."""
    if not isinstance(value, str):
        raise error(f"{name} must be text, not {value!r}")
    if "\0" in value:
        raise error(f"{name} has a NUL; PostgreSQL cannot store it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise error(f"{name} has a lone surrogate; it must be valid Unicode") from None
    if most is not None and not 1 <= size <= most:
        raise error(f"{name} has {size} bytes; 1 to {most} are allowed")


def _execute(connection: Any, sql: str, parameters: tuple[Any, ...]) -> None:
    with _executed(connection, sql, parameters):
        pass


def _fetch(connection: Any, sql: str, parameters: tuple[Any, ...]) -> Any:
    """The single column, `id`, of the single row, whatever kind of row the connection makes."""
    with _executed(connection, sql, parameters) as result:
        row = result.fetchone()
    if isinstance(row, Mapping):
        return row["id"]
    if isinstance(row, Sequence):
        return row[0]
    return getattr(row, "id", row)


@contextmanager
def _executed(connection: Any, sql: str, parameters: tuple[Any, ...]) -> Iterator[Any]:
    """Execute on what the kinds of connections have in common, and yield what has `fetchone`."""
    # In a coroutine that nobody awaits the event would be lost without a word.
    if any(iscoroutinefunction(getattr(connection, name, None)) for name in ("execute", "commit")):
        raise UsageError(
            f"{connection!r} is asynchronous; await `select headrace.publish(…)` on it, or with SQLAlchemy "
            "`run_sync` this function"
        )
    if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy's Connection
        yield connection.exec_driver_sql(sql, parameters)
    elif callable(getattr(connection, "connection", None)):  # SQLAlchemy's Session and scoped_session
        yield connection.connection().exec_driver_sql(sql, parameters)
    elif hasattr(connection, "cursor"):  # DB-API, Django
        with closing(connection.cursor()) as cursor:
            cursor.execute(sql, parameters)
            yield cursor
    elif hasattr(connection, "execute"):  # a cursor
        result = connection.execute(sql, parameters)
        yield connection if result is None else result
    else:
        raise UsageError(f"{connection!r} is no database connection")
