"""Copies of a database: each gives out ids of its own, above those of its original, and has an identity of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from headrace.cli import main
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema.identity import identity
from tests.fixtures.dumps import dump, restore
from tests.fixtures.postgres import NUMBERS, Connection, execute
from tests.fixtures.waiting import DEADLINE_S

Copy = Callable[[str], str]


@pytest.fixture
def new_database(postgres: EmbeddedPostgres) -> Iterator[Copy]:
    """Makes a database, by what follows CREATE DATABASE and its name; returns its URL."""
    with ExitStack() as made:

        def new(how: str = "") -> str:
            name = f"copy_{next(NUMBERS)}"
            execute(postgres, f"create database {name} {how}")
            made.callback(execute, postgres, f"drop database {name} with (force)")
            return postgres.database_url(name)

        yield new


@contextmanager
def opened(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def publish(connection: Connection, stream: str, count: int = 1) -> list[int]:
    """Publish so many events, each in a transaction of its own; their ids."""
    ids = []
    for _ in range(count):
        row = connection.execute("select headrace.publish_now(%s, 'x')", [stream]).fetchone()
        assert row is not None
        ids.append(int(row[0]))
    return ids


def read_after(connection: Connection, stream: str, after: int) -> tuple[int, list[int] | None, list[int]]:
    """(head, jumps, ids) of a stream."""
    rows = connection.execute(
        "select head, jumps, id from headrace.read_after(array[%s], array[%s::bigint], 100, 100000)", [stream, after]
    ).fetchall()
    return rows[0][0], rows[0][1], [row[2] for row in rows if row[2] is not None]


def goes_on_above(url: str, after: int, before: int) -> int:
    """Publish in a copy whose original had the stream s up to `before` when it was copied and was at `after` since.

    Asserts that a client that has seen `after` is inside a recorded jump, and that ids have no gap from there on.
    Returns the last id of the jump.
    """
    with opened(url) as connection:
        first, *rest = publish(connection, "s", 3)
        assert (rest, first > after) == ([first + 1, first + 2], True)
        assert read_after(connection, "s", after) == (first + 2, [before + 1, first - 1], [first, *rest])
        assert before < after < first - 1
        connection.execute("select headrace.publish_many(array['s', 'new'], array['x', 'x'])")
        assert read_after(connection, "s", first + 2) == (first + 3, None, [first + 3])
        # A client may have seen any id of a stream that the original has made after it was copied.
        assert read_after(connection, "new", 1)[1:] == ([1, first - 1], [first])
    return first - 1


def test_dumps_that_are_restored(
    postgres: EmbeddedPostgres, new_database: Copy, database_url: str, tmp_path: Path
) -> None:
    """A dump restored elsewhere, twice, and in place of what it was made of gives no id out that anybody has seen."""
    with opened(database_url) as connection:
        assert publish(connection, "s", 5) == [1, 2, 3, 4, 5]
        named = identity(connection)
    file = dump(postgres, database_url, tmp_path / "dump")
    with opened(database_url) as connection:
        assert publish(connection, "s", 5) == [6, 7, 8, 9, 10]
        assert identity(connection) == named
    urls = [new_database("template template0"), new_database("template template0"), database_url]
    starts = []
    for url, options in zip(urls, ([], [], ["--clean", "--if-exists"]), strict=True):
        restore(postgres, file, url, *options)
        starts.append(goes_on_above(url, after=10, before=5))
    assert starts == sorted(set(starts))
    identities = {named}
    for url in urls:
        with opened(url) as connection:
            identities.add(identity(connection))
            assert publish(connection, "s") == [read_after(connection, "s", 0)[0]]
    assert len(identities) == 4


@pytest.mark.parametrize("options", [[], ["--disable-triggers"]])
def test_data_alone_that_are_restored(
    postgres: EmbeddedPostgres, database_url: str, tmp_path: Path, options: list[str]
) -> None:
    """A dump of the data that is loaded into the same tables, emptied before, is another incarnation."""
    with opened(database_url) as connection:
        publish(connection, "s", 5)
        named = identity(connection)
        file = dump(postgres, database_url, tmp_path / "dump", "--data-only", "--schema=headrace")
        publish(connection, "s", 5)
        tables = connection.execute(
            "select relname from pg_class where relnamespace = 'headrace'::regnamespace"
            " and relkind = 'r' order by relname = 'slot_floor', relname"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"delete from headrace.{table}".encode())
    restore(postgres, file, database_url, *options)
    goes_on_above(database_url, after=10, before=5)
    with opened(database_url) as connection:
        assert identity(connection) != named


def test_a_clone(new_database: Copy, database_url: str) -> None:
    """A clone by CREATE DATABASE … TEMPLATE is another deployment, whose ids begin above; its original goes on."""
    with opened(database_url) as connection:
        publish(connection, "s", 5)
        named = identity(connection)
        name = connection.info.dbname
    clone = new_database(f"template {name}")
    with opened(clone) as connection:
        assert identity(connection) != named
    goes_on_above(clone, after=10, before=5)
    with opened(database_url) as connection:
        assert (publish(connection, "s"), identity(connection)) == ([6], named)


def test_a_clone_of_what_was_never_used(new_database: Copy) -> None:
    """Where nobody has published, a copy is as good as new: it begins at 1, with an identity of its own."""
    first, second = new_database("template headrace_template"), new_database("template headrace_template")
    with opened(first) as one, opened(second) as other:
        assert (publish(one, "s", 2), publish(other, "s", 2)) == ([1, 2], [1, 2])
        assert identity(one) != identity(other)


def test_nobody_waits_for_who_publishes_first(new_database: Copy) -> None:
    """Where nobody has published yet, an open transaction that does first holds up no other stream; ids begin at 1."""
    url = new_database("template headrace_template")
    with opened(url) as one, opened(url) as other:
        with one.transaction():
            assert publish(one, "s") == [1]
            assert publish(other, "t", 2) == [1, 2]
        named = identity(other)
        assert (publish(one, "s"), publish(other, "t"), identity(one)) == ([2], [3], named)
    with opened(new_database(f"template {psycopg.conninfo.conninfo_to_dict(url)['dbname']}")) as copy:
        assert (publish(copy, "s")[0] > 2, identity(copy) != named) == (True, True)


def test_a_clone_is_noticed_once(new_database: Copy, database_url: str) -> None:
    """However many publish first, and also from within savepoints, a copy begins one incarnation."""
    with opened(database_url) as connection:
        publish(connection, "s")
    clone = new_database(f"template {psycopg.conninfo.conninfo_to_dict(database_url)['dbname']}")
    ids: list[int] = []

    def publish_in_savepoint() -> None:
        with opened(clone) as connection:
            for _ in range(3):
                with connection.transaction(), connection.transaction():
                    ids.extend(publish(connection, "s"))

    threads = [threading.Thread(target=publish_in_savepoint) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    start = min(ids) - 1
    assert sorted(ids) == list(range(start + 1, start + 13))
    with opened(clone) as connection:
        assert read_after(connection, "s", 1)[1] == [2, start]
        assert connection.execute("select start from headrace.deployment").fetchone() == (start,)


def test_the_identity_of_what_cannot_be_written(new_database: Copy, database_url: str) -> None:
    """In a read-only transaction the identity is that of the original; a role that may only publish can ask for it."""
    with opened(database_url) as connection:
        named = identity(connection)
        name = connection.info.dbname
    with opened(new_database(f"template {name}")) as connection:
        connection.execute("set default_transaction_read_only = on")
        assert identity(connection) == named
        connection.execute("set default_transaction_read_only = off")
        connection.execute("set role headrace_publisher")
        another = identity(connection)
        assert another != named
        connection.execute("set default_transaction_read_only = on")
        assert identity(connection) == another


def test_a_new_block(database_url: str) -> None:
    """Where a disk was restored an operator begins a new block: the same deployment, or another one beside it."""
    with opened(database_url) as connection:
        publish(connection, "s", 5)
        named = identity(connection)
    assert str(named) in new_block(database_url)
    first = goes_on_above(database_url, after=10, before=5)
    told = new_block(database_url, "--new-identity")
    with opened(database_url) as connection:
        (second,) = publish(connection, "s")
        another = identity(connection)
    assert (second > first + 4, another != named, str(another) in told) == (True, True, True)


def new_block(url: str, *options: str) -> str:
    """What the command `headrace new-block` prints."""
    done = CliRunner().invoke(
        main, ["new-block", *options], env={"HEADRACE_DATABASE_URL": url, "HEADRACE_TEST_POSTGRES": None}
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_a_clock_that_is_behind(connection: Connection) -> None:
    """Ids go on a million above the last one where the clock shows less than that."""
    publish(connection, "s")
    ahead = 1 << 52
    connection.execute("update headrace.stream set last_id = %s", [ahead])
    connection.execute("select headrace.begin_block()")
    assert publish(connection, "s") == [ahead + (1 << 20) + 1]
    connection.execute("update headrace.deployment set start = %s, writer = xmin", [ahead])
    connection.execute("select headrace.begin_block()")
    assert publish(connection, "new") == [ahead + (1 << 20) + 1]
