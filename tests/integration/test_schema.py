"""Migrating: once, twice, at once, and against databases that will not do."""

import threading
from collections.abc import Callable
from functools import partial

import psycopg
import pytest

from headrace.embedded.free_port import choose
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.errors import DatabaseUnavailableError, DatabaseVersionError, SchemaError, UsageError
from headrace.schema.migrations import (
    Migration,
    check,
    migrate,
    migrations,
    require_current,
    require_server_version,
)
from tests.fixtures.postgres import execute, scratch_postgres
from tests.fixtures.waiting import DEADLINE_S, wait_until

VERSIONS = [migration.version for migration in migrations()]


def start(calls: list[Callable[[], list[int]]]) -> tuple[list[threading.Thread], list[list[int]]]:
    """Make the calls at once; return their threads and the list to which their results are added."""
    results: list[list[int]] = []

    def make(call: Callable[[], list[int]]) -> None:
        results.append(call())

    threads = [threading.Thread(target=make, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    return threads, results


def as_user(url: str, user: str) -> str:
    return psycopg.conninfo.make_conninfo(url, user=user, password="x")


def test_versions_are_numbered_without_gaps() -> None:
    """The migrations are the versions 1, 2, 3 … in order."""
    assert list(range(1, len(VERSIONS) + 1)) == VERSIONS


def test_migrating_is_idempotent(empty_database_url: str) -> None:
    """The first migration applies every version, the second none, and then the schema is current."""
    with pytest.raises(SchemaError, match="no schema of headrace"):
        check(empty_database_url)
    assert migrate(empty_database_url) == VERSIONS
    assert migrate(empty_database_url) == []
    check(empty_database_url)


def test_two_migrations_at_once(empty_database_url: str) -> None:
    """Of several migrations at the same time one does the work, and the others wait and find it done."""
    threads, results = start([partial(migrate, empty_database_url)] * 4)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(results) == [[], [], [], VERSIONS]


def test_two_databases_of_a_new_server_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The role, which all databases share, is made once, though several migrations find it missing."""
    # Else they wait for a moment at a time, and all three at once only by chance.
    monkeypatch.setattr("headrace.schema.migrations.LOCK_TIMEOUT_S", DEADLINE_S)
    with scratch_postgres() as server:
        execute(server, "drop role headrace_publisher")
        names = ["a", "b", "c"]
        for name in names:
            execute(server, f"create database {name}")
        with psycopg.connect(server.database_url("postgres")) as holder:
            holder.execute("create role headrace_publisher nologin")  # the others meet it uncommitted
            threads, results = start([partial(migrate, server.database_url(name)) for name in names])
            with psycopg.connect(server.database_url("postgres"), autocommit=True) as observer:
                waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                wait_until(lambda: observer.execute(waiting).fetchone() == (3,), "three migrations wait")
            holder.rollback()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert results == [VERSIONS] * 3


def test_a_migration_that_fails_changes_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the last file leaves no trace of those before it."""
    broken = [*migrations()[:-1], type(migrations()[0])(VERSIONS[-1], b"select 1/0")]
    monkeypatch.setattr("headrace.schema.migrations.migrations", lambda: broken)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_database_url)
    monkeypatch.undo()
    with pytest.raises(SchemaError, match="no schema of headrace"):
        check(empty_database_url)


def test_an_older_schema_is_refused(database_url: str) -> None:
    """A schema that lacks a version is refused with the fix."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("delete from headrace.migration where version = %s", [VERSIONS[-1]])
        with pytest.raises(SchemaError, match="headrace migrate"):
            require_current(connection)


def test_a_newer_schema_is_used_unless_it_says_otherwise(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer headrace's migration leaves this version working, until one says that it does not."""
    known, following = migrations(), VERSIONS[-1] + 1
    adding = Migration(following, b"create table headrace.later (x int)")
    breaking = Migration(following + 1, b"-- oldest: %d\ndrop table headrace.later" % following)
    with psycopg.connect(database_url, autocommit=True) as connection:
        monkeypatch.setattr("headrace.schema.migrations.migrations", lambda: [*known, adding])
        assert migrate(database_url) == [adding.version]
        monkeypatch.undo()
        require_current(connection)
        assert migrate(database_url) == []
        monkeypatch.setattr("headrace.schema.migrations.migrations", lambda: [*known, adding, breaking])
        assert migrate(database_url) == [breaking.version]
        require_current(connection)
        monkeypatch.undo()
        for call in (lambda: require_current(connection), lambda: migrate(database_url)):
            with pytest.raises(SchemaError, match=f"version {breaking.version}, newer than this headrace's"):
                call()


def test_a_user_without_rights(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    """A user who may not create the schema is told so."""
    execute(postgres, "drop role if exists nobody_special")
    execute(postgres, "create role nobody_special login password 'x'")
    with pytest.raises(UsageError, match="permission denied for database"):
        migrate(as_user(empty_database_url, "nobody_special"))


def test_a_user_who_may_not_create_roles() -> None:
    """Where the role is missing and may not be created, the message names the statement for a superuser."""
    with scratch_postgres() as server:
        execute(server, "drop role headrace_publisher")
        execute(server, "create role app login password 'x'")
        execute(server, "create database app owner app")
        url = as_user(server.database_url("app"), "app")
        with pytest.raises(UsageError, match="run `CREATE ROLE headrace_publisher NOLOGIN` as a superuser"):
            migrate(url)
        execute(server, "create role headrace_publisher nologin")
        assert migrate(url) == VERSIONS
        with psycopg.connect(url) as connection:
            connection.execute("select headrace.publish('s', 'x')")
            connection.commit()
            connection.execute("select headrace.prune(1)")


def test_an_old_server_is_refused() -> None:
    """A server before version 14 is refused by its number; 14.0 is not."""
    with pytest.raises(DatabaseVersionError, match=r"PostgreSQL is version 13\.4; .* PostgreSQL 14 or newer"):
        require_server_version(130004)
    require_server_version(140000)


def test_another_encoding_is_refused(postgres: EmbeddedPostgres) -> None:
    """A database that is not in UTF8 is refused: not every name and payload could be stored."""
    execute(postgres, "drop database if exists latin")
    execute(postgres, "create database latin encoding 'LATIN1' locale 'C' template template0")
    with pytest.raises(UsageError, match="encoding is 'LATIN1'"):
        migrate(postgres.database_url("latin"))
    execute(postgres, "drop database latin")


def test_a_server_that_is_away() -> None:
    """A server that cannot be reached, and a URL that is none, raise errors that say what to do."""
    with pytest.raises(DatabaseUnavailableError, match="start it or correct HEADRACE_DATABASE_URL"):
        migrate(f"postgresql://postgres@127.0.0.1:{choose()}/x")
    with pytest.raises(UsageError, match="HEADRACE_DATABASE_URL"):
        migrate("postgresql://host/x?nonsense=1")


def test_a_server_that_hangs_up_is_away(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who ends the session, as a server that stops does, is no error of the schema's."""

    def end(connection: psycopg.Connection[object]) -> None:
        connection.execute("select pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr("headrace.schema.migrations.require_server", end)
    with pytest.raises(DatabaseUnavailableError, match="lost"):
        check(database_url)
