"""PostgreSQL is away, silent or forgetful: a delay, never a lost or repeated event."""

import os
import signal
import time

import pytest

from headrace.schema.migrations import migrate
from headrace.settings import Settings
from headrace.stream import slot
from tests.fixtures.postgres import execute, scratch_postgres
from tests.fixtures.proxy import Proxy
from tests.fixtures.shard import Database, StartShard
from tests.fixtures.waiting import wait_until

NAMES = [f"room:{number}" for number in range(5)]


def listener(database: Database) -> int:
    """The process that serves the shard's LISTEN connection."""
    # For a moment at the start another connection of that name sends the notification that proves LISTEN.
    wait_until(lambda: len(database.backends("listener")) == 1, "there is one LISTEN connection")
    return int(database.backends("listener")[0])


def proven_listener(database: Database) -> int:
    """The same, of a shard that has no clients yet and does not ping: it has begun all that it begins by itself."""
    wait_until(
        lambda: last_statement(database, listener(database)).startswith("unlisten headrace_proof"), "LISTEN is proven"
    )
    return listener(database)


def last_statement(database: Database, pid: int) -> str:
    """What a process was asked last, without the settings that are sent before it."""
    query = str(database.one("select query from pg_stat_activity where pid = %s", pid))
    return "; ".join(part for part in query.split("; ") if not part.startswith("set "))


def test_events_during_the_loss_of_the_listen_connection_arrive_without_a_further_publish(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """LISTEN is cut and stays away while events are published on many streams; when it is back all arrive."""
    shard = start_shard(listen_database_url=postgres_proxy.url(database.url))
    client = shard.live(*NAMES)
    database.publish(NAMES[0], "before")
    client.wait_for(1)
    postgres_proxy.cut()
    wait_until(lambda: not database.backends("listener"), "LISTEN is away")
    for number in range(2000):
        if number % 500 == 0:
            client.pump()
        database.publish(NAMES[number % 5], str(number))
    client.pump()
    assert client.data == ["before"]
    postgres_proxy.resume()
    client.wait_for(2001)
    for index in range(5):
        of_stream = [f.data for f in client.events[1:] if (f.id or "").endswith(f"/{index}")]
        assert of_stream == [str(number) for number in range(index, 2000, 5)]
    database.publish(NAMES[1], "live")
    client.wait_for_data("live")


def test_events_while_the_listen_backend_is_terminated_again_and_again_arrive(
    start_shard: StartShard, database: Database
) -> None:
    """The LISTEN backend is terminated ten times, each time with an event right after it: all arrive once."""
    shard = start_shard()
    client = shard.live("s")
    for number in range(10):
        pid = listener(database)
        database.connection.execute("select pg_terminate_backend(%s)", [pid])
        database.publish("s", str(number))
        wait_until(lambda pid=pid: database.backends("listener") not in ([pid], []), "LISTEN is back")  # type: ignore[misc]
    client.wait_for(10)
    assert client.ids == list(range(1, 11))


def test_a_client_that_connects_while_listen_is_away_misses_nothing(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """Clients on new slots and on known ones that come during the outage get everything once it is over."""
    shard = start_shard(listen_database_url=postgres_proxy.url(database.url))
    shard.live(NAMES[0])
    postgres_proxy.cut()
    wait_until(lambda: not database.backends("listener"), "LISTEN is away")
    known, new = shard.connect((NAMES[0], 0)), shard.connect((NAMES[1], 0))
    for name in NAMES[:2]:
        database.publish(name, "during")
    postgres_proxy.resume()
    for client, name in ((known, NAMES[0]), (new, NAMES[1])):
        client.wait_for(1)
        database.publish(name, "after")
        client.wait_for(2)
        assert client.data == ["during", "after"]


def test_a_stopped_listen_backend_is_noticed(start_shard: StartShard, database: Database) -> None:
    """A LISTEN backend that is stopped, so that its kernel still answers, is replaced within 5 s."""
    assert Settings().ping_interval_s + Settings().ping_deadline_s <= 4
    shard = start_shard(ping_interval_s=0.5, ping_deadline_s=0.5)
    client = shard.live("s")
    pid = listener(database)
    os.kill(pid, signal.SIGSTOP)
    try:
        database.publish("s", "while it is stopped")
        client.wait_for(1)
        wait_until(lambda: set(database.backends("listener")) - {pid}, "there is another LISTEN backend")
    finally:
        os.kill(pid, signal.SIGCONT)
    database.publish("s", "after")
    client.wait_for(2)
    assert client.data == ["while it is stopped", "after"]


def test_a_server_that_goes_silent_is_noticed(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """All connections accept and answer nothing, without being closed: after new ones are possible all arrives."""
    through = postgres_proxy.url(database.url)
    shard = start_shard(
        database_url=through, ping_interval_s=0.2, ping_deadline_s=0.2, read_deadline_s=0.5, log_level="info"
    )
    client = shard.live("s")
    postgres_proxy.deafen()
    database.publish("s", "in the silence")
    # Where the proof that LISTEN works is still connecting, that takes its own five seconds to be given up.
    wait_until(lambda: "LISTEN connection lost" in shard.log, "the silence is noticed")
    postgres_proxy.resume()
    client.wait_for(1)
    database.publish("s", "after")
    client.wait_for(2)
    assert client.ids == [1, 2]


@pytest.mark.parametrize(
    ("url", "statement"),
    [
        ("listen_database_url", b"listen headrace_proof"),
        ("listen_database_url", b"listen headrace_slot"),
        ("database_url", b"pg_notify"),
    ],
)
def test_silence_while_listen_is_set_up_is_no_verdict_on_it(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy, url: str, statement: bytes
) -> None:
    """A server that goes silent at the first statements is tried again, and then serves."""
    postgres_proxy.deafen_at(statement)
    settings = {"read_deadline_s": 0.5, "ping_deadline_s": 0.2}
    shard = start_shard(**settings, **{url: postgres_proxy.url(database.url)})
    client = shard.connect(("s", "all"))
    wait_until(lambda: "LISTEN connection lost" in shard.log, "the silence is noticed")
    postgres_proxy.resume()
    database.publish("s", "x")
    client.wait_for(1)
    assert shard.running


def test_a_held_wire_delays_and_loses_nothing(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """Reads and notifications that are held up for a while are delivered afterwards, each event once."""
    shard = start_shard(database_url=postgres_proxy.url(database.url))
    client = shard.live("s")
    postgres_proxy.pause()
    database.publish_count("s", 50)
    other = shard.connect(("s", 0))
    postgres_proxy.resume()
    for each in (client, other):
        each.wait_for(50)
        assert each.ids == list(range(1, 51))


def test_readers_that_lose_their_connection_read_again(start_shard: StartShard, database: Database) -> None:
    """Terminating the backends of all reads, with one read outstanding, costs a delay."""
    database.record_reads()
    shard = start_shard()
    client = shard.live("s")
    with database.holding_reads():
        database.publish("s", "1")
        wait_until(database.waiting_reads, "a read is outstanding")
        for pid in database.backends("reader 0"):
            database.connection.execute("select pg_terminate_backend(%s)", [pid])
    client.wait_for(1)
    database.publish("s", "2")
    client.wait_for(2)
    assert client.ids == [1, 2]


def test_the_whole_server_is_away_for_a_while(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """With every connection refused, clients stay connected, new ones are taken, and all are served later."""
    shard = start_shard(database_url=postgres_proxy.url(database.url))
    client = shard.live("s")
    postgres_proxy.cut()
    database.publish("s", "1")
    new = shard.connect(("other", 0))
    database.publish("other", "1")
    wait_until(lambda: "LISTEN connection lost" in shard.log, "the loss is noticed")
    postgres_proxy.resume()
    client.wait_for(1)
    new.wait_for(1)
    assert client.ids == new.ids == [1]


def test_a_lost_notification_costs_no_more_than_a_sweep(start_shard: StartShard, database: Database) -> None:
    """An event whose notification never came is found by comparing heads."""
    shard = start_shard(sweep_interval_s=0.2)
    client = shard.live("s")
    database.publish("s", "1")
    client.wait_for(1)
    stream_id = database.one("select stream_id from headrace.stream where name = 's'")
    database.connection.execute(
        "with moved as (update headrace.stream set last_id = 2 where stream_id = %(id)s)"
        " insert into headrace.event values (%(id)s, 2, now(), null, 'without a ring', null)",
        {"id": stream_id},
    )
    client.wait_for(2)
    assert client.data == ["1", "without a ring"]


def test_a_shard_has_one_listen_connection(start_shard: StartShard, database: Database) -> None:
    """However many slots and streams, one connection listens; a slot is listened to once."""
    shard = start_shard()
    clients = [shard.connect((f"s{number}", "now")) for number in range(300)]
    for number, client in enumerate(clients):
        client.wait(lambda client=client: client.last_id, "the cursor")
        database.publish(f"s{number}", "x")
        client.wait_for(1)
    assert len(database.backends("listener")) == 1
    assert len(database.backends("reader 0")) == 1


def test_a_slot_without_subscribers_is_dropped_late(start_shard: StartShard, database: Database) -> None:
    """UNLISTEN comes only after the slot has been idle for its time, and a later subscriber is served again."""
    shard = start_shard(unlisten_after_s=0.3, sweep_interval_s=0.1, ping_interval_s=60, log_level="info")
    pid = proven_listener(database)
    first, second = shard.live("s"), shard.live("t")
    began = time.monotonic()
    first.close()
    wait_until(lambda: "unlisten" in last_statement(database, pid), "the slot is unlistened")
    assert time.monotonic() - began > 0.25
    assert last_statement(database, pid) == f"unlisten headrace_slot_{slot('s')}"
    again = shard.live("s")
    for name, client in (("s", again), ("t", second)):
        database.publish(name, "after")
        client.wait_for(1)


def test_a_slot_that_is_used_again_in_time_is_kept(start_shard: StartShard, database: Database) -> None:
    """A client that comes back before the time is over finds the slot listened to: no LISTEN, no UNLISTEN."""
    shard = start_shard(unlisten_after_s=30, sweep_interval_s=0.1, ping_interval_s=60)
    pid = proven_listener(database)
    first = shard.live("s")
    changed = "select query_start from pg_stat_activity where pid = %s"
    before = database.one(changed, pid)
    first.close()
    wait_until(lambda: shard.closed(first), "the shard has let the client go")
    again = shard.live("s")
    database.publish("s", "x")
    again.wait_for(1)
    assert database.one(changed, pid) == before


def test_a_subscriber_that_comes_while_its_slot_is_being_dropped(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """A client that comes while UNLISTEN of its slot is on the wire gets what is published, again and again."""
    shard = start_shard(
        listen_database_url=postgres_proxy.url(database.url),
        unlisten_after_s=0,
        sweep_interval_s=0.1,
        ping_interval_s=60,
    )
    # What is held is then the UNLISTEN, and not a statement of the proof.
    proven_listener(database)
    clients = [shard.live("s")]
    for number in range(1, 6):
        postgres_proxy.pause()
        clients.pop().close()
        wait_until(lambda: postgres_proxy.holds(b"unlisten headrace_slot"), "UNLISTEN is on the wire")
        clients.append(shard.connect(("s", number - 1)))
        postgres_proxy.resume()
        clients[0].wait(lambda: clients[0].last_id, "the cursor")
        database.publish("s", str(number))
        clients[0].wait_for(1)
        assert clients[0].data == [str(number)]


def test_a_listen_url_that_hears_nothing_ends_the_process(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """A LISTEN URL that leads to another database is found out at the start; the process says so and ends."""
    elsewhere = database.url.rpartition("/")[0] + "/postgres"
    shard = start_shard(launch_only=True, listen_database_url=elsewhere, listen_proof_deadline_s=0.3)
    assert shard.exit_status() == 1
    assert "HEADRACE_LISTEN_DATABASE_URL" in shard.log
    assert "the listener has ended" in shard.log


def test_a_shard_started_before_postgresql_serves_later(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """A shard whose database is away at the start takes clients, and serves them when it is there."""
    postgres_proxy.cut()
    shard = start_shard(database_url=postgres_proxy.url(database.url))
    database.publish("s", "1")
    client = shard.connect(("s", 0))
    postgres_proxy.resume()
    client.wait_for(1)


def test_a_server_that_is_a_standby_for_a_while_ends_nobody(start_shard: StartShard) -> None:
    """At a fail-over the URL may lead to a standby, which refuses LISTEN as a mistake: the shard waits for it."""
    with scratch_postgres() as server:
        url = server.database_url("postgres")
        migrate(url)
        shard = start_shard(database_url=url)
        client = shard.live("room")
        server.stop()
        (server.home / "data" / "standby.signal").touch()
        server.start()
        refused = "cannot execute LISTEN during recovery"
        wait_until(lambda: refused in server.log.read_text(), "LISTEN is refused")
        execute(server, "select pg_promote()")
        database = Database(url)
        try:
            database.publish("room", "promoted")
        finally:
            database.close()
        assert client.wait_for_data("promoted")
        assert shard.running
        assert not client.ended
