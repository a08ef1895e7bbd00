"""headrace/doctor/rights.py: what the doctor says of owners, parts, publishers and pruning."""

import psycopg

from headrace.doctor import examination, rights, streams
from headrace.doctor.finding import Finding, Level
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.settings import Settings
from tests.fixtures.postgres import Connection, execute, superuser_url


def says(finding: Finding, level: Level, *words: str) -> bool:
    return finding.level is level and all(word in f"{finding.found} {finding.advice}" for word in words)


def test_parts_that_are_missing(connection: Connection) -> None:
    """A schema that lacks a function, and one whose role has no rights, fail with what to do."""
    assert says(rights.parts(connection), Level.OK)
    connection.execute("grant execute on function headrace.prune(int) to public")
    assert says(rights.parts(connection), Level.FAIL, "everybody has some", "headrace migrate")
    connection.execute("drop function headrace.prune(int)")
    assert says(rights.parts(connection), Level.FAIL, "lacks the function headrace.prune")


def test_publishers(postgres: EmbeddedPostgres, connection: Connection, database_url: str) -> None:
    """Who may publish in this database is listed; who may write to a table is told of, with the statement."""
    execute(postgres, "create role talking login")
    execute(postgres, "create role scribbling login")
    try:
        assert "talking" not in rights.publishers(connection).found
        execute(postgres, "grant headrace_publisher to talking")
        assert says(rights.publishers(connection), Level.OK, "may publish here", "talking")
        connection.execute(f"revoke connect on database {connection.info.dbname} from public".encode())
        assert "talking" not in rights.publishers(connection).found
        connection.execute("grant insert on headrace.event to scribbling")
        assert says(
            rights.publishers(connection),
            Level.WARN,
            "scribbling has INSERT",
            "revoke all on headrace.event from scribbling",
        )
    finally:
        with psycopg.connect(superuser_url(postgres, database_url)) as superuser:
            superuser.execute("drop owned by scribbling, talking")
        execute(postgres, "drop role talking")
        execute(postgres, "drop role scribbling")


def test_how_many_streams_there_are(connection: Connection) -> None:
    """About how many streams the log has is told, and is never a fault."""
    connection.execute("select headrace.publish_many(array['a', 'b'], array['x', 'x'])")
    assert says(streams.streams(connection), Level.OK, "about 2")


def test_pruning_that_stands_still(connection: Connection) -> None:
    """Where nothing was pruned for long, or not yet, that is said."""
    assert says(rights.pruning(connection), Level.OK, "not begun")
    connection.execute("select headrace.prune(1)")
    assert says(rights.pruning(connection), Level.OK, "s ago")
    connection.execute("update headrace.fence set next_at = now() - interval '1 hour'")
    assert says(rights.pruning(connection), Level.WARN, "3600 s ago", "start a shard")


def test_a_doctor_runs_nothing_of_strangers(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    """In a schema that somebody else has made the doctor, a superuser, looks at catalogs alone and says whose it is."""
    execute(postgres, "create role trapping login password 'x'")
    try:
        url = superuser_url(postgres, empty_database_url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table public.ran (role text); grant all on public.ran to public")
            connection.execute("create schema headrace authorization trapping; set role trapping")
            connection.execute(
                "create function headrace.spy() returns int language plpgsql as"
                " $$ begin insert into public.ran values (current_user); return 1; end $$"
            )
            for table, columns in {"migration": "version, 0 as oldest", "fence": "next_at"}.items():
                connection.execute(f"create view headrace.{table} as select headrace.spy() as {columns}".encode())
            connection.execute(
                "create function headrace.publish_now(text, text, text, text) returns bigint language sql as"
                " 'select headrace.spy()::bigint'; reset role"
            )
            settings = Settings.from_environ(
                {
                    "HEADRACE_DATABASE_URL": url,
                    "HEADRACE_SECRET": "x" * 32,
                    "HEADRACE_PUBLIC_URL": "http://127.0.0.1:1",
                }
            )
            found = {finding.check: finding for finding in examination.examine(settings)}
            assert connection.execute("select * from public.ran").fetchall() == []
            for check in ("schema", "schema parts", "pruning", "numbering", "streams", "front door"):
                assert says(found[check], Level.FAIL, "belongs to trapping")
            connection.execute("drop owned by trapping")
    finally:
        execute(postgres, "drop role trapping")
