"""How connections and shards end, and what goes on when something inside fails."""

import time

import pytest

from tests.fixtures.client import Client, wait_all
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import wait_until


def ms(seconds: float) -> int:
    """So many seconds from now, as tokens count."""
    return round((time.time() + seconds) * 1000)


def test_a_shutdown_says_goodbye_without_an_id_and_the_resume_repeats_nothing(
    start_shard: StartShard, database: Database
) -> None:
    """At SIGTERM clients are told goodbye and where they are; from there another shard goes on without a repeat."""
    first = start_shard()
    database.publish_count("s", 5)
    clients = [first.connect(("s", 0)) for _ in range(5)]
    for client in clients:
        client.wait_for(5)
    first.terminate()
    wait_all(clients, lambda client: client.ended, "the end")
    assert first.exit_status() == 0
    database.publish("s", "while away")
    second = start_shard("n-1")
    for client in clients:
        assert client.sentinels == [("goodbye", {"reason": "shutdown"})]
        assert [f.id for f in client.frames if f.event == "headrace:goodbye"] == [None]
        assert client.last_id == "5"
        again = second.connect(("s", int(client.last_id)))
        again.wait_for(1)
        database.publish("s", "end")
        assert again.wait_for_data("end")[0] == "while away"
        assert again.ids == list(range(6, again.ids[-1] + 1))


def test_a_shutdown_with_clients_that_do_not_read_is_quick(start_shard: StartShard, database: Database) -> None:
    """A stopped reader does not hold up the stop, and what it was given is a prefix of the stream."""
    shard = start_shard(send_buffer_bytes=4096)
    stalled = [shard.live("s", receive_buffer=4096) for _ in range(3)]
    well = shard.live("s")
    database.publish("s", *("x" * 5000 for _ in range(200)))
    well.wait_for(200)
    shard.terminate()
    assert shard.exit_status() == 0
    assert "did not end within" not in shard.log
    for client in stalled:
        client.wait_for_end()
        assert client.ids == list(range(1, len(client.ids) + 1))
    well.wait_for_end()
    assert well.sentinels == [("goodbye", {"reason": "shutdown"})]


def test_a_shutdown_while_postgresql_is_stuck_is_quick(start_shard: StartShard, database: Database) -> None:
    """A stop does not wait for reads that are outstanding."""
    database.record_reads()
    shard = start_shard()
    client = shard.live("s")
    with database.holding_reads():
        database.publish("s", "x")
        wait_until(database.waiting_reads, "a read is outstanding")
        shard.terminate()
        client.wait_for_end()
        assert shard.exit_status() == 0
    assert "did not end within" not in shard.log
    assert client.wait_for_sentinel("goodbye") == {"reason": "shutdown"}


def test_a_killed_shard_leaves_its_clients_with_an_end_at_once(start_shard: StartShard, database: Database) -> None:
    """After SIGKILL no copy of a client's socket is left: every client sees the end, and can resume elsewhere."""
    first = start_shard()
    clients = [first.live("s") for _ in range(20)]
    database.publish("s", "1")
    wait_all(clients, lambda client: client.events, "the event")
    first.kill()
    wait_all(clients, lambda client: client.ended, "the end")
    database.publish("s", "2")
    second = start_shard()
    again = second.connect(("s", int(clients[0].last_id)))
    again.wait_for(1)
    assert again.data == ["2"]


def test_an_expired_token_ends_the_connection(start_shard: StartShard, database: Database) -> None:
    """At the token's expiry the client is told and closed, whether it is before or after the next heartbeat."""
    shard = start_shard(heartbeat_interval_s=0.3)
    kept, other = shard.live("s"), shard.live("s", expires_ms=ms(3600))

    def expired(seconds: float) -> None:
        """A client whose token lives for so long: in that time it comes and is sent an event, or it gets longer."""
        expires_ms = ms(seconds)
        client = shard.connect(("s", "now"), expires_ms=expires_ms)
        client.wait(lambda: client.last_id or client.ended, "the cursor")
        database.publish("s", "x")
        head = database.head("s")
        client.wait_for_end()
        assert ms(0) >= expires_ms
        assert client.sentinels == [("goodbye", {"reason": "expired"})]
        if client.last_id != str(head):
            assert seconds < 60, "it ended before it was sent the event"
            expired(seconds * 4)

    expired(0.2)
    expired(1)
    database.publish("s", "end")
    for client in (kept, other):
        client.wait_for_data("end")


def test_a_token_that_has_expired_on_its_way_is_ended_at_once(calm_shard: Shard, stream: str) -> None:
    """A client whose token expired just before the hand-off is told goodbye."""
    client = calm_shard.connect((stream, "now"), expires_ms=ms(-1))
    client.wait_for_end()
    assert client.sentinels == [("goodbye", {"reason": "expired"})]


def test_a_full_shard_refuses_and_takes_again_when_there_is_room(start_shard: StartShard, database: Database) -> None:
    """Beyond its limit a shard refuses with `full` and writes nothing; when a client has left it takes another."""
    shard = start_shard(max_connections=5)
    clients = [shard.connect(("s", "now")) for _ in range(5)]
    refused, answer = shard.offer([("s", "now")])
    assert answer.refused == "full"
    refused.wait_for_end()
    assert not refused.raw
    clients.pop().close()
    taken: list[Client] = []

    def accepted() -> bool:
        client, answer = shard.offer([("s", "now")])
        if not answer.refused:
            taken.append(client)
        return bool(taken)

    wait_until(accepted, "there is room again")
    taken[0].wait(lambda: taken[0].last_id, "the cursor")
    database.publish("s", "x")
    wait_all([*clients, *taken], lambda client: client.events, "the event")


def test_a_shard_that_stops_refuses_or_closes_its_channels(start_shard: StartShard, database: Database) -> None:
    """A router's channel to a stopping shard ends, so the router knows that nothing was written."""
    shard = start_shard()
    channel = shard.channel()
    shard.live("s")
    shard.terminate()
    assert channel.recv(100) == b""
    channel.close()
    assert shard.exit_status() == 0
    assert not shard.path.exists()


def test_without_redis_a_shard_serves_and_registers_when_it_is_back(
    start_shard: StartShard, database: Database, own_redis: RedisServer
) -> None:
    """The loss of Redis delays no event and ends nothing; the entry is there again when Redis is."""
    from headrace.node.directory import Directory  # noqa: PLC0415

    shard = start_shard(redis_url=own_redis.url, directory_interval_s=0.1, directory_expiry_s=0.5)
    directory = Directory(own_redis.url, expiry_s=0.5)

    def registered() -> bool:
        return [(entry.id, entry.pid) for entry in directory.read().shards] == [("n-0", shard.pid)]

    wait_until(registered, "the shard is registered")
    client = shard.live("s")
    own_redis.kill()
    for number in range(20):
        database.publish("s", str(number))
    client.wait_for(20)
    wait_until(lambda: "last known assignments" in shard.log, "the loss is logged")
    own_redis.start()
    wait_until(registered, "the shard is registered again")
    shard.terminate()
    assert shard.exit_status() == 0
    assert not directory.read().shards
    directory.close()


FILTERS = """
import sys
import gevent
from headrace import predicate

@predicate("exits")
def exits(context, stream):
    raise gevent.GreenletExit
"""


def test_the_death_of_a_part_ends_the_process(start_shard: StartShard, database: Database) -> None:
    """When a background greenlet ends, here a predicate's, the process says which, says goodbye, and ends with 1."""
    shard = start_shard(predicates=FILTERS)
    client = shard.live("s")
    database.publish("s", "x", visible_to="exits")
    client.wait_for_end()
    assert client.wait_for_sentinel("goodbye") == {"reason": "shutdown"}
    assert shard.exit_status() == 1
    assert "the filters has ended" in shard.log


def test_reads_that_postgresql_refuses_are_tried_again(start_shard: StartShard, database: Database) -> None:
    """While what a shard reads with is not there it says so; when it is back, clients are served."""
    shard = start_shard(sweep_interval_s=0.2)
    database.connection.execute(
        "alter function headrace.read_log(text[], bigint[], int, bigint, bigint) rename to gone"
    )
    client = shard.connect(("s", "now"))
    wait_until(lambda: "a live read failed" in shard.log, "the refusal is logged")
    database.connection.execute(
        "alter function headrace.gone(text[], bigint[], int, bigint, bigint) rename to read_log"
    )
    client.wait(lambda: client.last_id, "the cursor")
    database.publish("s", "x")
    client.wait_for(1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("database_url", "mysql://x"), ("heartbeat_interval_s", "soon"), ("filters", "no.such.module")],
)
def test_wrong_settings_are_named(start_shard: StartShard, variable: str, value: str) -> None:
    """A shard with a setting that is not allowed ends at once, with one line that names it."""
    shard = start_shard(launch_only=True, **{variable: value})
    assert shard.exit_status() == 1
    assert f"HEADRACE_{variable.upper()} is" in shard.log
    assert "Traceback" not in shard.log
