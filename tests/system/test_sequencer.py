"""One shard numbers for many commits, and whatever becomes of it, every event arrives: here, no sweep helps."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import headrace
from headrace.schema.migrations import migrate
from tests.fixtures.client import Client
from tests.fixtures.postgres import scratch_postgres
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import DEADLINE_S, wait_until

IN_OFFICE = "this shard numbers"
EAGER = {"announce_above_per_s": 1, "log_level": "info"}
"""The first sample brings a shard into office, and it stays there while there is one commit every two seconds."""


class Writers:
    """Sessions that publish single events to one stream until they are stopped. A context; owned by the test."""

    def __init__(self, url: str, count: int = 3) -> None:
        self.published = 0
        self.faults: list[psycopg.Error] = []
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=[number]) for number in range(count)]

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _write(self, number: int) -> None:
        publish = (headrace.publish, headrace.publish_now, lambda c, s, d: headrace.publish_many(c, [s], [d]))[
            number % 3
        ]
        try:
            with psycopg.connect(self._url) as connection:
                while not self._over.wait(0.002):
                    publish(connection, "s", "x")
                    connection.commit()
                    self.published += 1
                    if self.published % 7 == 0:
                        publish(connection, "s", "never")
                        connection.rollback()
        except psycopg.Error as fault:
            self.faults.append(fault)


def in_office(*shards: Shard) -> Shard | None:
    """The shard whose log says that it is in office."""
    for shard in shards:
        last = [line for line in shard.log.splitlines() if "number" in line]
        if shard.running and last and IN_OFFICE in last[-1]:
            return shard
    return None


def holders(database: Database) -> list[int]:
    """Who holds the office: at most one process of PostgreSQL."""
    return database.column(
        "select l.pid from pg_locks l join pg_database d on d.oid = l.database where d.datname = current_database()"
        " and l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted"
        " and l.classid = x'68656164'::int and l.objid = x'72616361'::int"
    )


def waiting(database: Database) -> int:
    """Turns that transactions have left, and that nobody has numbered."""
    return int(
        database.one("select count(*) from headrace.waiting(array(select distinct t.stream from headrace.turn t))")
    )


def has_all(client: Client, database: Database) -> None:
    """Wait until the client has what the log has, each event once."""
    head = database.head("s")
    client.wait_for(head)
    assert client.ids == list(range(1, len(client.ids) + 1))


def test_a_shard_takes_office_and_leaves_it(start_shard: StartShard, database: Database) -> None:
    """Under load one shard numbers; when that is over its connection is gone, nothing is left, and others number."""
    shard = start_shard(**EAGER)
    client = shard.live("s")
    assert database.backends("sequencer") == []
    with Writers(database.url) as writers:
        wait_until(lambda: in_office(shard), "the shard is in office")
        before = writers.published
        wait_until(lambda: writers.published > before + 100, "they go on publishing")
        has_all(client, database)
    assert not writers.faults
    has_all(client, database)
    wait_until(lambda: not database.backends("sequencer"), "the connection is closed")
    assert holders(database) == []
    assert waiting(database) == 0
    database.publish("s", "by itself")
    client.wait_for_data("by itself")


def test_an_open_transaction_that_has_left_its_turn_is_numbered_late(
    start_shard: StartShard, database: Database
) -> None:
    """It commits when the shard has left office: the shard does rounds until then."""
    shard = start_shard(**EAGER)
    client = shard.live("s", "late")
    with psycopg.connect(database.url) as late:
        with Writers(database.url):
            wait_until(lambda: in_office(shard), "the shard is in office")
            headrace.publish(late, "late", "x")
            late.execute("set constraints all immediate")
        wait_until(lambda: not holders(database), "the office is free")
        # One that did not wait would be gone after its last two statements.
        asked: set[object] = set()
        started = "select query_start from pg_stat_activity where pid = any (%s)"
        wait_until(
            lambda: asked.update(database.column(started, database.backends("sequencer"))) or len(asked) >= 10,
            "who has left goes on asking",
        )
        late.commit()
    client.wait_for_data("x")


def test_terminating_the_sequencer_again_and_again(start_shard: StartShard, database: Database) -> None:
    """Its backend is terminated ten times while others publish: everything arrives, also what was left by the last."""
    shard = start_shard(**EAGER)
    client = shard.live("s")
    with Writers(database.url) as writers:
        for _ in range(10):
            (pid,) = wait_until(lambda: holders(database), "somebody is in office")
            database.connection.execute("select pg_terminate_backend(%s)", [pid])
            wait_until(lambda pid=pid: pid not in holders(database), "it is gone")  # type: ignore[misc]
    assert not writers.faults
    has_all(client, database)


def test_killing_the_sequencer_while_another_shard_stands_by(start_shard: StartShard, database: Database) -> None:
    """A shard that has started while another is in office succeeds it when it is killed, with all that was left."""
    first = start_shard("n-0", **EAGER)
    with Writers(database.url) as writers:
        wait_until(lambda: in_office(first), "the first is in office")
        other = start_shard("n-1", **EAGER)
        client = other.live("s")
        wait_until(lambda: len(database.backends("sequencer")) == 2, "the other one stands by")
        first.kill()
        wait_until(lambda: in_office(other), "the other one is in office")
    assert not writers.faults
    client.wait(lambda: client.ids and client.ids[-1] == database.head("s"), "the newest event")
    assert client.ids == list(range(client.ids[0], client.ids[-1] + 1))


def test_a_stopped_sequencer_loses_its_office(start_shard: StartShard, database: Database) -> None:
    """The shard in office is stopped, not killed: others deliver meanwhile, and its session is ended by the server."""
    shards = [start_shard(f"n-{number}", **EAGER) for number in range(2)]
    with Writers(database.url) as writers:
        clients = {shard.id: shard.live("s") for shard in shards}
        first = wait_until(lambda: in_office(*shards), "one is in office")
        (other,) = set(shards) - {first}
        wait_until(lambda: len(database.backends("sequencer")) == 2, "the other one stands by")
        os.kill(first.pid, signal.SIGSTOP)
        client = clients[other.id]
        for _ in range(3):
            head = database.head("s")
            client.wait(lambda head=head: client.ids and client.ids[-1] >= head, "what was published by now")  # type: ignore[misc]
        wait_until(lambda: in_office(other), "the other one is in office")
        os.kill(first.pid, signal.SIGCONT)
    for client in clients.values():
        client.wait(lambda client=client: client.ids and client.ids[-1] == database.head("s"), "the newest event")  # type: ignore[misc]
        assert client.ids == list(range(client.ids[0], client.ids[-1] + 1))
    assert not writers.faults


@pytest.mark.parametrize("who", ["in office", "standing by"])
def test_a_stream_that_another_holds_is_passed_over(start_shard: StartShard, database: Database, who: str) -> None:
    """Rounds pass over a stream that a transaction holds, and hold up no other; they come back to it."""
    with psycopg.connect(database.url, autocommit=True) as other, psycopg.connect(database.url) as publisher:
        other.execute("select headrace.take_office()")
        shard = start_shard(**EAGER)
        client, free = shard.live("held"), shard.live("s")
        database.publish("held", "first")
        wait_until(lambda: waiting(database) == 1, "the turn is left")
        headrace.publish_now(publisher, "held", "now")
        if who == "in office":
            other.execute("select headrace.leave_office()")
        with Writers(database.url) as writers:
            if who == "in office":
                wait_until(lambda: in_office(shard), "the shard is in office")
            else:
                database.connection.execute("select pg_notify('headrace_rate', 'office')")
                wait_until(lambda: database.backends("sequencer"), "the shard stands by")
            database.publish("held", "last")
            free.wait_for(len(free.ids) + 500)
            client.pump()
            assert client.ids == []
            publisher.commit()
            client.wait_for_data("last")
        assert client.data == ["first", "now", "last"]
        assert not writers.faults


def test_a_turn_that_nobody_was_there_for_wakes_a_shard(start_shard: StartShard, database: Database) -> None:
    """A transaction above READ COMMITTED leaves its turn where nobody is in office: a shard comes and numbers it."""
    shard = start_shard(**EAGER)
    client = shard.live("s")
    with psycopg.connect(database.url) as publisher:
        publisher.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for number in range(3):
            headrace.publish(publisher, "s", str(number))
            publisher.commit()
            client.wait_for_data(str(number))
    wait_until(lambda: not database.backends("sequencer"), "the connection is closed")
    assert database.one("select count(*) from headrace.turn") == 0


def test_numbered_turns_are_removed(start_shard: StartShard, database: Database) -> None:
    """While a shard is in office, the turns that it has numbered do not pile up."""
    shard = start_shard(**EAGER)
    with Writers(database.url) as writers:
        wait_until(lambda: in_office(shard), "the shard is in office")
        last = wait_until(lambda: database.one("select max(turn) from headrace.turn"), "a turn is left")
        wait_until(lambda: database.one("select min(turn) > %s from headrace.turn", last), "they are removed")
    assert not writers.faults


def test_the_pruner_numbers_what_a_dead_shard_has_left(start_shard: StartShard, database: Database) -> None:
    """A turn that was left to a shard in office is numbered though that died and no shard ever takes office again."""
    assert database.one("select headrace.take_office()")
    with psycopg.connect(database.url) as publisher:
        headrace.publish(publisher, "s", "x")
    database.connection.execute("select headrace.leave_office()")
    assert waiting(database) == 1
    shard = start_shard(announce_above_per_s=0, prune_interval_s=0.1)
    client = shard.connect(("s", 0))
    client.wait_for_data("x")
    assert waiting(database) == 0


def test_a_shard_in_office_ends_in_order(start_shard: StartShard, database: Database) -> None:
    """At SIGTERM it leaves office and no turn behind; publishers go on by themselves."""
    first, other = start_shard("n-0", **EAGER), start_shard("n-1")
    client = other.live("s")
    with Writers(database.url) as writers:
        wait_until(lambda: in_office(first), "the shard is in office")
        first.terminate()
        assert first.exit_status() == 0
        has_all(client, database)
    has_all(client, database)
    assert not writers.faults
    assert waiting(database) == 0


@pytest.fixture
def own_server() -> Iterator[Any]:
    with scratch_postgres() as server:
        migrate(server.url)
        yield server


def test_postgresql_is_killed_while_a_shard_is_in_office(start_shard: StartShard, own_server: Any) -> None:
    """What was committed arrives, also what nobody had numbered, and the shard takes office again."""
    shard = start_shard(database_url=own_server.url, **EAGER)
    client = shard.live("s")
    with Writers(own_server.url):
        wait_until(lambda: in_office(shard), "the shard is in office")
        own_server.kill()
    own_server.start()
    database = Database(own_server.url)
    has_all(client, database)
    with Writers(own_server.url) as writers:
        wait_until(lambda: shard.log.count(IN_OFFICE) > 1, "the shard is in office again")
    assert not writers.faults
    has_all(client, database)
    database.close()
