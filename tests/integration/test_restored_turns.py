"""Turns in copies of a log: what waited in the original is numbered in the copy, whatever the transactions' ids are."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema.migrations import migrate
from tests.fixtures.dumps import dump, restore
from tests.fixtures.postgres import Connect, Connection, scratch_postgres
from tests.fixtures.read_after import value
from tests.fixtures.rounds import Round, behind, do_round, events, turns

SPENT = """
    create temporary table spent (n int);
    do $$
    begin
        for n in 1..10000 loop
            begin
                insert into spent values (n);
            exception when division_by_zero then
                null;
            end;
        end loop;
    end $$"""
"""Uses up 10,000 ids of transactions, so that those of a new server are far below."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[EmbeddedPostgres]:
    """Another server, whose transactions have lower ids."""
    with scratch_postgres() as server:
        yield server


@pytest.fixture
def copies(
    postgres: EmbeddedPostgres, elsewhere: EmbeddedPostgres, database_url: str, tmp_path: Path
) -> Iterator["Copies"]:
    """Restores dumps of the test's database."""
    with ExitStack() as opened:
        yield Copies(postgres, elsewhere, database_url, tmp_path, opened)


class Copies:
    """Dumps a database, and restores each dump into a database of another server."""

    def __init__(
        self, source: EmbeddedPostgres, target: EmbeddedPostgres, url: str, directory: Path, opened: ExitStack
    ) -> None:
        self._source = source
        self._target = target
        self._url = url
        self._directory = directory
        self._opened = opened
        self._count = 0

    def copy(self, url: str | None = None) -> Connection:
        """A session in a copy of the test's database, or of another one, as it is now."""
        file = dump(self._source, url or self._url, self._directory / "dump")
        with psycopg.connect(self._target.database_url("postgres"), autocommit=True) as connection:
            connection.execute("drop database if exists restored with (force)")
            connection.execute("create database restored")
        restore(self._target, file, self._target.database_url("restored"), "--no-owner")
        return self.session()

    def session(self) -> Connection:
        """Another session in the copy."""
        connection = psycopg.connect(self._target.database_url("restored"), autocommit=True)
        self._opened.callback(connection.close)
        return connection


def datas(connection: Connection, stream: str = "s") -> list[str]:
    """The data of the stream's events, in the order of their ids."""
    return [data for _, data in events(connection, stream)]


@pytest.fixture
def waiting(connect: Connect, sequencer: Connection) -> Connection:
    """The original: 0 has its id; 1 to 4 wait in s, which a round has passed over; 5 and 6 wait in t; one is open."""
    publisher, holder, open_ = connect(autocommit=True), connect(), connect()
    publisher.execute(SPENT)
    publisher.execute("select headrace.publish_many(array['s', 't'], array['0', '0'])")
    open_.execute("select headrace.publish('s', 'never'); set constraints all immediate")
    assert do_round(sequencer) == Round(2, 0)
    publisher.execute("select headrace.publish_many(array['s', 's'], array['1', '2'])")
    holder.execute("select 1 from headrace.stream where name = 's' for update")
    assert do_round(sequencer) == Round(0, 1)
    publisher.execute("select headrace.publish_many(array['s', 't', 's'], array['3', '5', '4'])")
    publisher.execute("select headrace.publish('t', '6')")
    assert behind(publisher) == ["s"]
    return publisher


@pytest.mark.parametrize("first", ["round", "publish", "publish_now", "identity"])
def test_what_waited_is_numbered_in_a_copy(waiting: Connection, copies: Copies, first: str) -> None:
    """Once, in its order, before what is published in the copy, whoever numbers there first."""
    copy = copies.copy()
    expected = {"s": ["0", "1", "2", "3", "4"], "t": ["0", "5", "6"]}
    if first == "round":
        assert do_round(copy).skipped == 0
    elif first == "identity":
        copy.execute("select headrace.identity()")
    else:
        copy.execute(f"select headrace.{first}('s', 'new')".encode())
        expected["s"].append("new")
        assert datas(copy) == expected["s"]
    do_round(copy)
    copy.execute("select headrace.publish('t', 'newer')")
    expected["t"].append("newer")
    assert {stream: datas(copy, stream) for stream in "st"} == expected
    assert value(copy, "select count(*) from headrace.payload") == value(
        copy, "select count(*) from headrace.event where seq is not null"
    )
    assert do_round(copy) == Round(0, 0)
    copy.execute("select headrace.forget_turns()")
    assert turns(copy) == turns(copy, "t") == []
    assert value(copy, "select headrace.take_office()")
    copies.session().execute("select headrace.publish('s', 'last')")
    assert do_round(copy) == Round(1, 0)
    assert datas(copy) == [*expected["s"], "last"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_turns_that_are_left_in_a_copy_before_anybody_numbers(waiting: Connection, copies: Copies, level: str) -> None:
    """Their ids are below those that the copied snapshots cover; they are numbered all the same, behind what waited."""
    copy = copies.copy()
    for number in range(2):
        copy.execute(f"begin isolation level {level}".encode())
        copy.execute("select headrace.publish_many(array['s', 't'], array[%s, 'x'])", [f"new {number}"])
        copy.execute("commit")
    assert datas(copy) == ["0"]
    do_round(copy)
    assert datas(copy) == ["0", "1", "2", "3", "4", "new 0", "new 1"]
    assert datas(copy, "t") == ["0", "5", "6", "x", "x"]
    assert value(copy, "select count(distinct seq) from headrace.event") == 12


def test_numbers_of_a_copy_are_above_all_others(waiting: Connection, copies: Copies) -> None:
    """A cursor of the original names events without an id; no event of the copy has one of these numbers."""
    copy = copies.copy()
    waiting.execute("select headrace.publish('s', 'only in the original') from generate_series(1, 100)")
    highest = value(waiting, "select max(seq) from headrace.payload")
    copy.execute("begin isolation level repeatable read")
    copy.execute("select headrace.publish('s', 'new')")
    copy.execute("commit")
    assert value(copy, "select seq from headrace.payload where data = 'new'") > highest
    do_round(copy)
    copy.execute("select headrace.publish('s', 'newer')")
    assert value(copy, "select min(seq) from headrace.payload where data like 'new%%'") > highest
    assert value(copy, "select count(*) from headrace.payload where data <> '0' and seq <= %s", highest) == 0


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_a_copy_of_what_was_never_used(
    copies: Copies, connection: Connection, empty_database_url: str, level: str
) -> None:
    """A dump of a new schema has no snapshot that covers transactions of the server where it is restored."""
    connection.execute(SPENT)
    migrate(empty_database_url)
    copy, office, publisher = copies.copy(empty_database_url), copies.session(), copies.session()
    assert value(office, "select headrace.take_office()")
    for number in range(2):
        publisher.execute(f"begin isolation level {level}".encode())
        publisher.execute("select headrace.publish('s', %s)", [str(number)])
        publisher.execute("commit")
        assert do_round(copy) == Round(1, 0)
    assert events(copy) == [(1, "0"), (2, "1")]
