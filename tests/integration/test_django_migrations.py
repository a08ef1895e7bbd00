"""headrace's migrations, operations and checks for Django."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connections, migrations, models
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.test.utils import override_settings

import headrace.django.migrations
from headrace import signing, tokens
from headrace.django.operations import PublishChanges, UnpublishChanges, UpgradeSchema
from headrace.errors import SchemaError, SettingsError, UsageError
from headrace.schema import versions
from headrace.schema.migrations import check, migrate
from tests.fixtures.django import databases
from tests.integration.test_publish import events

ALL = [migration.version for migration in versions.migrations()]


class NoHeadrace:
    """A database router that lets every application migrate but headrace."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "headrace" else None


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[str]:
    with databases(default=empty_database_url, lite="sqlite"):
        yield empty_database_url


@pytest.fixture
def made(database_url: str) -> Iterator[str]:
    with databases(default=database_url, lite="sqlite"):
        yield database_url


def applied(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        if connection.execute("select to_regclass('headrace.migration') is null").fetchone() == (True,):
            return []
        return [version for (version,) in connection.execute("select version from headrace.migration order by 1")]


def manage(*arguments: str, **options: Any) -> None:
    call_command(*arguments, verbosity=0, interactive=False, **options)


def test_the_last_migration_is_for_the_last_version() -> None:
    """`manage.py migrate` has something to do whenever `headrace migrate` has.

    If this fails: a release with a new file in headrace/sql has a migration for Django, too. Raise the number in the
    one that is not released yet, or add one.
    """
    (folder,) = headrace.django.migrations.__path__
    last = sorted(path.stem for path in Path(folder).glob("0*.py"))[-1]
    (operation,) = importlib.import_module(f"headrace.django.migrations.{last}").Migration.operations
    assert operation.to == ALL[-1]


def test_manage_and_the_command_agree(empty: str) -> None:
    """`manage.py migrate` makes the schema; afterwards the command finds nothing to do. Undoing leaves it."""
    manage("migrate")
    check(empty)
    assert migrate(empty) == []
    manage("migrate", "headrace", "zero")
    assert applied(empty) == ALL
    manage("migrate")
    assert applied(empty) == ALL


def test_manage_after_the_command(made: str) -> None:
    """Where `headrace migrate` has run first, `manage.py migrate` has nothing to do."""
    manage("migrate")
    assert applied(made) == ALL


def test_a_newer_database_is_an_error(made: str) -> None:
    """`manage.py migrate` says what to install, and `check` does before it."""
    with psycopg.connect(made) as connection:
        connection.execute("insert into headrace.migration (version, oldest) values (9999, 9999)")
    with pytest.raises(SchemaError, match="install the headrace that migrated it"):
        manage("migrate", skip_checks=True)
    assert found("database", databases=["default"]) == ["headrace.E002"]


def test_other_databases_are_left_alone(empty: str) -> None:
    """SQLite, and a database whose router does not let headrace migrate, get no schema."""
    manage("migrate", database="lite")
    with override_settings(DATABASE_ROUTERS=[NoHeadrace()]):
        manage("migrate")
    assert applied(empty) == []


def test_migrations_may_be_turned_off(empty: str) -> None:
    """Where Django makes tables without migrations, as tests may have it, headrace makes its schema all the same."""
    with override_settings(MIGRATION_MODULES={"headrace": None}):
        manage("migrate", run_syncdb=True)
    check(empty)


def state() -> ProjectState:
    """A project whose application `todos` has the model Todo."""
    made = ProjectState()
    fields = {
        "id": models.AutoField(primary_key=True),
        "todolist_id": models.IntegerField(),
        "text": models.TextField(),
    }
    migrations.CreateModel("Todo", list(fields.items())).state_forwards("todos", made)
    return made


def apply(operation: Any, backwards: bool = False, alias: str = "default") -> list[str]:
    """Run an operation as Django does, and return the SQL that sqlmigrate would show."""
    project = state()
    written = []
    for collect in (True, False):
        with connections[alias].schema_editor(collect_sql=collect) as editor:
            run = operation.database_backwards if backwards else operation.database_forwards
            run("todos", editor, project, project)
        written += editor.collected_sql if collect else []
    return written


def create_table(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create table todos_todo (id int primary key, todolist_id int, text text)")


def insert(url: str, id_: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("insert into todos_todo values (%s, 7, 'x')", [id_])


def test_an_operation_publishes_and_reverses(empty: str) -> None:
    """PublishChanges makes the triggers, and the schema where it is missing; undone, it removes them."""
    create_table(empty)
    operation = PublishChanges("Todo", "todolist:{todolist_id}", columns=["id"], old=True, visible_to="staff")
    (sql,) = apply(operation)
    assert """publish_changes('"todos_todo"'::pg_catalog.text""" in sql
    insert(empty, 1)
    apply(operation, backwards=True)
    insert(empty, 2)
    ((stream, _, data, type_, label),) = events(empty)
    assert (stream, type_, label, '"row": {"id": 1}' in data) == ("todolist:7", "insert", "staff", True)
    check(empty)


def test_its_opposite_reverses_too(made: str) -> None:
    """UnpublishChanges ends one stream, and brings it back with its options when it is undone."""
    create_table(made)
    apply(PublishChanges("todo", "todos"))
    apply(PublishChanges("todo", "todolist:{todolist_id}", visible_to="staff"))
    ending = UnpublishChanges("todo", "todolist:{todolist_id}", visible_to="staff")
    apply(ending)
    insert(made, 1)
    apply(ending, backwards=True)
    insert(made, 2)
    assert [(stream, id_, label) for stream, id_, _, _, label in events(made)] == [
        ("todolist:7", 1, "staff"),
        ("todos", 1, None),
        ("todos", 2, None),
    ]


def test_operations_are_written_as_they_are_read() -> None:
    """A migration file that Django writes, as when migrations are squashed, has the operations with their options."""
    operations = [
        UpgradeSchema(28),
        PublishChanges("Todo", "s", columns=["id"], old=True, visible_to="staff"),
        UnpublishChanges("Todo", "{{s}}"),
    ]
    written = MigrationWriter(type("Migration", (migrations.Migration,), {"operations": operations})("0002", "todos"))
    names: dict[str, Any] = {}
    exec(written.as_string(), names)
    again = names["Migration"].operations
    for one, other in zip(again, operations, strict=True):
        assert type(one) is type(other)
        assert {**vars(one), "_constructor_args": None} == {**vars(other), "_constructor_args": None}
    assert all(each.describe() for each in again)
    assert again[1].migration_name_fragment == "publish_todo"
    assert again[1].references_model("todo", "todos")


def test_what_no_table_allows_is_refused_when_the_migration_is_read(made: str) -> None:
    """A wrong option fails before anything is migrated; triggers on SQLite fail with the reason."""
    with pytest.raises(UsageError, match="columns must be a list of names"):
        PublishChanges("Todo", "s", columns="id")
    with pytest.raises(UsageError, match="'lite' is sqlite; triggers that publish are in PostgreSQL"):
        apply(PublishChanges("Todo", "s"), alias="lite")


def found(tag: str, **options: Any) -> list[str]:
    return [message.id for message in checks.run_checks(tags=[tag], **options) if message.id.startswith("headrace")]


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No secret and no public URL are warnings, a misspelt setting is an error; settings.HEADRACE has them all."""
    monkeypatch.chdir(tmp_path)
    for name in ("HEADRACE_SECRET", "HEADRACE_PUBLIC_URL"):
        monkeypatch.delenv(name, raising=False)
    assert found("security") == ["headrace.W001", "headrace.W002"]
    with override_settings(HEADRACE={"SECRET": "a secret that tests sign with", "PUBLIC_URL": ""}):
        assert found("security") == []
    for wrong in ({"SECRT": "x"}, {"SECRET": "short"}, {"HEADRACE_SECRET": "x" * 20}, {"secret": "x" * 20}, ["SECRET"]):
        with override_settings(HEADRACE=wrong):
            assert found("security") == ["headrace.E001"], wrong


def test_pages_sign_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """settings.HEADRACE is used where the environment has nothing else, and the environment wins."""
    monkeypatch.delenv("HEADRACE_SECRET", raising=False)
    secrets = ["a secret that tests sign with", "another secret of theirs"]
    with override_settings(HEADRACE={"SECRET": secrets, "PUBLIC_URL": "https://streams.example.com", "DEMO": True}):
        assert tokens.verify(signing.sign("s").rpartition("/")[2], secrets=secrets[:1]).streams == ("s",)
        assert signing.origin() == "https://streams.example.com"
        monkeypatch.setenv("HEADRACE_SECRET", "a secret of the environment")
        token = signing.sign("s").rpartition("/")[2]
        assert tokens.verify(token, secrets=["a secret of the environment"]).streams == ("s",)
    with override_settings(HEADRACE={"SECRT": "x"}), pytest.raises(SettingsError, match="perhaps HEADRACE_SECRET"):
        signing.sign("s")


def test_the_schema_is_checked(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing schema and an older one are warnings that `migrate` mends; databases that are not asked for are not."""
    assert found("database") == []
    assert found("database", databases=["default", "lite"]) == ["headrace.W003"]
    with monkeypatch.context() as older:
        older.setattr("headrace.schema.migrations.migrations", lambda: versions.migrations()[:-1])
        migrate(empty)
    assert found("database", databases=["default"]) == ["headrace.W003"]
    manage("migrate")
    assert found("database", databases=["default"]) == []


def test_atomic_requests_are_pointed_out(made: str) -> None:
    """A database with ATOMIC_REQUESTS is a warning, which says how views have exact snapshots."""
    assert found("compatibility") == []
    connections.settings["lite"]["ATOMIC_REQUESTS"] = True
    assert [message.obj for message in checks.run_checks(tags=["compatibility"])] == ["lite"]
    assert found("compatibility") == ["headrace.W004"]
