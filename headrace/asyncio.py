"""Publishing over asynchronous connections: the functions of `headrace`, to be awaited, with the same arguments.

A connection is any of

    psycopg's AsyncConnection or AsyncCursor
    asyncpg's Connection, or what its pool gives out
    SQLAlchemy's AsyncSession, async_scoped_session or AsyncConnection, over either driver

Every function runs in the connection's own transaction and never commits. None of these libraries is imported. The
functions of the same names in `headrace` tell what the arguments mean and what is raised; a connection that is none of
these raises UsageError.
"""

import json
from collections.abc import Sequence
from typing import Any

from headrace import sql_calls, sql_execution
from headrace.database_connection import as_tuples, asynchronous, is_of, takes_dollars
from headrace.disconnect import DEFAULT_REASON
from headrace.event_data import Data
from headrace.sql_calls import Call


async def publish(
    connection: Any, stream: str, data: Data, *, event: str = "message", visible_to: str | None = None
) -> None:
    """Publish one event, with data, to the stream when, and only if, the connection's transaction commits."""
    await _execute(connection, sql_calls.publish(stream, data, event, visible_to))


async def publish_now(
    connection: Any, stream: str, data: Data, *, event: str = "message", visible_to: str | None = None
) -> int:
    """Publish one event like `publish`, but number it at once and return its id; for a transaction of its own."""
    return int(await _execute(connection, sql_calls.publish_now(stream, data, event, visible_to)))


async def publish_many(
    connection: Any,
    streams: Sequence[str],
    data: Sequence[Data],
    *,
    events: Sequence[str | None] | None = None,
    visible_to: Sequence[str | None] | None = None,
) -> None:
    """Publish one event for each position of the sequences, in their order, in one round trip to the database."""
    call = sql_calls.publish_many(streams, data, events, visible_to)
    if call is not None:
        await _execute(connection, call)


async def head(connection: Any, stream: str) -> int:
    """Return the head of the stream: its last id; without such a stream, the id above which it would begin."""
    return int(await _execute(connection, sql_calls.head(stream)))


async def watermark(connection: Any, stream: str) -> str:
    """Return the watermark of the stream, for a page; under READ COMMITTED read it before the page's data."""
    return str(await _execute(connection, sql_calls.watermark(stream)))


async def members(connection: Any, stream: str) -> list[str]:
    """Return the members of the stream: the users who are present on it, in the order in which they joined."""
    users: list[str] = json.loads(await _execute(connection, sql_calls.members(stream)))
    return users


async def member_count(connection: Any, stream: str) -> int:
    """Return how many members the stream has; one row is read, however many they are."""
    return int(await _execute(connection, sql_calls.member_count(stream)))


async def disconnect(
    connection: Any,
    *,
    user: object = None,
    stream: str | None = None,
    reason: str = DEFAULT_REASON,
    skew_s: float = 0.0,
) -> None:
    """Close the connections of a user, whose tokens are then refused, or of a stream, when the transaction commits."""
    await _execute(connection, sql_calls.disconnect(user, stream, reason, skew_s))


async def _execute(given: Any, call: Call) -> Any:
    """Execute the call by the methods that the kinds of connections share; return the single column of its row."""
    connection = asynchronous(given)
    if hasattr(connection, "run_sync"):  # SQLAlchemy
        return await connection.run_sync(sql_execution.fetch, call)
    if hasattr(connection, "fetchval"):  # asyncpg
        return await connection.fetchval(sql_execution.numbered(call.sql), *call.parameters)
    if not is_of("psycopg", connection):
        cursor = await connection.execute(*call)
        return sql_execution.single(await cursor.fetchone())
    async with connection.cursor(row_factory=as_tuples) as cursor:
        await cursor.execute(sql_execution.numbered(call.sql) if takes_dollars(cursor) else call.sql, call.parameters)
        return sql_execution.single(await cursor.fetchone())
