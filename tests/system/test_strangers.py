"""Roles that may connect and nothing else, at the locks that headrace takes: events go on, and they are named."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from headrace.doctor import rights
from headrace.doctor.finding import Level
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.node import metrics_sockets
from headrace.schema import locks
from tests.fixtures.postgres import Connection, execute, superuser_url
from tests.fixtures.shard import Database, StartShard
from tests.fixtures.waiting import DEADLINE_S, wait_until

OFFICE = "x'6865616472616361'::bigint"
DEFERRING = "x'6865616472616364'::bigint"
PRUNING = "x'6865616472616365'::bigint"
MIGRATION = "x'686561647261636d'::bigint"


@pytest.fixture(scope="module")
def stranger(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A role that may connect to every database, and nothing else."""
    execute(postgres, "create role loitering login password 'x'")
    yield "loitering"
    execute(postgres, "drop role loitering")


@contextmanager
def connected(url: str, role: str) -> Iterator[Connection]:
    url = psycopg.conninfo.make_conninfo(url, user=role, password="x")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_a_stranger_in_the_office(
    postgres: EmbeddedPostgres, start_shard: StartShard, database: Database, stranger: str
) -> None:
    """A role that has taken the office's lock is noticed and logged; a shard numbers beside it, then keeps it out."""
    shard = start_shard(prune_interval_s=0.5, log_level="info")

    def told(metric: str) -> float:
        text = metrics_sockets.ask(shard.path.with_suffix(metrics_sockets.SUFFIX), DEADLINE_S).decode()
        found = re.search(rf"^{metric}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        assert found, metric
        return float(found[1])

    client = shard.live("s")
    with connected(database.url, stranger) as c:
        c.execute(f"select pg_advisory_lock({OFFICE})".encode())
        database.publish("s", "1")
        client.wait_for_data("1")
        wait_until(lambda: f"role {stranger} (pid {c.info.backend_pid}) is at the lock" in shard.log, "it is logged")
        assert told("headrace_announcer_lock_stranger") == 1
        # The pruner numbered the first event, and would number some of these: most of them the sequencer does.
        for number in range(2, 32):
            database.publish("s", str(number))
            client.wait_for(number)
        assert told("headrace_announced_transactions_total") > 15
        queueing = psycopg.connect(c.info.dsn, password="x", autocommit=True)
        queueing.pgconn.send_query(f"select pg_advisory_lock({OFFICE})".encode())
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = 1918985057"
        wait_until(lambda: database.one(waiting) == 1, "another waits for it")
        assert [who.role for who in locks.strangers(database.connection)] == [stranger, stranger]
        with psycopg.connect(superuser_url(postgres, database.url)) as superuser:
            superuser.execute("select pg_terminate_backend(%s)", [queueing.info.backend_pid])
        queueing.close()
    wait_until(lambda: "this shard numbers for all" in shard.log, "the shard has the office")
    with connected(database.url, stranger) as c:
        assert c.execute(f"select pg_try_advisory_lock({OFFICE})".encode()).fetchone() == (False,)
    database.publish("s", "last")
    client.wait_for_data("last")


def test_strangers_at_the_other_locks(start_shard: StartShard, database: Database, stranger: str) -> None:
    """Whoever holds the lock of releases before keeps nobody from pruning; the one of publishers costs no event."""
    shard = start_shard(prune_interval_s=0.2)
    client = shard.live("s")
    with connected(database.url, stranger) as c:
        for lock in (PRUNING, MIGRATION, DEFERRING):
            c.execute(f"select pg_advisory_lock({lock})".encode())
        database.one("select headrace.set_retention('*', interval '1 millisecond')")
        database.publish("s", "1", "2")
        client.wait_for(2)
        wait_until(lambda: database.one("select count(*) from headrace.event") == 0, "events are pruned")
        finding = rights.strangers(database.connection)
        assert (finding.level, f"role {stranger} (pid {c.info.backend_pid})" in finding.found) == (Level.WARN, True)
        assert f"pg_terminate_backend({c.info.backend_pid})" in finding.advice
        assert rights.pruning(database.connection).level is Level.OK
    wait_until(lambda: rights.strangers(database.connection).level is Level.OK, "it is gone")


def test_a_prepared_transaction_at_a_lock(database: Database, stranger: str) -> None:
    """A lock that is held by a transaction which was prepared, and by no session, is named with its role."""
    with connected(database.url, stranger) as c:
        c.execute("begin")
        c.execute(f"select pg_advisory_xact_lock({OFFICE})".encode())
        c.execute("prepare transaction 'loitering'")
    assert [(who.role, who.pid, who.lock) for who in locks.strangers(database.connection)] == [
        (stranger, 0, locks.OFFICE)
    ]
    with connected(database.url, stranger) as c:
        c.execute("rollback prepared 'loitering'")
    assert locks.strangers(database.connection) == []


def test_nobody_who_belongs_there_is_a_stranger(database: Database) -> None:
    """The owner's own session in office, and publishers that hold their lock in share, are not named."""
    database.connection.execute("select headrace.take_office()")
    with psycopg.connect(database.url) as publisher:
        publisher.execute("select headrace.publish_now('s', 'x')")
        assert rights.strangers(database.connection).level is Level.OK
