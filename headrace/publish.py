"""Publishing from Python: the SQL functions of the schema `headrace`, over the application's own connection.

Everything here runs in the transaction of the connection that is given, and never commits: an event is
delivered when that transaction commits, and vanishes if it does not. A connection is any of

    a DB-API connection (psycopg 3, psycopg2, …), or a cursor of one
    Django's `connection`
    SQLAlchemy's Connection, Session or scoped_session

None of these libraries is imported. What can be seen to be wrong is refused before anything is sent; errors
that the database raises are the driver's own. For asynchronous connections there is `headrace.asyncio`.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from headrace import calls
from headrace.statement import execute, fetch


def publish(connection: Any, stream: str, data: str, *, event: str = "message", visible_to: str | None = None) -> None:
    """Publish data to the stream when, and only if, the connection's transaction commits.

    The id is given out at commit, so neither an open transaction nor the order of publishing can hold up or
    deadlock others. In autocommit this call is the transaction.

    event is the type that browsers dispatch on: 1 to 512 bytes, without a line break, not beginning with
    `headrace:`. visible_to is the audience label that a connection must have to receive the event; None means
    everybody. data has at most 1 MiB of UTF-8, unless the schema's owner has called
    `headrace.set_max_payload_bytes`.

    Raises StreamNameError for a name without 1 to 512 bytes, EventError for the other arguments, UsageError
    for an asynchronous connection.
    """
    execute(connection, calls.publish(stream, data, event, visible_to))


def publish_now(
    connection: Any, stream: str, data: str, *, event: str = "message", visible_to: str | None = None
) -> int:
    """Publish like `publish`, but number at once and return the id.

    For a transaction of its own: until it ends, everybody else who publishes to the stream waits for it,
    and two transactions that call this for the same streams in different orders may deadlock. Raises like
    `publish`.
    """
    return int(fetch(connection, calls.publish_now(stream, data, event, visible_to)))


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
    call = calls.publish_many(streams, data, events, visible_to)
    if call is not None:
        execute(connection, call)


def head(connection: Any, stream: str) -> int:
    """The newest id of the stream, 0 if there is none: what a page rendered now hands to its subscription.

    Under READ COMMITTED the head MUST be read before the page's data. An event published between the two is
    then delivered though the page shows it already; in the other order it would be lost. In one REPEATABLE
    READ transaction the order does not matter, and the two meet exactly.
    """
    return int(fetch(connection, calls.head(stream)))


def set_retention(connection: Any, pattern: str, keep: timedelta | None, keep_count: int | None = None) -> None:
    """Keep the events of all streams whose name matches pattern for the time keep, when the transaction commits.

    In pattern `*` is any text and `?` any one character. Of several patterns that match a stream the longest
    applies; `*` itself is there from the start, with 5 minutes. With keep_count no more than that many of the
    newest events of each stream are kept. A keep of None removes the rule. For the owner of the schema only.

    Raises UsageError for arguments that are not allowed.
    """
    execute(connection, calls.set_retention(pattern, keep, keep_count))
