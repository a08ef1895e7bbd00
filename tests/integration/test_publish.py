"""Publishing from Python over every kind of connection, always in the caller's own transaction."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.rows import args_row, class_row, dict_row, namedtuple_row, scalar_row

from headrace.errors import EventError, StreamNameError, UsageError
from headrace.publish import head, publish, publish_many, publish_now, set_retention, watermark
from tests.fixtures.django import databases

Kind = Callable[[str], Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]]


@contextmanager
def with_psycopg(url: str, **options: Any) -> Iterator[Any]:
    with closing(psycopg.connect(url, **options)) as connection:
        yield connection, connection.commit, connection.rollback


class Row:
    """What somebody makes of rows, with a name of its own for the column."""

    def __init__(self, id: int) -> None:
        self.number = id


@contextmanager
def with_cursor(url: str, cursor: Callable[[Any], Any] = lambda connection: connection.cursor()) -> Iterator[Any]:
    with closing(psycopg.connect(url)) as connection, closing(cursor(connection)) as opened:
        yield opened, connection.commit, connection.rollback


@contextmanager
def with_psycopg2(url: str, **options: Any) -> Iterator[Any]:
    psycopg2 = pytest.importorskip("psycopg2")
    extras = pytest.importorskip("psycopg2.extras")
    factory = extras.RealDictCursor if options.get("dicts") else None
    with closing(psycopg2.connect(url, cursor_factory=factory)) as connection:
        yield (
            connection.cursor(options["name"]) if "name" in options else connection,
            connection.commit,
            connection.rollback,
        )


@contextmanager
def with_sqlalchemy(url: str, driver: str) -> Iterator[Any]:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
    with engine.connect() as connection:
        yield connection, connection.commit, connection.rollback
    engine.dispose()


@contextmanager
def with_session(url: str, scoped: bool) -> Iterator[Any]:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    session = orm.scoped_session(orm.sessionmaker(engine)) if scoped else orm.Session(engine)
    with closing(session):
        yield session, session.commit, session.rollback
    engine.dispose()


@contextmanager
def with_django(url: str) -> Iterator[Any]:
    with databases(default=url) as connections:
        connection = connections["default"]
        connection.set_autocommit(False)
        yield connection, connection.commit, connection.rollback


KINDS = {
    "psycopg": with_psycopg,
    "psycopg, dict rows": lambda url: with_psycopg(url, row_factory=dict_row),
    "psycopg, named tuples": lambda url: with_psycopg(url, row_factory=namedtuple_row),
    "psycopg, scalars": lambda url: with_psycopg(url, row_factory=scalar_row),
    "psycopg, objects": lambda url: with_psycopg(url, row_factory=class_row(Row)),
    "psycopg, arguments": lambda url: with_psycopg(url, row_factory=args_row(lambda id: f"row {id}")),
    "psycopg, client-side binding": lambda url: with_psycopg(url, cursor_factory=psycopg.ClientCursor),
    "psycopg, raw cursors": lambda url: with_psycopg(url, cursor_factory=psycopg.RawCursor),
    "psycopg, a cursor": with_cursor,
    "psycopg, a raw cursor": lambda url: with_cursor(url, lambda connection: psycopg.RawCursor(connection)),
    "psycopg, a server-side cursor": lambda url: with_cursor(url, lambda connection: connection.cursor("named")),
    "psycopg2": with_psycopg2,
    "psycopg2, dict rows": lambda url: with_psycopg2(url, dicts=True),
    "psycopg2, a named cursor": lambda url: with_psycopg2(url, name="named"),
    "SQLAlchemy, psycopg": lambda url: with_sqlalchemy(url, "psycopg"),
    "SQLAlchemy, psycopg2": lambda url: with_sqlalchemy(url, "psycopg2"),
    "SQLAlchemy session": lambda url: with_session(url, scoped=False),
    "SQLAlchemy scoped session": lambda url: with_session(url, scoped=True),
    "Django": with_django,
}


def events(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "select s.name, e.id, e.data, e.type, e.visible_to from headrace.kept_events() e"
            " join headrace.stream s using (stream_id) order by 1, 2"
        ).fetchall()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_connection(database_url: str, kind: str) -> None:
    """Events are published with the connection's transaction: not before its commit, never after a rollback."""
    with KINDS[kind](database_url) as (connection, commit, rollback):
        publish(connection, "s", "never")
        rollback()
        publish(connection, "s", "100 % 'ü' \\ %s")
        publish(connection, "s", "b", event="tick", visible_to="staff")
        publish_many(connection, ["s", "t"], ["c", "d"], events=[None, "tock"], visible_to=["x", None])
        publish_many(connection, ["t"], ["e"])
        publish_many(connection, [], [])
        assert head(connection, "s") == 0
        assert events(database_url) == []
        commit()
        assert head(connection, "s") == 3
        assert watermark(connection, "s") == "3"
        assert publish_now(connection, "s", "f", event="now") == 4
        rollback()
        assert publish_now(connection, "s", "g") == 4
        set_retention(connection, "s", timedelta(days=1, microseconds=1), 100)
        set_retention(connection, "t", timedelta(hours=1))
        set_retention(connection, "t", None)
        commit()
    assert events(database_url) == [
        ("s", 1, "100 % 'ü' \\ %s", None, None),
        ("s", 2, "b", "tick", "staff"),
        ("s", 3, "c", None, "x"),
        ("s", 4, "g", None, None),
        ("t", 1, "d", "tock", None),
        ("t", 2, "e", None, None),
    ]
    with psycopg.connect(database_url) as check:
        rules = check.execute("select pattern, keep, keep_count from headrace.retention order by 1").fetchall()
    assert rules == [("*", timedelta(minutes=5), None), ("s", timedelta(days=1, microseconds=1), 100)]


def test_autocommit(database_url: str) -> None:
    """On a connection in autocommit each call is a transaction of its own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        publish(connection, "s", "a")
        publish_many(connection, ["s", "s"], ["b", "c"])
        assert publish_now(connection, "s", "d") == 4
        assert (head(connection, "s"), watermark(connection, "s")) == (4, "4")


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("", "x"), {}, StreamNameError),
        (("é" * 257, "x"), {}, StreamNameError),
        (("a\0b", "x"), {}, StreamNameError),
        (("\ud800", "x"), {}, StreamNameError),
        ((b"s", "x"), {}, StreamNameError),
        (("s", "a\0b"), {}, EventError),
        (("s", "\ud800"), {}, EventError),
        (("s", {"json": {1}}), {}, EventError),
        (("s", None), {}, EventError),
        (("s", "x"), {"event": ""}, EventError),
        (("s", "x"), {"event": "a\nb"}, EventError),
        (("s", "x"), {"event": "a\rb"}, EventError),
        (("s", "x"), {"event": "a\0b"}, EventError),
        (("s", "x"), {"event": "headrace:gap"}, EventError),
        (("s", "x"), {"event": "e" * 513}, EventError),
        (("s", "x"), {"visible_to": ""}, EventError),
        (("s", "x"), {"visible_to": "l" * 513}, EventError),
    ],
)
@pytest.mark.parametrize("function", [publish, publish_now])
def test_refused_before_anything_is_sent(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    """What cannot be published raises before the connection is touched, so the transaction stays usable."""
    with pytest.raises(error):
        function(None, *arguments, **options)
    with pytest.raises(error):
        publish_many(
            None, [arguments[0]], [arguments[1]], **{name + "s" * (name == "event"): [v] for name, v in options.items()}
        )


@pytest.mark.parametrize(
    "arguments",
    [
        (["s"], []),
        (["s"], ["x"], [None, None]),
        ("s", ["x"]),
        (["s"], "x"),
    ],
)
def test_refused_sequences(arguments: tuple[Any, ...]) -> None:
    """Sequences of different lengths, and a text in place of a sequence, are refused."""
    streams, data, *rest = arguments
    with pytest.raises(EventError):
        publish_many(None, streams, data, events=rest[0] if rest else None)


@pytest.mark.parametrize(
    "arguments",
    [("", timedelta(1)), ("*", timedelta(0)), ("*", 5), ("*", timedelta(1), 0), ("*", None, 5), (None, timedelta(1))],
)
def test_refused_retention(arguments: tuple[Any, ...]) -> None:
    """Rules that make no sense raise before the connection is touched."""
    with pytest.raises(UsageError):
        set_retention(None, *arguments)


def test_dicts_and_lists_are_json(database_url: str) -> None:
    """Each way to publish encodes a dict or a list; a value that cannot be encoded leaves the transaction as it was."""
    with psycopg.connect(database_url) as connection:
        publish(connection, "json", {"id": 1, "price": Decimal("1.50")})
        with pytest.raises(EventError, match=r"data\['items'\]\[0\] is <object"):
            publish(connection, "json", {"items": [object()]})
        publish_many(connection, ["json", "json"], [["a"], "text"])
        connection.commit()
        publish_now(connection, "json", {"last": "ü"})
    assert [event[2] for event in events(database_url)] == [
        '{"id": 1, "price": "1.50"}',
        '["a"]',
        "text",
        '{"last": "ü"}',
    ]
