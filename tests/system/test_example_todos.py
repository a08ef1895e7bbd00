"""examples/todos: a Django project whose tests show how an application tests what it publishes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.embedded.postgres import EmbeddedPostgres
from tests.fixtures.up import ENVIRON

PROJECT = Path(__file__).parents[2] / "examples" / "todos"
DEADLINE_S = 120.0
SQL_MIGRATION = """
from django.db import migrations

PUBLISH = "select headrace.publish_changes('todos_todo', 'todolist:{todolist_id}', array['id', 'text', 'done'])"


class Migration(migrations.Migration):
    dependencies = [("todos", "0001_initial")]
    run_before = [("headrace", "0001_schema")]
    operations = [migrations.RunSQL(PUBLISH)]
"""


def run(project: Path, postgres: EmbeddedPostgres, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `manage.py` in the project, against the tests' PostgreSQL."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=project,
        env=ENVIRON | {"HEADRACE_DATABASE_URL": postgres.database_url("postgres"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )


def test_its_tests_pass_in_parallel(postgres: EmbeddedPostgres) -> None:
    """`manage.py test --parallel` makes the schema in each database, and tests of all kinds pass, with all checks."""
    done = run(PROJECT, postgres, "test", "--parallel", "2", "--noinput")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^Ran 6 tests in .*\n\nOK$", done.stdout, re.MULTILINE), done.stdout
    assert "System check identified no issues (0 silenced)." in done.stdout


def test_its_migrations_are_complete(postgres: EmbeddedPostgres) -> None:
    """Django finds no model without a migration, neither of the project's nor of headrace's."""
    done = run(PROJECT, postgres, "makemigrations", "--check", "--dry-run")
    assert (done.returncode, done.stdout) == (0, "No changes detected\n")


def test_a_migration_may_call_the_sql_before_headraces_own(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """In a copy whose migration calls `publish_changes` in SQL, and runs before headrace's, the tests pass as well."""
    project = tmp_path / "todos"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "todos" / "migrations" / "0002_publish.py").write_text(SQL_MIGRATION)
    done = run(project, postgres, "test", "todos.tests.test_publishing", "--noinput")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "publishing", "without", "failing"),
    [
        (
            "todos/views.py",
            r"\n +publish\(.*\)\n",
            "\n",
            "test_a_rename_is_published_by_the_view",
        ),
        (
            "todos/migrations/0002_publish.py",
            r"operations = .*\n",
            "operations = ()\n",
            "test_a_new_todo_is_published_by_the_trigger",
        ),
    ],
)
def test_a_publish_that_is_deleted_is_noticed(
    postgres: EmbeddedPostgres, tmp_path: Path, file: str, publishing: str, without: str, failing: str
) -> None:
    """In a copy of the project without one of its publishes, the test of that publish fails, and no other."""
    project = tmp_path / "todos"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    source, count = re.subn(publishing, without, (project / file).read_text())
    assert count == 1
    (project / file).write_text(source)
    done = run(project, postgres, "test", "todos.tests.test_publishing", "--noinput")
    assert re.findall(r"^FAIL: (\w+)", done.stdout, re.MULTILINE) == [failing], done.stdout
    assert "FAILED (failures=1)" in done.stdout
