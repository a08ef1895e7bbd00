"""shard/postgres/announcer.py round by round, at a database of its own."""

import psycopg
import pytest

from headrace.settings import Settings
from headrace.shard.postgres import announcer
from headrace.shard.postgres.announcer import Announcer
from tests.fixtures.postgres import Connection


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings.from_environ({"HEADRACE_DATABASE_URL": database_url, "HEADRACE_REDIS_URL": "redis://127.0.0.1:1/0"})


def leave(connection: Connection, database_url: str, count: int) -> None:
    """Publish single events and leave announcing them to somebody."""
    connection.execute("select headrace.take_office()")
    with psycopg.connect(database_url, autocommit=True) as publisher:
        for _ in range(count):
            publisher.execute("select headrace.publish('s', 'x')")
            publisher.execute("select headrace.publish_now('s', 'x')")


def vacuums(connection: Connection) -> dict[str, int]:
    """How often each table that rounds empty was vacuumed by hand."""
    connection.execute("select pg_stat_clear_snapshot()")
    rows = connection.execute(
        "select relname, vacuum_count from pg_stat_all_tables"
        " where schemaname = 'headrace' and relname in ('stage', 'unannounced')"
    )
    return dict(rows.fetchall())


def test_taken_rows_are_removed_now_and_then(
    connection: Connection, database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tables are vacuumed once so many transactions were announced; a large stage is left to autovacuum."""
    part = Announcer(settings, "n-0")
    monkeypatch.setattr(announcer, "VACUUM_AFTER", 8)
    leave(connection, database_url, 3)
    assert part._round(connection)[0] == 6
    assert vacuums(connection) == {"stage": 0, "unannounced": 0}
    leave(connection, database_url, 1)
    assert part._round(connection)[0] == 2
    assert vacuums(connection) == {"stage": 1, "unannounced": 1}
    assert part._round(connection)[0] == 0
    monkeypatch.setattr(announcer, "VACUUM_BYTES", 0)
    leave(connection, database_url, 4)
    assert part._round(connection)[0] == 8
    assert vacuums(connection) == {"stage": 1, "unannounced": 2}


def test_large_rows_are_removed_before_the_table_has_grown_too_large(
    connection: Connection, database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its size a table is vacuumed as well, now and then, so that the announcer does not leave for its own rows."""
    part = Announcer(settings, "n-0")
    monkeypatch.setattr(announcer, "MOST_BYTES", 4 * 8192)
    monkeypatch.setattr(announcer, "VACUUM_S", 600.0)
    part._vacuumed_at -= 600.0
    leave(connection, database_url, 1)
    part._round(connection)
    assert vacuums(connection)["unannounced"] == 0
    many = "select array_agg(i) from generate_series(1, 60000) i group by i / 400"
    connection.execute(f"insert into headrace.unannounced {many}".encode())
    for _ in range(3):
        leave(connection, database_url, 1)
        part._round(connection)
    assert vacuums(connection)["unannounced"] == 1


def test_no_office_is_taken_with_a_stage_that_cannot_be_looked_at(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where an old snapshot keeps very many rows, transactions go on notifying by themselves, and the log says why."""
    part = Announcer(settings, "n-0")
    monkeypatch.setattr(announcer, "LARGEST_STAGE", -1)
    part._serve(connection)
    assert not part.in_office
    assert connection.execute("select headrace.take_office()").fetchone() == (True,)
    assert "rows of headrace.stage cannot be removed" in caplog.text
