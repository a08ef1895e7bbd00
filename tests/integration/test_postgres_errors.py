"""What each error of PostgreSQL becomes: an answer of the router, an exit status and a sentence of a command."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import errors

from headrace.cli import main
from headrace.cli.command import aligned
from headrace.doctor import examination
from headrace.doctor.finding import Finding, Level
from headrace.node.postgres_errors import meaning, said
from headrace.node.session import connect
from headrace.publisher_tokens import sign_publisher
from headrace.settings import Settings
from tests.fixtures.ports import free_port
from tests.fixtures.router import SECRET, Router
from tests.fixtures.shard import NOWHERE, Database

CLASSES = ("08", "0A", "22", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0", "P0", "XX")


@pytest.fixture
def router(database: Database) -> Iterator[Router]:
    made = Router(database_url=database.url, redis_url=NOWHERE, publish_deadline_s=60)
    yield made
    made.remove()


def post(router: Router) -> tuple[int, Any]:
    """What the answer to one event is."""
    token = sign_publisher("*", secrets=[SECRET])
    body = b'{"stream": "s", "data": "x"}'
    status, _, answer = router.get("/publish", method="POST", body=body, Authorization=f"Bearer {token}")
    return status, json.loads(answer)


def command(database: Database, *words: str) -> Result:
    return CliRunner().invoke(main, words, env={"HEADRACE_DATABASE_URL": database.url})


def test_every_class_has_its_answer() -> None:
    """Each class of errors has a sentence, an advice and a status; only what is the request's own fault is a 4xx."""
    for state, class_ in vars(errors).items():
        code = getattr(class_, "sqlstate", None)
        if not isinstance(code, str):
            continue
        found = meaning(class_("said\n\tso"))
        assert found.sentence and found.advice, state
        assert (found.status != 503) == (code[:2] in ("22", "54")), (code, found)
        if code[:2] in CLASSES:
            assert found.sentence != "PostgreSQL refused it", code
        assert said(class_("said\n\tso")).endswith("(said so)")
    assert meaning(psycopg.OperationalError("nobody there")).sentence == "PostgreSQL cannot be reached"
    assert meaning(psycopg.ProgrammingError("no URL")).status == 400


def test_a_read_only_database_is_named(database: Database, router: Router) -> None:
    """Publishing answers 503 with the reason, commands and the doctor say it in a line, and what only reads works."""
    name = database.connection.info.dbname
    database.publish("s", "before")
    database.connection.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    status, body = post(router)
    assert status == 503
    assert "the database is read-only" in body["error"] and "Idempotency-Key" in body["error"]
    result = command(database, "publish", "s", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("headrace: the database is read-only (cannot execute ")
    assert "default_transaction_read_only" in result.stderr and result.stderr.count("\n") == 1
    assert command(database, "members", "s").exit_code == 0
    database.connection.execute(f"alter database {name} reset default_transaction_read_only".encode())
    assert post(router) == (200, {"id": 2})


def test_a_standby_is_told_from_a_server_that_is_away(database: Database) -> None:
    """The doctor names a database that may only be read at the front door, and not that PostgreSQL is to be started."""
    name = database.connection.info.dbname
    database.connection.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    with connect(database.url, "test") as session, pytest.raises(psycopg.Error) as caught:
        session.execute("select headrace.publish_now('s', 'x')")
    (finding,) = examination._guarded("front door", "start PostgreSQL", _raising(caught.value))
    assert finding.level is Level.FAIL
    assert finding.found.startswith("the database is read-only (")
    assert "default_transaction_read_only" in finding.advice


def test_no_error_breaks_a_line(database: Database) -> None:
    """libpq's errors have several lines; a row of a table, a finding and the sentence of a command have one."""
    with pytest.raises(psycopg.OperationalError) as caught:
        connect(f"postgresql://u@127.0.0.1:{free_port()}/x", "test")
    assert "\n" in str(caught.value)
    settings = Settings(database_url=f"postgresql://u@127.0.0.1:{free_port()}/x", node="n")
    found = next(finding for finding in examination.examine(settings) if finding.check == "postgresql")
    assert "\n" not in found.found and "start it, or correct the URL" in found.advice
    assert list(aligned([("id", "last_error"), ("n-0", str(caught.value))]))[1].startswith("n-0  ")
    assert len("".join(aligned([("a", str(caught.value))])).splitlines()) == 1
    result = CliRunner().invoke(main, ["members", "s"], env={"HEADRACE_DATABASE_URL": settings.database_url})
    assert result.exit_code == 1
    assert result.stderr.startswith("headrace: PostgreSQL cannot be reached (") and result.stderr.count("\n") == 1


def _raising(error: BaseException) -> Callable[[], Finding]:
    def check() -> Finding:
        raise error

    return check
