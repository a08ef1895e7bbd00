"""Publishing from Python over every kind of asynchronous connection, always in the caller's own transaction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import class_row, dict_row, scalar_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import headrace.asyncio
from headrace.errors import EventError
from headrace.shard.postgres import sql_functions
from tests.integration.test_publish import Row, events

End = Callable[[], Awaitable[None]]


@asynccontextmanager
async def with_psycopg(url: str, **options: Any) -> AsyncIterator[tuple[Any, End, End]]:
    async with await psycopg.AsyncConnection.connect(url, **options) as connection:
        yield connection, connection.commit, connection.rollback


@asynccontextmanager
async def with_cursor(url: str, *name: str) -> AsyncIterator[tuple[Any, End, End]]:
    async with await psycopg.AsyncConnection.connect(url) as connection, connection.cursor(*name) as cursor:
        yield cursor, connection.commit, connection.rollback


@asynccontextmanager
async def with_asyncpg(url: str) -> AsyncIterator[tuple[Any, End, End]]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()

        async def end(how: str) -> None:
            nonlocal transaction
            await getattr(transaction, how)()
            transaction = connection.transaction()
            await transaction.start()

        yield connection, lambda: end("commit"), lambda: end("rollback")
        await transaction.rollback()


@asynccontextmanager
async def with_sqlalchemy(url: str, driver: str, session: bool) -> AsyncIterator[tuple[Any, End, End]]:
    engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
    async with AsyncSession(engine) if session else engine.connect() as connection:
        yield connection, connection.commit, connection.rollback
    await engine.dispose()


KINDS: dict[str, Callable[[str], Any]] = {
    "psycopg": with_psycopg,
    "psycopg, dict rows": lambda url: with_psycopg(url, row_factory=dict_row),
    "psycopg, scalars": lambda url: with_psycopg(url, row_factory=scalar_row),
    "psycopg, raw cursors": lambda url: with_psycopg(url, cursor_factory=psycopg.AsyncRawCursor),
    "psycopg, objects": lambda url: with_psycopg(url, row_factory=class_row(Row)),
    "psycopg, a cursor": with_cursor,
    "psycopg, a server-side cursor": lambda url: with_cursor(url, "named"),
    "asyncpg": with_asyncpg,
    "SQLAlchemy, psycopg": lambda url: with_sqlalchemy(url, "psycopg", session=False),
    "SQLAlchemy, asyncpg": lambda url: with_sqlalchemy(url, "asyncpg", session=False),
    "SQLAlchemy session, psycopg": lambda url: with_sqlalchemy(url, "psycopg", session=True),
    "SQLAlchemy session, asyncpg": lambda url: with_sqlalchemy(url, "asyncpg", session=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_connection(database_url: str, kind: str) -> None:
    """Events are published with the connection's transaction: not before its commit, never after a rollback."""

    async def use() -> None:
        async with KINDS[kind](database_url) as (connection, commit, rollback):
            await headrace.asyncio.publish(connection, "s", "never")
            await rollback()
            await headrace.asyncio.publish(connection, "s", "100 % 'ü' \\ %s $1")
            await headrace.asyncio.publish(connection, "s", "b", event="tick", visible_to="staff")
            await headrace.asyncio.publish_many(
                connection, ["s", "t"], ["c", "d"], events=[None, "tock"], visible_to=["x", None]
            )
            await headrace.asyncio.publish_many(connection, [], [])
            assert await headrace.asyncio.head(connection, "s") == 0
            assert events(database_url) == []
            await commit()
            assert await headrace.asyncio.head(connection, "s") == 3
            assert await headrace.asyncio.watermark(connection, "s") == "3"
            assert await headrace.asyncio.members(connection, "s") == []
            assert await headrace.asyncio.member_count(connection, "s") == 0
            assert await headrace.asyncio.publish_now(connection, "s", "e", event="now") == 4
            await rollback()
            assert await headrace.asyncio.publish_now(connection, "s", "f") == 4
            await headrace.asyncio.disconnect(connection, user=7, reason="signed out", skew_s=1.5)
            await headrace.asyncio.disconnect(connection, stream="s")
            await commit()

    asyncio.run(use())
    assert events(database_url) == [
        ("s", 1, "100 % 'ü' \\ %s $1", None, None),
        ("s", 2, "b", "tick", "staff"),
        ("s", 3, "c", None, "x"),
        ("s", 4, "f", None, None),
        ("t", 1, "d", "tock", None),
    ]
    with psycopg.connect(database_url) as reader:
        found = sql_functions.read_revocations(reader, sql_functions.FIRST_FLOOR)[1]
    assert [(item.user, item.stream, item.reason) for item in found] == [
        ("7", None, "signed out"),
        (None, "s", "disconnected"),
    ]


def test_refused_before_anything_is_sent() -> None:
    """Bad arguments are refused whatever the connection."""
    with pytest.raises(EventError, match="reserved"):
        asyncio.run(headrace.asyncio.publish(None, "s", "x", event="headrace:gap"))
