"""Databases made from dumps of every kind: they work, or migrate says what is missing and what to do."""

from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.errors import SchemaError, UsageError
from headrace.schema.inventory import Inventory
from headrace.schema.migrations import migrate, migrations
from tests.fixtures.dumps import dump, restore
from tests.fixtures.postgres import Connection, execute, scratch_postgres


@pytest.fixture(scope="module")
def source(postgres: EmbeddedPostgres, module_database_url: str) -> str:
    """A database with an event of the stream s."""
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        connection.execute("select headrace.publish_now('s', 'x')")
    return module_database_url


def publishes(url: str) -> None:
    """Assert that headrace_publisher may publish, and not prune."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set role headrace_publisher")
        connection.execute("select headrace.publish('s', 'y')")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("select headrace.prune(1)")
        connection.execute("reset role")
        assert connection.execute("select data from headrace.kept_events() order by id").fetchall() == [("x",), ("y",)]


@pytest.mark.parametrize(
    ("dumped", "restored", "told"),
    [
        ([], [], []),
        (["--schema=headrace"], ["--no-owner"], []),
        ([], ["--no-privileges"], ["gave the role headrace_publisher its rights again"]),
    ],
    ids=["whole", "schema headrace alone", "without rights"],
)
def test_dumps_that_work(
    postgres: EmbeddedPostgres,
    source: str,
    empty_database_url: str,
    tmp_path: Path,
    dumped: list[str],
    restored: list[str],
    told: list[str],
) -> None:
    """With all parts a database works; rights that are missing or too many are given as the migrations give them."""
    restore(postgres, dump(postgres, source, tmp_path / "dump", *dumped), empty_database_url, *restored)
    said: list[str] = []
    assert migrate(empty_database_url, say=said.append) == []
    assert [line.partition(",")[0] for line in said] == told
    publishes(empty_database_url)
    said.clear()
    assert (migrate(empty_database_url, say=said.append), said) == ([], [])


@pytest.mark.parametrize(
    ("dumped", "restored", "message"),
    [
        (["--schema-only"], [], "has the table behind but no record of its version, as after a dump without data"),
        (["--exclude-table-data=headrace.slot_floor"], [], "lacks the rows of headrace.slot_floor, as after a part"),
        (["--exclude-table-data=headrace.deployment"], [], "lacks the rows of headrace.deployment"),
        (["--exclude-table-data=headrace.tick"], [], "lacks the rows of headrace.tick"),
        (["--exclude-table-data=headrace.round"], [], "lacks the rows of headrace.round"),
        (["--exclude-table=headrace.event"], [], r"lacks the table headrace.event, .* `drop schema headrace cascade`"),
        ([], ["--section=pre-data", "--section=data"], "lacks the index headrace.event_created_at, the trigger"),
    ],
    ids=["no data", "rows", "identity", "ticks", "round", "table", "no indexes and triggers"],
)
def test_parts_of_dumps(
    postgres: EmbeddedPostgres,
    source: str,
    empty_database_url: str,
    tmp_path: Path,
    dumped: list[str],
    restored: list[str],
    message: str,
) -> None:
    """What a part of a dump has left out is named, by migrate; after what it says to do, it works."""
    file = dump(postgres, source, tmp_path / "dump", *dumped)
    restore(postgres, file, empty_database_url, *restored, complaints=True)
    with pytest.raises(SchemaError, match=message):
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("drop schema headrace cascade")
    assert len(migrate(empty_database_url)) == len(migrations())


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("drop function headrace.prune", "function headrace.prune"),
        ("alter table headrace.stream disable trigger stream_removed", "trigger headrace.stream_removed"),
        ("drop index headrace.revocation_xid", "index headrace.revocation_xid"),
    ],
)
def test_what_somebody_has_removed(database_url: str, statement: str, missing: str) -> None:
    """A function, a trigger or an index that is not there any more, or disabled, is named."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement.encode())
    with pytest.raises(SchemaError, match=f"the schema lacks the {missing}, as"):
        migrate(database_url)


def test_a_dump_on_a_server_without_the_role(postgres: EmbeddedPostgres, source: str, tmp_path: Path) -> None:
    """Where headrace_publisher is missing it is created, or who may do so is told; then all have their rights."""
    file = dump(postgres, source, tmp_path / "dump")
    with scratch_postgres() as server:
        execute(server, "drop role headrace_publisher")
        execute(server, "create role app login password 'x'")
        execute(server, "create database app owner app")
        url = server.database_url("app")
        as_app = psycopg.conninfo.make_conninfo(url, user="app", password="x")
        restore(server, file, as_app, "--no-owner", complaints=True)
        with pytest.raises(UsageError, match="`CREATE ROLE headrace_publisher NOLOGIN`"):
            migrate(as_app)
        execute(server, "alter role app createrole")
        assert migrate(as_app) == []
        publishes(url)


def test_the_inventory_is_what_migrations_make(connection: Connection) -> None:
    """Every table, function, trigger and index of a migrated database, and every right, is in the inventory."""
    inventory = Inventory.of(migration.sql for migration in migrations())
    found = connection.execute(
        "select 'function', p.proname, '' from pg_proc p where p.pronamespace = 'headrace'::regnamespace"
        " union select case c.relkind when 'i' then 'index' else 'table' end, c.relname, '' from pg_class c"
        " where c.relnamespace = 'headrace'::regnamespace and c.relkind in ('r', 'i') and c.relname !~ '_p?key$'"
        " union select 'trigger', t.tgname, c.relname from pg_trigger t join pg_class c on c.oid = t.tgrelid"
        " where c.relnamespace = 'headrace'::regnamespace and not t.tgisinternal"
    ).fetchall()
    assert set(found) == {*inventory.parts, ("table", "migration", "")}
    granted = connection.execute(
        "select p.oid::regprocedure::text from pg_proc p cross join aclexplode(p.proacl) a"
        " where p.pronamespace = 'headrace'::regnamespace and a.grantee = 'headrace_publisher'::regrole"
    ).fetchall()
    assert {name.replace(", ", ",") for name in inventory.granted} == {name for (name,) in granted}
    assert inventory.has_rights(connection)
