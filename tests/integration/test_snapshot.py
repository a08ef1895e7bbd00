"""Snapshots over every kind of connection: what a page shows, and the watermark that its stream goes on from."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import psycopg
import psycopg2
import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

import headrace.django
import headrace.sqlalchemy
from headrace.errors import UsageError
from headrace.snapshot import Snapshot, current
from tests.fixtures.django import databases

SELECT = "select text from public.note order by id"
SECRET = "a secret that tests sign with"


class Kind(NamedTuple):
    """A connection: hold() is its snapshot, query(sql) its rows, begin() opens a transaction, end() rolls it back."""

    hold: Callable[[], AbstractContextManager[Any]]
    query: Callable[[str], list[str]]
    begin: Callable[[], Any]
    end: Callable[[], Any]


@contextmanager
def with_psycopg(url: str, autocommit: bool) -> Iterator[Kind]:
    with psycopg.connect(url, autocommit=autocommit) as c:
        yield Kind(
            lambda: headrace.snapshot(c),
            lambda sql: [row[0] for row in c.execute(sql.encode())],
            lambda: c.execute("begin" if autocommit else "select"),
            c.rollback,
        )


@contextmanager
def with_psycopg2(url: str, autocommit: bool) -> Iterator[Kind]:
    with closing(psycopg2.connect(url)) as c:
        c.autocommit = autocommit

        def query(sql: str) -> list[str]:
            with c.cursor() as cursor:
                cursor.execute(sql)
                return [row[0] for row in cursor.fetchall()] if cursor.description else []

        yield Kind(
            lambda: headrace.snapshot(c),
            query,
            lambda: query("begin" if autocommit else "select 1"),
            lambda: query("rollback"),
        )


@contextmanager
def with_sqlalchemy(url: str, make: Callable[[Any], Any]) -> Iterator[Kind]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with closing(make(engine)) as c:
        yield Kind(
            lambda: headrace.sqlalchemy.snapshot(c),
            lambda sql: list(c.execute(text(sql)).scalars()),
            lambda: c.execute(text("select 1")),
            c.rollback,
        )
    engine.dispose()


@contextmanager
def with_django(url: str) -> Iterator[Kind]:
    with databases(default=url, other=url) as connections:
        connection = connections["other"]

        def query(sql: str) -> list[str]:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return [row[0] for row in cursor.fetchall()]

        def begin() -> None:
            connection.set_autocommit(False)
            query("select 1")

        def end() -> None:
            connection.rollback()
            connection.set_autocommit(True)

        yield Kind(lambda: headrace.django.snapshot("other"), query, begin, end)


KINDS: dict[str, Callable[[str], AbstractContextManager[Kind]]] = {
    "psycopg": lambda url: with_psycopg(url, autocommit=False),
    "psycopg, autocommit": lambda url: with_psycopg(url, autocommit=True),
    "psycopg2": lambda url: with_psycopg2(url, autocommit=False),
    "psycopg2, autocommit": lambda url: with_psycopg2(url, autocommit=True),
    "SQLAlchemy": lambda url: with_sqlalchemy(url, lambda engine: engine.connect()),
    "SQLAlchemy session": lambda url: with_sqlalchemy(url, Session),
    "SQLAlchemy scoped session": lambda url: with_sqlalchemy(url, lambda e: scoped_session(sessionmaker(e))),
    "Django": with_django,
}


class Notes:
    """Somebody else, who commits notes. Owned by the test."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("create table public.note (id bigserial primary key, text text)")

    def add(self, *texts: str) -> None:
        for each in texts:
            with self.connection.transaction():
                self.connection.execute("insert into public.note (text) values (%s)", [each])
                headrace.publish(self.connection, "notes", each)

    def leave(self, *texts: str) -> list[int]:
        """Commit a note each, whose event stays pending; return the events' sequence numbers.

        A transaction that is REPEATABLE READ leaves the numbering of its events to others.
        """
        for each in texts:
            with self.connection.transaction():
                self.connection.execute("set transaction isolation level repeatable read")
                self.connection.execute("insert into public.note (text) values (%s)", [each])
                headrace.publish(self.connection, "notes", each)
        sql = "select seq from headrace.payload where data = any(%s) order by seq"
        return [seq for (seq,) in self.connection.execute(sql, [list(texts)])]


class Base(DeclarativeBase):
    """Where SQLAlchemy keeps the tables."""


class Note(Base):
    """A row of theirs."""

    __tablename__ = "note"
    __table_args__ = {"schema": "public"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", SECRET)


@pytest.fixture
def notes(database_url: str) -> Iterator[Notes]:
    notes = Notes(database_url)
    yield notes
    notes.connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_exact(database_url: str, notes: Notes, kind: str) -> None:
    """Page and head are of one moment, whenever each is asked for, and the block leaves no transaction behind."""
    notes.add("a")
    with KINDS[kind](database_url) as (hold, query, _, end):
        with hold() as page:
            notes.add("b")
            assert query(SELECT) == ["a"]
            notes.add("c")
            assert (page.head("notes"), page.head("nothing")) == (1, 0)
            assert query(SELECT) == ["a"]
        with pytest.raises(UsageError, match="has ended"):
            page.head("notes")
        with hold() as page:
            assert (query(SELECT), page.head("notes")) == (["a", "b", "c"], 3)
        with pytest.raises(ZeroDivisionError), hold():  # noqa: PT012
            query("insert into public.note (text) values ('rolled back') returning text")
            raise ZeroDivisionError
        with hold():
            query("insert into public.note (text) values ('kept') returning text")
        end()
        assert query(SELECT) == ["a", "b", "c", "kept"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_tells_which_events_are_pending(database_url: str, notes: Notes, kind: str) -> None:
    """The watermark has the head, and the events that the page shows without an id; later ones are not among them."""
    notes.add("a")
    first, second = notes.leave("b", "c")
    watermark = f"1-{first}-{second - first}"
    with KINDS[kind](database_url) as (hold, query, _, _):
        with hold() as page:
            assert query(SELECT) == ["a", "b", "c"]
            assert page.watermark("notes") == watermark
            (third,) = notes.leave("d")
            assert query(SELECT) == ["a", "b", "c"]
            assert (page.watermark("notes"), page.head("notes")) == (watermark, 1)
            assert page.url(["nothing", "notes"]).endswith(f"?since=0.{watermark}")
            assert f'?since={watermark}"' in page.element("notes")
        with hold() as page:
            assert page.watermark("notes") == f"{watermark}-{third - second}"
            notes.add("e")
            assert page.watermark("notes") == f"{watermark}-{third - second}"
            assert query(SELECT) == ["a", "b", "c", "d"]
        with hold() as page:
            assert (page.watermark("notes"), page.watermark("nothing")) == ("5", "0")


@pytest.mark.parametrize("kind", KINDS)
def test_in_an_open_transaction_the_pending_events_are_those_of_the_begin(
    database_url: str, notes: Notes, kind: str
) -> None:
    """Under READ COMMITTED an event that is pending when the block begins is left out, and a later one is not."""
    notes.add("a")
    (first,) = notes.leave("b")
    with KINDS[kind](database_url) as (hold, query, begin, end):
        begin()
        with hold() as page:
            notes.leave("c")
            assert query(SELECT) == ["a", "b", "c"]
            assert page.watermark("notes") == f"1-{first}"
            notes.add("d")
            assert query(SELECT) == ["a", "b", "c", "d"]
            assert (page.watermark("notes"), page.head("notes")) == (f"1-{first}", 1)
            assert page.url(["notes", "nothing"]).endswith(f"?since=1-{first}.0")
            with hold() as inner:
                assert inner.watermark("notes") == "4"
        end()


def test_what_the_page_s_own_transaction_publishes_arrives(database_url: str, notes: Notes) -> None:
    """Until its transaction commits an event is not pending, so that its page's client is sent it."""
    with psycopg.connect(database_url) as connection:
        for isolation in (psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.REPEATABLE_READ):
            connection.isolation_level = isolation
            before = headrace.watermark(connection, "notes")
            headrace.publish(connection, "notes", "own")
            with headrace.snapshot(connection) as page:
                assert page.watermark("notes") == before
            connection.commit()
            (seq,) = connection.execute("select max(seq) from headrace.payload where data = 'own'").fetchone() or ()
            after = "1" if isolation == psycopg.IsolationLevel.READ_COMMITTED else f"1-{seq}"
            assert headrace.watermark(connection, "notes") == after
            connection.commit()


def test_a_page_in_one_statement(database_url: str, notes: Notes) -> None:
    """`headrace.watermark` in the statement of the page's own query, as a program in any language calls it."""
    notes.add("a")
    (first,) = notes.leave("b")
    sql = "select headrace.watermark('notes'), array(select text from public.note order by id)"
    with psycopg.connect(database_url) as connection:
        assert connection.execute(sql).fetchone() == (f"1-{first}", ["a", "b"])
        assert headrace.watermark(connection, "notes") == f"1-{first}"
        notes.add("c")
        assert connection.execute(sql).fetchone() == ("3", ["a", "b", "c"])
        assert headrace.watermark(connection, "notes") == "3"


@pytest.mark.parametrize("kind", KINDS)
def test_in_an_open_transaction_heads_are_older_than_the_page(database_url: str, notes: Notes, kind: str) -> None:
    """Under READ COMMITTED the head of any stream is that of the block's begin: what the page lacks is never lost."""
    notes.add("a")
    with KINDS[kind](database_url) as (hold, query, begin, end):
        begin()
        query(SELECT)
        notes.add("b")
        with hold() as page:
            notes.add("c")
            assert query(SELECT) == ["a", "b", "c"]
            headrace.publish(notes.connection, "other", "x")
            with hold() as inner:
                assert (inner.head("notes"), inner.head("other")) == (3, 1)
            assert (page.head("notes"), page.head("other"), page.head("notes")) == (2, 0, 2)
        query("insert into public.note (text) values ('d') returning text")
        end()
        assert query(SELECT) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Django"])
def test_an_open_transaction_that_is_repeatable_read_is_exact(database_url: str, notes: Notes, kind: str) -> None:
    """A block inside of a REPEATABLE READ transaction shares its snapshot, however old that is."""
    notes.add("a")
    with KINDS[kind](database_url) as (hold, query, _, _), hold():
        query(SELECT)
        notes.add("b")
        with hold() as inner:
            assert (query(SELECT), inner.head("notes")) == (["a"], 1)


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_transaction_that_ends_inside_is_noticed(database_url: str, notes: Notes, autocommit: bool) -> None:
    """After a commit inside of the block the head is refused, as another transaction's could be too new."""
    with psycopg.connect(database_url, autocommit=autocommit) as c:
        with pytest.raises(UsageError, match="ended inside"), headrace.snapshot(c) as page:  # noqa: PT012
            c.commit()
            notes.add("a")
            page.head("notes")
        c.execute("select" if not autocommit else "begin")
        with pytest.raises(psycopg.errors.InvalidCursorName), headrace.snapshot(c) as page:  # noqa: PT012
            c.commit()
            page.head("notes")


def test_an_asynchronous_session(database_url: str, notes: Notes) -> None:
    """The same for AsyncSession, async_scoped_session and AsyncConnection, over both drivers."""
    notes.add("a")

    async def show(driver: str, kind: str) -> None:
        engine = create_async_engine(database_url.replace("postgresql:", f"postgresql+{driver}:"))
        if kind == "connection":
            connection: Any = await engine.connect()
        elif kind == "session":
            connection = AsyncSession(engine)
        else:
            connection = async_scoped_session(lambda: AsyncSession(engine), scopefunc=lambda: 0)

        async def query() -> list[str]:
            return list((await connection.execute(text(SELECT))).scalars())

        async with headrace.sqlalchemy.async_snapshot(connection) as page:
            before = await query()
            await asyncio.to_thread(notes.add, "x")
            assert await query() == before
            assert await page.head("notes") == len(before)
            assert f"since={len(before)}" in await page.url("notes", user="ada")
            assert await page.watermark("notes") == str(len(before))
            assert (await page.element("notes", share="a&b")).endswith('share="a&amp;b"></headrace-stream>')
        with pytest.raises(UsageError, match="has ended"):
            await page.head("notes")
        assert await query() == [*before, "x"]
        async with headrace.sqlalchemy.async_snapshot(connection) as page:
            await asyncio.to_thread(notes.add, "y")
            assert (await query())[-1] == "y"
            assert await page.head("notes") == len(before) + 1
        (seq,) = await asyncio.to_thread(notes.leave, f"pending over {driver} to a {kind}")
        async with headrace.sqlalchemy.async_snapshot(connection) as page:
            await asyncio.to_thread(notes.add, "z")
            assert await page.watermark("notes") == f"{len(before) + 2}-{seq}"
            assert f'?since={len(before) + 2}-{seq}"' in await page.element("notes")
        await connection.rollback()
        with pytest.raises(ZeroDivisionError):
            async with headrace.sqlalchemy.async_snapshot(connection):
                raise ZeroDivisionError
        await connection.close()
        await engine.dispose()

    for driver in ("psycopg", "asyncpg"):
        for kind in ("connection", "session", "scoped session"):
            asyncio.run(show(driver, kind))


def test_objects_that_a_session_holds_are_not_older_than_the_head(database_url: str, notes: Notes) -> None:
    """What a session loaded before the block is loaded anew in it, and its own changes are not lost."""
    notes.add("a", "b")
    engine = create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with Session(engine, expire_on_commit=False) as session:
        first, second = session.get_one(Note, 1), session.get_one(Note, 2)
        second.text = "mine"
        notes.connection.execute("update public.note set text = 'changed' where id = 1")
        with headrace.sqlalchemy.snapshot(session):
            assert (session.get_one(Note, 1).text, second.text) == ("changed", "mine")
        session.commit()
        notes.connection.execute("update public.note set text = 'again'")
        with headrace.sqlalchemy.snapshot(session):
            assert (first.text, second.text) == ("again", "again")
    engine.dispose()


def test_objects_that_are_used_behind_an_asynchronous_block(database_url: str, notes: Notes) -> None:
    """They raise, as the README says, unless the session keeps what they hold; inside of the block they never do."""
    notes.add("a", "b")

    async def show(keep: bool) -> list[str]:
        engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with (
            AsyncSession(engine, expire_on_commit=not keep) as session,
            headrace.sqlalchemy.async_snapshot(session) as page,
        ):
            found = (await session.scalars(select(Note).order_by(Note.id))).all()
            assert [note.text for note in found] == ["a", "b"]
            assert await page.head("notes") == 2
        await engine.dispose()
        return [note.text for note in found]

    assert asyncio.run(show(keep=True)) == ["a", "b"]
    with pytest.raises(DetachedInstanceError):
        asyncio.run(show(keep=False))


def test_urls_and_elements(database_url: str, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL has the cursor of all its streams and the public URL where one is set; the element is escaped."""
    notes.add("a", "b")
    with psycopg.connect(database_url) as connection, headrace.snapshot(connection) as page:
        assert page.url("notes").startswith("/streams/")
        several = urlsplit(page.url(["other", "notes"], user="ada", audiences=["x"], ttl_s=60))
        assert parse_qs(several.query) == {"since": ["0.2"]}
        monkeypatch.setenv("HEADRACE_PUBLIC_URL", "https://streams.example/")
        html = page.element("notes", class_="live", with_credentials=True, resume=False, share='">', refresh=None)
        assert html.__html__() == html
        src = html.partition('src="')[2].partition('"')[0]
        assert src.startswith("https://streams.example/streams/")
        assert html.endswith(' class="live" with-credentials share="&quot;&gt;"></headrace-stream>')
        for name in ("state", "on click", "a=b", ""):
            with pytest.raises(UsageError, match="attribute"):
                page.element("notes", **{name: "x"})


def test_outside_of_a_block(database_url: str) -> None:
    """`current` finds the innermost block, by its name too, and refuses outside of any; other connections are named."""
    with pytest.raises(UsageError, match="no snapshot is held here"):
        current()
    with psycopg.connect(database_url) as connection, headrace.snapshot(connection) as page:
        assert current() is page
        with headrace.snapshot(connection) as inner:
            assert current() is inner
        assert current() is page
        with pytest.raises(UsageError, match="no snapshot of 'replica'"):
            current("replica")
    with pytest.raises(UsageError, match="no database connection"), headrace.snapshot(object()):
        pass
    assert isinstance(page, Snapshot)

    async def attempt() -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            with pytest.raises(UsageError, match="asynchronous"), headrace.snapshot(connection):
                pass

    asyncio.run(attempt())
