"""headrace.testing: what tests of applications see of what they publish, over every kind of connection."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
from django.db import connection as django_connection
from django.db import connections, transaction
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import headrace
import headrace.asyncio
from headrace.errors import SchemaError, UsageError
from headrace.sql_execution import execute_script
from headrace.testing import PublishedEvent, assert_published, published, reset
from tests.fixtures.django import databases
from tests.fixtures.postgres import Connect, Connection
from tests.fixtures.waiting import wait_until
from tests.integration.test_publish import events as kept

Opened = tuple[Any, Callable[[str], object], Callable[[], object], Callable[[], object]]
"""A connection, and functions that execute SQL over it, commit and roll back."""


@contextmanager
def with_psycopg(url: str, **options: Any) -> Iterator[Opened]:
    with closing(psycopg.connect(url, **options)) as connection:
        yield connection, lambda sql: connection.execute(sql.encode()), connection.commit, connection.rollback


@contextmanager
def with_psycopg2(url: str) -> Iterator[Opened]:
    def execute(sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    with closing(psycopg2.connect(url)) as connection:
        yield connection, execute, connection.commit, connection.rollback


@contextmanager
def with_engine(url: str, driver: str, kind: Callable[[Any], Any]) -> Iterator[Opened]:
    engine = sqlalchemy.create_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
    with closing(kind(engine)) as opened:
        yield opened, lambda sql: opened.execute(sqlalchemy.text(sql)), opened.commit, opened.rollback
    engine.dispose()


@contextmanager
def with_django(url: str) -> Iterator[Opened]:
    def execute(sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    with databases(default=url):
        connection = connections["default"]
        connection.set_autocommit(False)
        yield connection, execute, connection.commit, connection.rollback
        connection.rollback()


KINDS: dict[str, Callable[[str], Any]] = {
    "psycopg": with_psycopg,
    "psycopg2": with_psycopg2,
    "connection": lambda url: with_engine(url, "psycopg", lambda engine: engine.connect()),
    "connection-psycopg2": lambda url: with_engine(url, "psycopg2", lambda engine: engine.connect()),
    "session": lambda url: with_engine(url, "psycopg", Session),
    "scoped_session": lambda url: with_engine(url, "psycopg", lambda engine: scoped_session(sessionmaker(engine))),
    "django": with_django,
}


def texts(events: list[PublishedEvent]) -> list[str]:
    return [event.data for event in events]


@pytest.mark.parametrize("kind", KINDS)
def test_a_transaction_is_seen_whatever_becomes_of_it(database_url: str, kind: str) -> None:
    """Events from Python, SQL and triggers are listed in order; others', earlier ones and undone savepoints are not."""
    with psycopg.connect(database_url, autocommit=True) as other, KINDS[kind](database_url) as opened:
        connection, execute, _, rollback = opened
        other.execute("create table orders (id int)")
        headrace.publish_changes(other, "orders", "order:{id}")
        headrace.publish(connection, "s", "before the block")
        with published(connection) as events:
            headrace.publish(connection, "s", {"from": "Python"}, event="note", visible_to="staff")
            execute("select headrace.publish('s', 'from SQL')")
            execute("savepoint one")
            headrace.publish(connection, "s", "undone")
            execute("rollback to savepoint one")
            headrace.publish(other, "s", "of another connection")
            execute("insert into orders values (42)")
            execute("savepoint two")
            headrace.publish_many(connection, ["a", "b"], ["first", "second"])
            execute("release savepoint two")
            assert events == []
        rollback()
        assert [(event.stream, event.type, event.visible_to) for event in events] == [
            ("s", "note", "staff"),
            ("s", "message", None),
            ("order:42", "insert", None),
            ("a", "message", None),
            ("b", "message", None),
        ]
        assert events[0].json() == {"from": "Python"}
        assert events[2].json()["row"] == {"id": 42}
        with published(connection) as none:
            execute("select 1")
        assert none == []
    assert [event[2] for event in kept(database_url)] == ["of another connection"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_may_commit_and_roll_back(database_url: str, kind: str) -> None:
    """What the block has committed is listed, over several transactions; what it has rolled back is not."""
    with KINDS[kind](database_url) as (connection, _, commit, rollback):
        with published(connection) as events:
            headrace.publish(connection, "s", "first")
            commit()
            headrace.publish(connection, "s", "undone")
            rollback()
            with psycopg.connect(database_url) as other:
                headrace.publish(other, "s", "of another connection")
            headrace.publish(connection, "s", "second")
            commit()
            headrace.publish(connection, "s", "open")
        assert texts(events) == ["first", "second", "open"]
        rollback()


@pytest.mark.parametrize("kind", ["psycopg", "session", "connection", "scoped_session", "psycopg2"])
def test_no_transaction_is_begun_by_watching(database_url: str, kind: str) -> None:
    """Where none was open, none is open after the block's beginning and end."""
    with KINDS[kind](database_url) as (connection, _, _, _):
        with published(connection) as events:
            if kind in ("psycopg", "psycopg2"):
                assert connection.info.transaction_status == 0
                connection.autocommit = True
                connection.autocommit = False
            else:
                with connection.begin():
                    headrace.publish(connection, "s", "x")
        assert texts(events) == ([] if kind in ("psycopg", "psycopg2") else ["x"])
        if kind in ("psycopg", "psycopg2"):
            assert connection.info.transaction_status == 0


def test_a_session_in_the_transaction_of_a_test(database_url: str) -> None:
    """Where a test binds the session to a connection, and rolls that back, the session's commits are listed."""
    engine = sqlalchemy.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            for number in range(2):
                with published(session) as events:
                    headrace.publish(session, "s", f"committed {number}")
                    session.commit()
                    headrace.publish(session, "s", "rolled back")
                    session.rollback()
                assert texts(events) == [f"committed {number}"]
            assert_published("s", count=2, connection=session)
        transaction.rollback()
    engine.dispose()
    assert kept(database_url) == []


def test_a_session_without_an_engine(database_url: str) -> None:
    """The error says what to give instead."""
    with Session() as session, pytest.raises(UsageError, match="give the connection"), published(session):
        pass


def django_autocommit(url: str) -> Any:
    @contextmanager
    def opened() -> Iterator[Any]:
        with databases(default=url):
            yield connections["default"], transaction.atomic

    return opened()


def psycopg_autocommit(url: str) -> Any:
    @contextmanager
    def opened() -> Iterator[Any]:
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection, connection.transaction

    return opened()


def sqlalchemy_autocommit(url: str) -> Any:
    @contextmanager
    def opened() -> Iterator[Any]:
        engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT"), None
        engine.dispose()

    return opened()


@pytest.mark.parametrize("opened", [psycopg_autocommit, django_autocommit, sqlalchemy_autocommit])
def test_autocommit(database_url: str, opened: Callable[[str], Any]) -> None:
    """Each statement's events are listed if they are this connection's, also those of transactions in the block."""
    with opened(database_url) as (connection, block), psycopg.connect(database_url, autocommit=True) as other:
        headrace.publish(connection, "s", "before")
        with published(connection) as events:
            headrace.publish(connection, "s", "first")
            headrace.publish(other, "s", "of another connection")
            headrace.publish_many(connection, ["s", "s"], ["second", "third"])
            if block is not None:
                with block():
                    headrace.publish(connection, "s", "in a transaction")
                with pytest.raises(ZeroDivisionError), block():
                    raise ZeroDivisionError(headrace.publish(connection, "s", "undone"))
        assert texts(events) == ["first", "second", "third", *(["in a transaction"] if block else [])]


def test_cursors_that_were_open_before(connection: Connection) -> None:
    """psycopg's cursors are watched, whoever opened them and however they execute; COPY is, too."""
    connection.execute("create table orders (id int)")
    headrace.publish_changes(connection, "orders", "orders")
    with connection.cursor() as cursor, published(connection) as events:
        cursor.execute("insert into orders values (1)")
        cursor.executemany("insert into orders values (%s)", [(2,), (3,)])
        with cursor.copy("copy orders from stdin") as copy:
            copy.write_row([4])
        cursor.execute("select headrace.publish('s', 'last')")
    assert [event.json()["row"]["id"] for event in events[:-1]] == [1, 2, 3, 4]
    assert events[-1].data == "last"


@pytest.mark.parametrize("autocommit", [True, False])
def test_events_that_are_numbered_at_once(connect: Connect, autocommit: bool) -> None:
    """Events of `publish_now` are listed, also from a savepoint; in a transaction others' are not."""
    connection, other = connect(autocommit), connect(autocommit=True)
    headrace.publish_now(connection, "s", "before")
    with published(connection) as events:
        headrace.publish(connection, "t", "later")
        with connection.transaction():
            headrace.publish_now(connection, "s", "now", event="note", visible_to="staff")
        if not autocommit:
            headrace.publish_now(other, "u", "of another connection")
    assert events == [
        PublishedEvent("t", "message", "later", None),
        PublishedEvent("s", "note", "now", "staff"),
    ]


def test_a_block_that_raises(connect: Connect) -> None:
    """The block's own error arrives, and the connection is as it was."""
    connection = connect()
    headrace.publish(connection, "s", "x")
    with pytest.raises(psycopg.errors.DivisionByZero), published(connection) as events:
        connection.execute("select headrace.publish('s', 'y'), 1 / 0")
    connection.rollback()
    assert events == []
    assert "wait" not in vars(connection)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_within_blocks(database_url: str, kind: str) -> None:
    """Each block lists what it has published, also after a block within it has ended."""
    with KINDS[kind](database_url) as (connection, _, commit, rollback):
        with published(connection) as outer:
            headrace.publish(connection, "s", "outer")
            with published(connection) as inner:
                headrace.publish(connection, "s", "inner")
                commit()
            headrace.publish(connection, "s", "after")
            commit()
            headrace.publish(connection, "s", "undone")
            rollback()
        assert (texts(inner), texts(outer)) == (["inner"], ["outer", "inner", "after"])


def test_another_session_has_the_connection_afterwards(database_url: str) -> None:
    """Between a session's transactions its connection may be another session's, whose events are not listed."""
    engine = sqlalchemy.create_engine(
        database_url.replace("postgresql:", "postgresql+psycopg:"), pool_size=1, max_overflow=1
    )
    with Session(engine) as session, Session(engine) as other:
        with published(session) as events:
            headrace.publish(session, "s", "of the session")
            session.commit()
            headrace.publish(other, "s", "of the other")
        assert texts(events) == ["of the session"]
    engine.dispose()


@pytest.mark.parametrize("autocommit", [True, False])
def test_asynchronous_psycopg(database_url: str, autocommit: bool) -> None:
    """An asynchronous connection is watched by the same block: transactions, savepoints, commits and autocommit."""

    async def run() -> list[PublishedEvent]:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=autocommit) as connection:
            with published(connection) as events:
                await headrace.asyncio.publish(connection, "s", "first")
                async with connection.transaction():
                    await headrace.asyncio.publish(connection, "s", "second")
                with pytest.raises(ZeroDivisionError):
                    async with connection.transaction():
                        raise ZeroDivisionError(await headrace.asyncio.publish(connection, "s", "undone"))
                if not autocommit:
                    await connection.commit()
                await headrace.asyncio.publish(connection, "s", "third")
            assert_published("s", connection=connection, data="third")
        return events

    assert texts(asyncio.run(run())) == ["first", "second", "third"]


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_asynchronous_sqlalchemy(database_url: str, kind: str) -> None:
    """An asynchronous session or connection of SQLAlchemy over psycopg is watched, over several transactions."""

    async def run() -> list[PublishedEvent]:
        engine = create_async_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
        async with AsyncSession(engine) if kind == "session" else engine.connect() as connection:
            if isinstance(connection, AsyncSession):
                with pytest.raises(UsageError, match="begin its transaction before the block"), published(connection):
                    pass
                await connection.connection()
            with published(connection) as events:
                await headrace.asyncio.publish(connection, "s", "first")
                await connection.commit()
                await headrace.asyncio.publish(connection, "s", "undone")
                await connection.rollback()
                await headrace.asyncio.publish(connection, "s", {"last": True})
        await engine.dispose()
        return events

    assert texts(asyncio.run(run())) == ["first", '{"last": true}']


def test_asyncpg_is_refused(database_url: str) -> None:
    """The error says which drivers can be watched."""

    async def run() -> None:
        engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.connect() as connection:
            with pytest.raises(UsageError, match="no connection of psycopg or psycopg2"), published(connection):
                pass
        await engine.dispose()

    asyncio.run(run())


def test_published_by_alias(database_url: str) -> None:
    """With an alias, or without anything, the connection is Django's; both together are refused."""
    with databases(default=database_url, other=database_url):
        for alias in ("default", "other"):
            with transaction.atomic(alias), published(using=alias) as events:
                headrace.publish(connections[alias], "s", alias)
            assert texts(events) == [alias]
        with transaction.atomic(), published() as events:
            headrace.publish(connections["default"], "s", "x")
        assert texts(events) == ["x"]
        with transaction.atomic():
            headrace.publish(django_connection, "t", "before the block")
            with published(django_connection):
                headrace.publish(django_connection, "t", "x")
                assert_published("t", count=1, using="default")
                assert_published("t", count=1, connection=connections["default"])
                assert_published("t", count=0, using="other")
        with pytest.raises(UsageError, match="not both"), published(connections["default"], using="default"):
            pass


def test_asserting_in_a_transaction(connect: Connect) -> None:
    """Without a block the open transaction counts; within a block, what the block has published."""
    connection, other = connect(), connect(autocommit=True)
    headrace.publish(other, "s", "of another connection")
    headrace.publish(connection, "s", {"n": 1}, event="note", visible_to="staff")
    headrace.publish_now(connection, "now", "x")
    assert assert_published("s", count=1, connection=connection)[0].json() == {"n": 1}
    assert_published("s", data={"n": 1}, type="note", visible_to="staff", connection=connection)
    assert_published("s", data='{"n": 1}', connection=connection)
    assert_published("now", connection=connection)
    assert_published("t", count=0, connection=connection)
    with published(connection) as events:
        assert_published("s", count=0, connection=connection)
        headrace.publish(connection, "s", "within")
        assert_published("s", count=1, connection=connection)
        assert_published("s", count=1)
    assert_published("s", count=1, data="within", events=events)
    assert_published("s", count=2, connection=connection)


@pytest.mark.parametrize(
    "wrong",
    [{"count": 2}, {"data": "y"}, {"data": {"n": 1}}, {"type": "note"}, {"visible_to": "staff"}, {"stream": "t"}],
)
def test_an_assertion_fails_with_what_there_is(connect: Connect, wrong: dict[str, Any]) -> None:
    """Each condition can fail; the message lists what was published instead."""
    connection = connect()
    headrace.publish(connection, "s", "x")
    assert_published("s", count=1, data="x", type="message", visible_to=None, connection=connection)
    with pytest.raises(AssertionError, match=r"expected .*\n  PublishedEvent\(stream='s', type='message', data='x'"):
        assert_published(**{"stream": "s", **wrong}, connection=connection)
    connection.rollback()
    with pytest.raises(AssertionError, match="published: nothing"):
        assert_published("s", connection=connection)


def test_asserting_what_has_committed(connection: Connection) -> None:
    """In autocommit all that is kept counts, until the reset."""
    headrace.publish(connection, "s", "x")
    headrace.publish_now(connection, "s", "y")
    assert texts(assert_published("s", count=2, connection=connection)) == ["x", "y"]
    reset(connection)
    assert_published("s", count=0, connection=connection)


def test_a_publisher_is_told_to_connect_as_the_owner(connect: Connect) -> None:
    """A role that may only publish cannot see what it has published; the transaction goes on."""
    connection = connect()
    connection.execute("set role headrace_publisher")
    with pytest.raises(UsageError, match="connect as the owner of the schema"), published(connection):
        pass
    headrace.publish(connection, "s", "x")


def test_a_database_without_a_schema(empty_database_url: str) -> None:
    """The error says what to run."""
    with (
        psycopg.connect(empty_database_url) as connection,
        pytest.raises(SchemaError, match="run `headrace migrate`"),
        published(connection),
    ):
        pass


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_reset_leaves_nothing_of_a_test(connect: Connect, autocommit: bool) -> None:
    """Events, pending ones too, heads, presence and revocations are gone, and ids begin at 1."""
    connection = connect(autocommit)
    for number in range(3):
        headrace.publish_now(connection, "s", str(number))
    headrace.publish(connection, "s", "numbered")
    headrace.disconnect(connection, user="ada")
    if not autocommit:
        connection.commit()
        connection.execute("set transaction isolation level repeatable read")
        headrace.publish(connection, "s", "pending")
        connection.commit()
    reset(connection)
    for table in ("stream", "event", "payload", "turn", "revocation", "jump", "trimmed"):
        assert connection.execute(f"select count(*) from headrace.{table}".encode()).fetchone() == (0,), table
    assert headrace.watermark(connection, "s") == "0"
    assert headrace.publish_now(connection, "s", "again") == 1


def test_ids_do_not_come_back_where_others_follow(database_url: str, connect: Connect) -> None:
    """While a process of headrace is connected, streams go on above their last ids; afterwards they begin at 1."""
    connection = connect(autocommit=True)
    headrace.publish_now(connection, "s", "x")
    with psycopg.connect(database_url, application_name="headrace shard s1 follower"):
        reset(connection)
        assert headrace.head(connection, "s") == 0
        assert headrace.publish_now(connection, "s", "y") == 2
    followers = "select from pg_stat_activity where application_name ~ '^headrace ' and datname = current_database()"
    wait_until(lambda: not connection.execute(followers).fetchall(), "the server has ended the follower's session")
    reset(connection)
    assert headrace.publish_now(connection, "s", "z") == 1


def test_a_reset_in_a_copy_of_the_database(postgres: Any, database_url: str) -> None:
    """A copy, as Django makes one for each parallel process, begins at 1 after a reset, too."""
    with psycopg.connect(database_url) as connection:
        headrace.publish_now(connection, "s", "x")
    original = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres.database_url("postgres"), autocommit=True) as superuser:
        superuser.execute(f"create database {original}_copy template {original} owner headrace".encode())
    try:
        with psycopg.connect(postgres.owned_url(f"{original}_copy")) as connection:
            reset(connection)
            assert headrace.publish_now(connection, "s", "x") == 1
    finally:
        with psycopg.connect(postgres.database_url("postgres"), autocommit=True) as superuser:
            superuser.execute(f"drop database {original}_copy with (force)".encode())


def test_a_reset_waits_for_open_publishers_no_longer_than_its_patience(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that was left open is an error that says so, and nothing is removed."""
    connection, left = connect(autocommit=True), connect()
    headrace.publish(connection, "s", "kept")
    headrace.publish(left, "s", "left open")
    monkeypatch.setattr("headrace.testing.streams_reset.execute_script", quickly)
    with pytest.raises(psycopg.errors.LockNotAvailable, match="is still open"):
        reset(connection)
    assert headrace.head(connection, "s") == 1
    left.rollback()
    reset(connection)
    assert headrace.head(connection, "s") == 0


def quickly(connection: Any, sql: str) -> None:
    """Execute a script with less patience, so that the test is quick."""
    assert "'5s'" in sql
    execute_script(connection, sql.replace("'5s'", "'200ms'"))
