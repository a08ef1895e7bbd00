"""What people give as a connection, and is none that will do: each gets a sentence that says what to give."""

import asyncio
import gc
import re
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from typing import Any

import asyncpg
import flask
import psycopg
import psycopg2
import psycopg2.pool
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import headrace.asyncio
import headrace.sqlalchemy
from headrace.errors import UsageError
from tests.fixtures.django import databases
from tests.integration.test_publish import events


def refused(function: Callable[[], object]) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(UsageError) as caught:
        function()
    return str(caught.value)


@pytest.fixture
def engine(database_url: str) -> Iterator[Any]:
    made = create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    yield made
    made.dispose()


def in_snapshot(block: Any) -> object:
    with block as page:
        return page.watermark("s")


def test_what_is_no_connection(database_url: str, engine: Any) -> None:
    """Pools, engines, factories, blocks that were not entered, URLs: no event goes astray, and no password is shown."""
    pools = pytest.importorskip("psycopg_pool")
    extension = pytest.importorskip("flask_sqlalchemy")
    app = flask.Flask("app")
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url.replace("postgresql:", "postgresql+psycopg:")
    db = extension.SQLAlchemy(app)
    with ExitStack() as opened:
        pool = opened.enter_context(pools.ConnectionPool(database_url, min_size=1, open=True))
        old_pool = psycopg2.pool.SimpleConnectionPool(0, 1, database_url)
        opened.callback(old_pool.closeall)
        connection = opened.enter_context(psycopg.connect(database_url))
        sa_connection = opened.enter_context(engine.connect())
        opened.enter_context(app.app_context())
        block = pool.connection()
        wrong: list[tuple[object, str]] = [
            (database_url, "a text is no connection; open one"),
            (None, "None is no database connection"),
            (object(), "is no database connection"),
            (psycopg, "open one"),
            (psycopg.Connection, "open one"),
            (pool, "is a pool, .* give a connection that you take from it"),
            (old_pool, "is a pool, .* give a connection that you take from it"),
            (block, "was not entered"),
            (engine, "is an engine, .* give a connection or a session of it"),
            (engine.begin(), "was not entered"),
            (sessionmaker(engine), "give a session that it has made"),
            (sa_connection.begin(), "give its `connection`"),
            (opened.enter_context(connection.transaction()), "give its `connection`"),
            (db, "give its `session`"),
            (Session(), r"`session.connection\(bind_arguments="),
        ]
        for given, sentence in wrong:
            for call in (
                lambda given=given: headrace.publish(given, "s", "x"),
                lambda given=given: headrace.watermark(given, "s"),
                lambda given=given: in_snapshot(headrace.sqlalchemy.snapshot(given)),
            ):
                said = refused(call)
                assert database_url not in said
                assert re.search(sentence, said)
        assert "no connection of psycopg" in refused(lambda: in_snapshot(headrace.snapshot(connection.cursor())))
        assert "no connection of psycopg" in refused(lambda: in_snapshot(headrace.snapshot(Session(engine))))
        assert "no session or connection of SQLAlchemy" in refused(
            lambda: in_snapshot(headrace.sqlalchemy.snapshot(connection))
        )
        headrace.publish(db.session, "s", "Flask-SQLAlchemy")
        db.session.commit()
        db.engine.dispose()
    assert [data for _, _, data, _, _ in events(database_url)] == ["Flask-SQLAlchemy"]


def test_connections_that_were_closed(database_url: str, engine: Any) -> None:
    """A connection that the program has closed is named; one that was lost has its driver's own error."""
    connections = [psycopg.connect(database_url), psycopg2.connect(database_url), engine.connect()]
    for connection in connections:
        connection.close()
        assert "is closed; give an open connection" in refused(lambda c=connection: headrace.publish(c, "s", "x"))
    with closing(psycopg.connect(database_url, autocommit=True)) as lost, psycopg.connect(database_url) as other:
        other.execute("select pg_terminate_backend(%s)", [lost.info.backend_pid])
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                headrace.publish(lost, "s", "x")


def test_other_databases(tmp_path: Any) -> None:
    """SQLite has no headrace, under whatever library."""
    with closing(sqlite3.connect(":memory:")) as lite, databases(default="sqlite") as django_connections:
        engine = create_engine("sqlite://")
        with engine.connect() as connection, Session(engine) as session:
            for given in (lite, lite.cursor(), connection, session, django_connections["default"]):
                assert "to SQLite; headrace's functions are in PostgreSQL" in refused(
                    lambda given=given: headrace.publish(given, "s", "x")
                )
        engine.dispose()


def test_autocommit_of_sqlalchemy(database_url: str) -> None:
    """In AUTOCOMMIT publishing is a transaction of its own, and a snapshot is refused with what to do."""
    engine = create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, Session(engine) as session:
        headrace.publish(connection, "s", "x")
        headrace.publish(session, "s", "y")
        assert headrace.head(session, "s") == 2
        for given in (connection, Session(engine)):
            assert "is in AUTOCOMMIT" in refused(lambda given=given: in_snapshot(headrace.sqlalchemy.snapshot(given)))
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(repeatable) as session, headrace.sqlalchemy.snapshot(session) as page:
        assert page.head("s") == 2
    engine.dispose()


def test_synchronous_and_asynchronous_ones_that_are_mixed_up(database_url: str) -> None:
    """Each is told of the other's functions; an asynchronous pool publishes in nobody's transaction, and is refused."""

    async def run() -> None:
        pools = pytest.importorskip("psycopg_pool")
        engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with AsyncExitStack() as opened:
            plain = await opened.enter_async_context(await psycopg.AsyncConnection.connect(database_url))
            pool = await opened.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=1))
            pooled = await opened.enter_async_context(pool.acquire())
            connected = await opened.enter_async_context(engine.connect())
            session = await opened.enter_async_context(AsyncSession(engine))
            for given in (plain, plain.cursor(), pooled, connected, session):
                assert "asynchronous" in refused(lambda given=given: headrace.publish(given, "s", "x"))
            for given in (connected.sync_connection, session.sync_session):
                assert "give that one to `headrace.asyncio`" in refused(
                    lambda given=given: headrace.publish(given, "s", "x")
                )
            await connected.run_sync(lambda connection: headrace.publish(connection, "s", "within run_sync"))
            await connected.commit()
            with psycopg.connect(database_url) as synchronous:
                waiting = psycopg.AsyncConnection.connect(database_url)
                wrong: list[tuple[object, str]] = [
                    (synchronous, "for others there is `headrace`"),
                    (synchronous.cursor(), "for others there is `headrace`"),
                    (session.sync_session, "for others there is `headrace`"),
                    (pool, "is a pool"),
                    (pools.AsyncConnectionPool(database_url, open=False), "is a pool"),
                    (pool.acquire(), "was not awaited"),
                    (waiting, "was not awaited"),
                    (engine, "is an engine"),
                    (async_sessionmaker(engine), "give a session that it has made"),
                    (AsyncConnection(engine), "is not connected; enter it first"),
                    (database_url, "a text is no connection"),
                ]
                for given, sentence in wrong:
                    with pytest.raises(UsageError, match=sentence):
                        await headrace.asyncio.publish(given, "s", "x")
                waiting.close()
            with pytest.raises(UsageError, match="there is `snapshot`"):
                async with headrace.sqlalchemy.async_snapshot(session.sync_session):
                    pass
        await plain.close()
        with pytest.raises(UsageError, match="is closed; give an open connection"):
            await headrace.asyncio.publish(plain, "s", "x")
        await engine.dispose()

    with warnings.catch_warnings():
        # Of what SQLAlchemy was about to await when it found itself in synchronous code. It is collected here, since
        # the warning would otherwise come in the middle of another test, and be that one's failure.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")
        asyncio.run(run())
        gc.collect()
    assert [data for _, _, data, _, _ in events(database_url)] == ["within run_sync"]
