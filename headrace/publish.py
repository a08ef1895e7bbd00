"""Publishing from Python: the SQL functions of the schema `headrace`, over the application's own connection.

Every function runs in the transaction of the connection that it is given, and never commits: an event is delivered when
that transaction commits, and vanishes when it rolls back. A connection is any of

    a DB-API connection (psycopg 3, psycopg2, …), or a cursor of one
    Django's `connection`
    SQLAlchemy's Connection, Session or scoped_session

None of these libraries is imported. Arguments that are not allowed are refused before anything is sent, so that they do
not make the transaction fail; errors that the database raises are the driver's own. For asynchronous connections there
is `headrace.asyncio`.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from headrace import sql_calls
from headrace.event_data import Data
from headrace.sql_execution import execute, fetch


def publish(connection: Any, stream: str, data: Data, *, event: str = "message", visible_to: str | None = None) -> None:
    """Publish one event, with data, to the stream when, and only if, the connection's transaction commits.

    Publishing is an insert: an open transaction holds up no other publisher, and transactions that publish to the same
    streams in different orders cannot deadlock. The event gets its id when the transaction commits, or a few
    milliseconds later from a shard that numbers for all. In autocommit this call is a transaction of its own.

    stream is a name of 1 to 512 bytes of UTF-8. data is text, or a dict or a list, which is published as JSON: dates,
    times, Decimal and UUID as Django's DjangoJSONEncoder writes them. It has at most 1 MiB of UTF-8, unless the
    schema's owner has called the SQL function `headrace.set_max_payload_bytes`. event is the type that browsers
    dispatch on: 1 to 512 bytes, without a line break, not beginning with `headrace:`. visible_to is the label of the
    audience that sees the event; None means everybody.

    Raises StreamNameError for a name that cannot be a stream, EventError for another argument that is not allowed (for
    a value that JSON cannot express with its place, such as `data['price']`), UsageError for an object that is no
    connection, or an asynchronous one. Data that is too long is the driver's error, with SQLSTATE 22023.
    """
    execute(connection, sql_calls.publish(stream, data, event, visible_to))


def publish_now(
    connection: Any, stream: str, data: Data, *, event: str = "message", visible_to: str | None = None
) -> int:
    """Publish one event like `publish`, but number it at once and return its id.

    Call it in a transaction of its own. Until that transaction ends, it holds the stream: other transactions that
    number in it by themselves wait, and two transactions that call this function for the same streams in different
    orders may deadlock. The transaction MUST be READ COMMITTED, or the database raises SQLSTATE 25001. Raises like
    `publish`.
    """
    return int(fetch(connection, sql_calls.publish_now(stream, data, event, visible_to)))


def publish_many(
    connection: Any,
    streams: Sequence[str],
    data: Sequence[Data],
    *,
    events: Sequence[str | None] | None = None,
    visible_to: Sequence[str | None] | None = None,
) -> None:
    """Publish one event for each position of the sequences, in their order, in one round trip to the database.

    All sequences have the same length. streams and data are as in `publish`. events are the types and visible_to the
    labels; None, as a whole or at a position, means type `message`, and everybody. Empty sequences publish nothing. The
    events get their ids when those of `publish` do. Raises like `publish`, and EventError for different lengths.
    """
    call = sql_calls.publish_many(streams, data, events, visible_to)
    if call is not None:
        execute(connection, call)


def head(connection: Any, stream: str) -> int:
    """Return the head of the stream: its last id; without such a stream, the id above which it would begin.

    A client that begins at the head loses nothing, and may be sent events that the page shows already: those that are
    committed and get their ids a moment later. A page is rendered with `watermark` instead. Raises StreamNameError for
    a name that cannot be a stream, and UsageError like `publish`.
    """
    return int(fetch(connection, sql_calls.head(stream)))


def watermark(connection: Any, stream: str) -> str:
    """Return the watermark of the stream: the cursor at which the client of a page begins that is rendered now.

    It is the head as text, such as `17`. While events are pending, which means that they are committed and have no id
    yet, their sequence numbers follow: `17-81-3` is the head 17 and the pending events 81 and 84. A page shows pending
    events, so its client is not sent them. Give the watermark to `sign` as since; several are joined with dots, in the
    order of the streams.

    Under READ COMMITTED the watermark MUST be read before the page's data: an event that commits between the two is
    then delivered though the page shows it already; in the other order it would be lost. In one REPEATABLE READ
    transaction the order does not matter, and page and stream meet exactly. `headrace.snapshot` sees to all that.
    Where more than 500 events of the stream are pending, the watermark is the head alone, and the client is sent
    them though the page shows them. Raises like `head`.
    """
    return str(fetch(connection, sql_calls.watermark(stream)))


def set_retention(connection: Any, pattern: str, keep: timedelta | None, keep_count: int | None = None) -> None:
    """Set the retention of all streams whose names match the pattern, from the transaction's commit on.

    In a pattern `*` is any text and `?` any one character; it has 1 to 512 bytes. If several patterns match a stream,
    the longest applies. The pattern `*` exists from the start, and keeps events for 5 minutes. keep is for how long
    events are kept, above nothing and up to 36,000 days; None removes the pattern's rule. keep_count is how many of a
    stream's newest events are kept within that time; None means all. Only the owner of the schema may call it.

    Raises UsageError for arguments that are not allowed, and for an object that is no connection.
    """
    execute(connection, sql_calls.set_retention(pattern, keep, keep_count))
