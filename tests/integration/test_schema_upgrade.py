"""The schema in an application's own migrations: over every driver, beside `headrace migrate`, and with Alembic."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

import headrace
from headrace.errors import MigrationBlockedError, OwnershipError, SchemaError, UsageError
from headrace.schema import versions
from headrace.schema.migrations import check, migrate
from tests.fixtures.waiting import DEADLINE_S, wait_until
from tests.integration.test_publish import events

ALL = [migration.version for migration in versions.migrations()]


@contextmanager
def with_psycopg(url: str) -> Iterator[Any]:
    with psycopg.connect(url) as connection:
        yield connection


@contextmanager
def with_psycopg2(url: str) -> Iterator[Any]:
    with closing(psycopg2.connect(url)) as connection, connection:
        yield connection


@contextmanager
def with_sqlalchemy(url: str, driver: str = "psycopg") -> Iterator[Any]:
    engine = sqlalchemy.create_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def over_asyncpg(url: str) -> list[int]:
    async def run() -> list[int]:
        engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.begin() as connection:
            applied: list[int] = await connection.run_sync(headrace.upgrade_schema)
        await engine.dispose()
        return applied

    return asyncio.run(run())


def over(connect: Callable[[str], Any]) -> Callable[[str], list[int]]:
    def run(url: str) -> list[int]:
        with connect(url) as connection:
            return headrace.upgrade_schema(connection)

    return run


WAYS = {
    "psycopg": over(with_psycopg),
    "psycopg2": over(with_psycopg2),
    "sqlalchemy": over(with_sqlalchemy),
    "sqlalchemy-psycopg2": over(lambda url: with_sqlalchemy(url, "psycopg2")),
    "asyncpg": over_asyncpg,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_agrees_with_the_command(empty_database_url: str, way: str) -> None:
    """Over each driver the schema is made, whole; then neither the function nor the command finds anything to do."""
    assert WAYS[way](empty_database_url) == ALL
    check(empty_database_url)
    assert WAYS[way](empty_database_url) == []
    assert migrate(empty_database_url) == []


@pytest.mark.parametrize("way", ["psycopg2", "asyncpg"])
def test_it_goes_on_where_an_older_command_ended(
    empty_database_url: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command of an older version has made is brought up; nothing is applied twice."""
    with monkeypatch.context() as older:
        known = versions.migrations()[:-2]
        older.setattr("headrace.schema.migrations.migrations", lambda: known)
        assert migrate(empty_database_url) == ALL[:-2]
    assert WAYS[way](empty_database_url) == ALL[-2:]
    check(empty_database_url)


def test_a_rollback_undoes_it(empty_database_url: str) -> None:
    """The schema belongs to the caller's transaction, whose settings stay as they are."""
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("set local statement_timeout = '7s'")
        before = connection.execute("select current_setting('search_path'), current_setting('lock_timeout')").fetchone()
        headrace.upgrade_schema(connection)
        settings = "select current_setting('search_path'), current_setting('lock_timeout')"
        assert connection.execute(settings).fetchone() == before
        assert connection.execute("show statement_timeout").fetchone() == ("7s",)
        connection.rollback()
        assert connection.execute("select to_regnamespace('headrace')").fetchone() == (None,)


def test_a_newer_database_is_refused(database_url: str) -> None:
    """The error says which version the database has and what to install; the transaction goes on."""
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into headrace.migration (version, oldest) values (9999, 9999)")
        with pytest.raises(SchemaError, match=r"version 9999, newer than .* install the headrace that migrated it"):
            headrace.upgrade_schema(connection)
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_lock_is_tried_and_given_back(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another transaction holds a lock, the upgrade fails alone; the transaction can try again afterwards."""
    with monkeypatch.context() as older:
        older.setattr("headrace.schema.migrations.migrations", lambda: versions.migrations()[:-1])
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as holder, psycopg.connect(empty_database_url) as connection:
        holder.execute("lock table headrace.migration in share row exclusive mode")
        with pytest.raises(MigrationBlockedError):
            headrace.upgrade_schema(connection, patience_s=0)
        holder.rollback()
        assert headrace.upgrade_schema(connection) == ALL[-1:]


def test_the_command_waits_for_it(empty_database_url: str) -> None:
    """A command that runs while an application's migration is open finds nothing to do when that has committed."""
    said: list[str] = []
    applied: list[list[int]] = []
    with psycopg.connect(empty_database_url) as connection:
        headrace.upgrade_schema(connection)
        thread = threading.Thread(target=lambda: applied.append(migrate(empty_database_url, say=said.append)))
        thread.start()
        wait_until(lambda: said, "the command waits for the open migration")
    thread.join(DEADLINE_S)
    assert applied == [[]]


def test_what_cannot_be_done_is_refused(empty_database_url: str, postgres: Any) -> None:
    """Autocommit, a high isolation level, no connection, and a stranger's schema: each with what to do."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        with pytest.raises(UsageError, match="is in autocommit; bring up the schema in a transaction"):
            headrace.upgrade_schema(connection)
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            with pytest.raises(UsageError, match="READ COMMITTED"):
                headrace.upgrade_schema(connection)
    with pytest.raises(UsageError, match="no database connection"):
        headrace.upgrade_schema(None)
    name = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    with psycopg.connect(postgres.database_url(str(name))) as superuser:
        superuser.execute("create role tourist")
        superuser.execute("create schema headrace authorization tourist")
        superuser.commit()
        try:
            tourists = pytest.raises(OwnershipError, match="the schema headrace belongs to tourist")
            with psycopg.connect(empty_database_url) as connection, tourists:
                headrace.upgrade_schema(connection)
        finally:
            superuser.execute("drop schema headrace; drop role tourist")


def test_a_role_without_the_right_is_told_what_it_needs(empty_database_url: str, postgres: Any) -> None:
    """The error names the role and what a superuser can do for it."""
    name = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    with psycopg.connect(postgres.database_url(str(name))) as superuser:
        superuser.execute("create role weak")
        superuser.execute("set role weak")
        with pytest.raises(UsageError, match=r"permission denied.*CREATE SCHEMA headrace AUTHORIZATION weak"):
            headrace.upgrade_schema(superuser)
        superuser.rollback()


def test_a_schema_of_another_role_is_left_to_it(database_url: str, postgres: Any) -> None:
    """For a superuser, or a role that may only publish, there is nothing to do, until the schema lacks a part."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres.database_url(str(name))) as superuser:
        assert headrace.upgrade_schema(superuser) == []
        superuser.execute("create role publishing in role headrace_publisher")
        superuser.execute("set local role publishing")
        assert headrace.upgrade_schema(superuser) == []
        superuser.execute("reset role")
        superuser.execute("drop function headrace.member_count(text)")
        superuser.execute("set local role publishing")
        with pytest.raises(OwnershipError, match=r"lacks the function headrace.member_count .* as headrace_owner"):
            headrace.upgrade_schema(superuser)
        superuser.rollback()


ENV = """
from alembic import context
from sqlalchemy import create_engine

engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
REVISION = """
import headrace
import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    headrace.upgrade_schema(op.get_bind())
    op.create_table("todo", sa.Column("id", sa.Integer, primary_key=True), sa.Column("todolist_id", sa.Integer))
    headrace.publish_changes(op.get_bind(), "todo", "todolist:{todolist_id}", columns=["id"], visible_to="staff")


def downgrade():
    headrace.unpublish_changes(op.get_bind(), "todo", "todolist:{todolist_id}")
"""


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_revision_of_alembic(empty_database_url: str, tmp_path: Path, driver: str) -> None:
    """One revision makes the schema and publishes a table's changes; its downgrade ends that."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "versions" / "1_todo.py").write_text(REVISION)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", empty_database_url.replace("postgresql:", f"postgresql+{driver}:"))
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        alembic.command.upgrade(config, "head")
        assert migrate(empty_database_url) == []
        connection.execute("insert into todo values (1, 7)")
        alembic.command.downgrade(config, "base")
        connection.execute("insert into todo values (2, 7)")
    ((stream, id_, data, type_, label),) = events(empty_database_url)
    assert (stream, id_, type_, label) == ("todolist:7", 1, "insert", "staff")
    assert '"row": {"id": 1}' in data


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((b"t", "s"), {}), (("t", None), {}), (("t", "s"), {"columns": "id"}), (("t", "s"), {"visible_to": ""})],
)
def test_changes_are_refused_before_anything_is_sent(arguments: Any, options: Any) -> None:
    """Arguments that no table allows raise without a connection."""
    with pytest.raises(UsageError):
        headrace.publish_changes(object(), *arguments, **options)
