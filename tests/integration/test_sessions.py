"""Sessions of headrace's own: what they state, whatever role, database, pooler and environment say."""

from typing import Any

import psycopg
import pytest

from headrace.node.kept_session import KeptSession
from headrace.node.session import Session, block, connect
from tests.fixtures.pooler import pooler
from tests.fixtures.postgres import Connection
from tests.fixtures.waiting import wait_until

STATED = {
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "array_nulls": "on",
    "transaction_isolation": "read committed",
    "client_encoding": "UTF8",
}
ODD = {
    "search_path": "public, pg_catalog",
    "statement_timeout": "1min",
    "lock_timeout": "1min",
    "idle_in_transaction_session_timeout": "1min",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "TimeZone": "Asia/Kathmandu",
    "row_security": "off",
}
TEXT = "Ω € \\ ' \" \\n \u2028 ж"


def settings(session: psycopg.Connection[Any], *names: str) -> dict[str, str]:
    """What settings are within one statement."""
    columns = ", ".join(f"pg_catalog.current_setting('{name}')" for name in names)
    row = session.execute(f"select {columns}".encode()).fetchone()
    assert row is not None
    return dict(zip(names, row, strict=True))


@pytest.fixture
def odd_url(connection: Connection, database_url: str) -> str:
    """A database whose settings are as odd as its owner can make them."""
    name = connection.info.dbname
    for setting, value in ODD.items():
        text = value if "," in value else f"'{value}'"
        connection.execute(f"alter database {name} set {setting} = {text}".encode())
    return database_url


def carries(session: Session) -> None:
    """Texts, arrays with nulls and bytes come and go unchanged."""
    row = session.execute(
        "select %s::text, %s::text[], %s::bytea, %s::bigint[]",
        (TEXT, [TEXT, None, ""], b"\0\\\xff", [None]),
    ).fetchone()
    assert row is not None
    assert row[0] == TEXT
    assert row[1] == [TEXT, None, ""]
    assert bytes(row[2]) == b"\0\\\xff"
    assert row[3] == [None]


@pytest.mark.parametrize("encoding", ["", "LATIN1", "SQL_ASCII", "EUC_JP"])
def test_each_statement_states_what_it_relies_on(odd_url: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the database's settings nor the environment's reach a statement, alone or in a block; they come back
    behind it, for whoever shares the session."""
    if encoding:
        monkeypatch.setenv("PGCLIENTENCODING", encoding)
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=50000")
    with connect(odd_url, "test") as session:
        assert settings(session, *STATED) == STATED
        carries(session)
        with block(session, "set local statement_timeout = 1234"):
            found = settings(session, *STATED, "idle_in_transaction_session_timeout")
            assert found == {**STATED, "statement_timeout": "1234ms", "idle_in_transaction_session_timeout": "0"}
            carries(session)
        with connect(odd_url, "test", limit_s=1.5) as limited:
            assert settings(limited, "statement_timeout") == {"statement_timeout": "1500ms"}
        inherited = psycopg.Cursor(session).execute("show search_path").fetchone()
        assert inherited == (ODD["search_path"],)


def test_settings_hold_behind_a_pooler_and_are_nobody_elses(database_url: str) -> None:
    """Two share one server session: neither do the other's settings reach headrace, nor headrace's the other."""
    with pooler(database_url, size=1) as behind, psycopg.connect(behind, autocommit=True) as other:
        other.execute("set statement_timeout = '40s'; set search_path = public; set array_nulls = off")
        with connect(behind, "test") as session:
            assert settings(session, *STATED) == STATED
            carries(session)
            with block(session):
                assert settings(session, *STATED) == STATED
        assert settings(other, "statement_timeout", "search_path", "array_nulls") == {
            "statement_timeout": "40s",
            "search_path": "public",
            "array_nulls": "off",
        }


def end(connection: Connection, name: str) -> None:
    """End the session of this name, and wait until it is no more."""
    named = "from pg_stat_activity where datname = current_database() and application_name = %s"
    assert connection.execute(f"select pg_terminate_backend(pid) {named}", [name]).fetchall() == [(True,)]
    left = f"select count(*) {named}"
    wait_until(lambda: connection.execute(left, [name]).fetchone() == (0,), "the session has ended")


def test_a_session_that_has_died_is_made_anew(connection: Connection, database_url: str) -> None:
    """A read is answered though its session has ended since the last one, and so is a write, before it is sent."""
    kept = KeptSession(database_url, "kept")
    try:
        for use in (kept.read, kept.write):
            assert use(lambda session: session.execute("select 1").fetchone()) == (1,)
            end(connection, "kept")
            assert use(lambda session: session.execute("select 2").fetchone()) == (2,)
        assert kept.reopened == 2
    finally:
        kept.close()


def test_what_may_have_been_committed_is_not_repeated(connection: Connection, database_url: str) -> None:
    """A write whose session ends in the middle of it fails, and runs once; the next one has a new session."""
    kept = KeptSession(database_url, "kept")
    begun = []

    def write(session: Session) -> None:
        begun.append(session)
        end(connection, "kept")
        session.execute("select 1")

    try:
        kept.write(lambda session: session.execute("select 1"))
        with pytest.raises(psycopg.OperationalError):
            kept.write(write)
        assert len(begun) == 1
        assert kept.write(lambda session: session.execute("select 3").fetchone()) == (3,)
    finally:
        kept.close()


def test_what_is_refused_keeps_the_session(database_url: str) -> None:
    """An error of a statement is no reason to try it again, or to connect anew."""
    kept = KeptSession(database_url, "kept")
    asked = []
    try:
        for use in (kept.read, kept.write):
            for statement, error in (("select 1/0", psycopg.DataError), ("select 1; selec", psycopg.ProgrammingError)):
                with pytest.raises(error):
                    use(lambda session: asked.append(session) or session.execute(statement.encode()))  # type: ignore[func-returns-value]  # noqa: B023
        assert len(asked) == 4
        assert len(set(map(id, asked))) == 1
    finally:
        kept.close()


def test_functions_depend_on_no_setting_of_their_callers(connection: Connection) -> None:
    """Each function of the schema fixes its search path, or is for the owner alone, whose callers have; and where its
    text has a backslash, how backslashes are read."""
    functions = connection.execute(
        "select p.oid::regprocedure::text, coalesce(p.proconfig::text, ''), p.prosrc,"
        " has_function_privilege('headrace_publisher', p.oid, 'execute')"
        " from pg_proc p where p.pronamespace = 'headrace'::regnamespace"
    ).fetchall()
    assert len(functions) > 40
    for name, config, source, granted in functions:
        assert "search_path" in config or not granted, name
        assert "standard_conforming_strings=on" in config or "\\" not in source, name


def test_a_backslash_in_a_pattern_is_one(connection: Connection, database_url: str) -> None:
    """Under standard_conforming_strings = off, which turns the backslashes of a text into something else."""
    with psycopg.connect(database_url, autocommit=True, options="-c standard_conforming_strings=off") as odd:
        odd.execute("select headrace.set_retention('a%%_b*', interval '1 hour')", [])
    stored = connection.execute("select like_pattern from headrace.retention where pattern like 'a%'").fetchone()
    assert stored == ("a\\%\\_b%",)
