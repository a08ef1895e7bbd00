"""Ids after fail-over and after a crash, on real clusters: none that was ever handed out comes back."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import headrace
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema.identity import identity
from headrace.schema.migrations import migrate
from tests.fixtures.postgres import execute, scratch_postgres
from tests.fixtures.waiting import wait_until

MICROSECONDS_IN_2020 = 1_577_836_800_000_000
Connection = psycopg.Connection[Any]


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    # The log writer is kept from flushing what a commit should have flushed.
    with scratch_postgres(wal_writer_delay="10s") as server:
        migrate(server.url)
        yield server


@pytest.fixture
def standby() -> Iterator[EmbeddedPostgres]:
    with scratch_postgres() as server:
        yield server


def connect(server: EmbeddedPostgres) -> Connection:
    return psycopg.connect(server.url, autocommit=True)


def copy_as_standby(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Make the standby a cold copy of the primary that follows it; both run afterwards."""
    standby.stop()
    primary.stop()
    data = standby.home / "data"
    shutil.rmtree(data)
    subprocess.run(["cp", "-a", primary.home / "data", data], check=True)
    for kept in ("postgres.password", "postgres.owner"):
        shutil.copy(primary.directory / kept, standby.directory / kept)
    signal = data / "standby.signal"
    signal.touch()
    owner = data.stat()
    os.chown(signal, owner.st_uid, owner.st_gid)
    primary.start()
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"primary_conninfo = '{primary.database_url('postgres')}'\n")
    standby.start()


def publish(connection: Connection, stream: str) -> int:
    row = connection.execute("select headrace.publish_now(%s, 'x')", [stream]).fetchone()
    assert row is not None
    return int(row[0])


def read_after(connection: Connection, stream: str, after: int) -> tuple[int, list[int] | None, list[int]]:
    """(head, jumps, ids) of a stream."""
    rows = connection.execute(
        "select head, jumps, id from headrace.read_after(array[%s], array[%s::bigint], 100, 100000)",
        [stream, after],
    ).fetchall()
    return rows[0][0], rows[0][1], [row[2] for row in rows if row[2] is not None]


def test_failover_that_loses_commits(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """After promotion of a standby that lacks commits no id is used again, jumps are recorded, the identity stays."""
    with connect(primary) as connection:
        named = identity(connection)
        assert [publish(connection, "s") for _ in range(2)] == [1, 2]
        assert publish(connection, "quiet") == 1
    copy_as_standby(primary, standby)
    with connect(primary) as connection:
        assert publish(connection, "s") == 3
    with connect(standby) as connection:
        # The standby streams, and answers readers.
        wait_until(lambda: read_after(connection, "s", 1) == (3, None, [2, 3]), "the standby has event 3")
        assert identity(connection) == named
    standby.stop()
    with connect(primary) as connection:
        assert [publish(connection, "s"), publish(connection, "lost")] == [4, 1]
    primary.kill()

    standby.start()
    with connect(standby) as connection:
        execute(standby, "select pg_promote()")
        wait_until(lambda: connection.execute("select not pg_is_in_recovery()").fetchone() == (True,), "promotion")
        assert read_after(connection, "s", 3) == (3, None, [])
        start = publish(connection, "s") - 1
        assert MICROSECONDS_IN_2020 < start < 1 << 53
        assert publish(connection, "s") == start + 2
        assert read_after(connection, "s", 3) == (start + 2, [4, start], [start + 1, start + 2])
        assert read_after(connection, "s", start) == (start + 2, None, [start + 1, start + 2])
        # A client may hold ids of a stream that this server has never seen.
        assert publish(connection, "lost") == start + 1
        assert read_after(connection, "lost", 1) == (start + 1, [1, start], [start + 1])
        connection.execute("select headrace.publish_many(array['quiet', 'new'], array['x', 'y'])")
        assert read_after(connection, "quiet", 1) == (start + 1, [2, start], [start + 1])
        assert read_after(connection, "new", 0) == (start + 1, [1, start], [start + 1])
        assert identity(connection) == named


def test_a_crash_with_asynchronous_commits(primary: EmbeddedPostgres) -> None:
    """With synchronous_commit off a published event survives the crash of the server, so its id stays taken."""
    with connect(primary) as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute("select headrace.publish('s', 'x')")
        assert publish(connection, "s") == 2
        primary.kill()
    primary.start()
    with connect(primary) as connection:
        assert read_after(connection, "s", 0) == (2, None, [1, 2])
        assert publish(connection, "s") == 3
        assert connection.execute("select count(*) from headrace.turn").fetchone() == (0,)


def test_a_crash_after_a_turn(primary: EmbeddedPostgres) -> None:
    """An event that was left to a shard survives a crash of the server, whatever its transaction asks for at last."""
    with connect(primary) as office, connect(primary) as connection:
        office.execute("select headrace.take_office()")
        with connection.transaction():
            connection.execute("select headrace.publish('s', 'x')")
            connection.execute("set local synchronous_commit = off")
        assert connection.execute("select headrace.head('s')").fetchone() == (0,)
        primary.kill()
    primary.start()
    with connect(primary) as connection:
        connection.execute("select headrace.sequence()")
        assert read_after(connection, "s", 0) == (1, None, [1])


def test_a_restart_is_no_jump(primary: EmbeddedPostgres) -> None:
    """A restart stays on its timeline: ids go on without a gap."""
    with connect(primary) as connection:
        publish(connection, "s")
    primary.stop()
    primary.start()
    with connect(primary) as connection:
        assert publish(connection, "s") == 2
        assert read_after(connection, "s", 0) == (2, None, [1, 2])


def test_a_page_of_a_standby(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """A standby's watermark is that of what it shows: with the events that the primary has not numbered by then."""
    with connect(primary) as connection:
        assert publish(connection, "s") == 1
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            headrace.publish(connection, "s", "pending")
        row = connection.execute("select seq from headrace.payload where data = 'pending'").fetchone()
        assert row is not None
    copy_as_standby(primary, standby)
    with psycopg.connect(standby.url) as reader, connect(standby) as other, connect(primary) as connection:
        with headrace.snapshot(reader) as page:
            assert page.watermark("s") == f"1-{row[0]}"
            assert publish(connection, "s") == 3
            wait_until(lambda: headrace.watermark(other, "s") == "3", "the standby has what the primary numbered")
            assert page.watermark("s") == f"1-{row[0]}"
        reader.execute("select")
        with headrace.snapshot(reader) as page:
            assert publish(connection, "s") == 4
            wait_until(lambda: headrace.head(other, "s") == 4, "the standby has the next event")
            assert page.watermark("s") == "3"
