"""Ids after fail-over and after a crash, on real clusters: none that was ever handed out comes back."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import headrace
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema.identity import identity
from headrace.schema.migrations import migrate
from tests.fixtures.postgres import execute, scratch_postgres
from tests.fixtures.waiting import DEADLINE_S, wait_until

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


def test_turns_that_wait_survive_a_promotion(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """The promoted standby numbers what waited in its order, and nobody waits for the first publisher there.

    Payloads get numbers above all that clients of the lost primary may know.
    """
    with connect(primary) as connection, connect(primary) as office:
        assert publish(connection, "s") == 1
        assert office.execute("select headrace.take_office()").fetchone() == (True,)
        connection.execute("select headrace.publish('s', 'waits')")
    copy_as_standby(primary, standby)
    with connect(primary) as connection, connect(primary) as office, connect(standby) as reader:
        assert office.execute("select headrace.take_office()").fetchone() == (True,)
        connection.execute("select headrace.publish('s', 'waits, too')")
        at = connection.execute("select headrace.watermark('s')").fetchone()
        assert at is not None
        assert str(at[0]).startswith("1-")
        wait_until(
            lambda: reader.execute("select headrace.watermark('s')").fetchone() == at, "the standby has both events"
        )
    standby.stop()
    with connect(primary) as connection:
        connection.execute("select headrace.publish('s', 'lost') from generate_series(1, 100)")
        highest = connection.execute("select max(seq) from headrace.payload").fetchone()
        assert highest is not None
    primary.kill()

    standby.start()
    with connect(standby) as long, connect(standby) as connection, connect(standby) as office:
        execute(standby, "select pg_promote()")
        wait_until(lambda: connection.execute("select not pg_is_in_recovery()").fetchone() == (True,), "promotion")
        assert office.execute("select headrace.take_office()").fetchone() == (True,)
        connection.execute("set lock_timeout = '10s'")
        with long.transaction():
            long.execute("select headrace.publish('s', 'open')")
            connection.execute("select headrace.publish('s', 'new')")
            assert office.execute("select transactions from headrace.sequence()").fetchone() == (3,)
        assert office.execute("select transactions from headrace.sequence()").fetchone() == (1,)
        head, jumps, ids = read_after(connection, "s", 1)
        assert jumps is not None
        assert ids == [jumps[1] + number for number in range(1, 5)] == list(range(head - 3, head + 1))
        rows = connection.execute("select data from headrace.kept_events() order by id offset 1").fetchall()
        assert [data for (data,) in rows] == ["waits", "waits, too", "new", "open"]
        seqs = connection.execute("select min(seq) from headrace.payload where data in ('new', 'open')").fetchone()
        assert seqs is not None
        assert seqs[0] > highest[0]


def test_a_long_publish_now_after_a_promotion(connection: Connection, database_url: str) -> None:
    """It begins the incarnation, for which numberings wait; those who only publish do not."""
    connection.execute("select headrace.publish_now('s', '1')")
    # As a promotion leaves the row: of another timeline, but not written by anybody else.
    connection.execute("update headrace.deployment set timeline = timeline + 1, writer = pg_current_xact_id()::xid")
    with psycopg.connect(database_url) as long, psycopg.connect(database_url, autocommit=True) as publisher:
        assert connection.execute("select headrace.take_office()").fetchone() == (True,)
        long.execute("select headrace.publish_now('t', 'x')")
        publisher.execute("set lock_timeout = '10s'")
        publisher.execute("select headrace.publish('s', '2')")
        with publisher.transaction():
            publisher.execute("set transaction isolation level serializable")
            publisher.execute("select headrace.publish('s', '3')")
        long.commit()
    assert connection.execute("select transactions from headrace.sequence()").fetchone() == (2,)
    rows = connection.execute("select data from headrace.kept_events() where stream = 's' order by id").fetchall()
    assert rows == [("1",), ("2",), ("3",)]


def test_publishers_that_raise_the_numbers_at_once(connection: Connection, database_url: str) -> None:
    """After a promotion sessions that publish at the same time give no number twice, and wait for no transaction."""
    connection.execute("select headrace.publish('s', 'x')")
    connection.execute("update headrace.deployment set timeline = timeline + 1, writer = pg_current_xact_id()::xid")
    connection.execute("select setval('headrace.payload_seq_seq', %s)", [1 << 52])  # the clock is behind
    assert connection.execute("select headrace.take_office()").fetchone() == (True,)
    faults: list[BaseException] = []
    start = threading.Barrier(8)

    def publish_often(level: str) -> None:
        try:
            start.wait(DEADLINE_S)
            for _ in range(5):
                with psycopg.connect(database_url) as session:
                    session.execute(f"set transaction isolation level {level}".encode())
                    session.execute("select headrace.publish('s', 'x') from generate_series(1, 10)")
        except BaseException as fault:
            faults.append(fault)

    levels = ["read committed", "repeatable read", "serializable", "read committed"] * 2
    threads = [threading.Thread(target=publish_often, args=[level]) for level in levels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert faults == []
    counted = connection.execute("select count(*), count(distinct seq) from headrace.payload").fetchone()
    assert counted == (401, 401)


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
