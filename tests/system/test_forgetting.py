"""Whole shards, and streams that are forgotten behind their backs: what clients see of it."""

from collections.abc import Callable
from contextlib import closing

import pytest

from headrace.cursor import Pending, Position
from tests.fixtures.forgetting import age, empty, forget, names
from tests.fixtures.shard import Database, Shard
from tests.fixtures.waiting import wait_until

StartShard = Callable[..., Shard]


def forget_idle(database: Database, stream: str) -> None:
    """The stream has lost its events long ago, and is forgotten by another shard."""
    empty(database.connection)
    # Else the shard may remove what the test publishes later before any client has it.
    database.connection.execute("select headrace.set_retention('*', '1 day')")
    age(database.connection, stream)
    assert forget(database.connection) == 1


def raise_the_slot(database: Database, stream: str, to: int) -> None:
    """Another stream of its slot was forgotten, with that head."""
    database.connection.execute(
        "update headrace.slot_floor set forgotten = %s where slot = headrace.slot(%s)", [to, stream]
    )


def wait_until_live(shard: Shard, clients: int) -> None:
    """Return when the shard has read the streams of so many clients; before that it knows nothing of them."""
    wait_until(lambda: shard.sample("connections", state="live") == clients, "the clients are live")


@pytest.mark.parametrize("read_between", [True, False])
def test_clients_that_are_connected_notice_nothing(
    start_shard: StartShard, database: Database, read_between: bool
) -> None:
    """Neither when the slot's number rises, nor when the stream is made again before the shard has looked."""
    shard = start_shard(sweep_interval_s=0.1 if read_between else 600, heartbeat_interval_s=0.2)
    database.publish_count("s", 3)
    early = shard.connect(("s", 3))
    early.wait_for_cursor(3)
    several = shard.connect(("s", 3), ("new", 0))
    several.wait_for_cursor(3, 0)
    wait_until_live(shard, 2)
    forget_idle(database, "s")
    raise_the_slot(database, "s", 9)
    raise_the_slot(database, "new", 9)
    if read_between:
        early.wait_for_cursor(9)
        several.wait_for_cursor(9, 9)
    database.publish("s", "again")
    database.publish("new", "first")
    early.wait_for(1)
    several.wait_for(2)
    assert early.ids == [10]
    assert (early.sentinels, several.sentinels) == ([], [])


def test_clients_that_come_back(start_shard: StartShard, database: Database) -> None:
    """Who missed an event is told of a gap, before and after the stream is made again; who missed nothing is not."""
    shard = start_shard()
    database.publish_count("s", 3)
    forget_idle(database, "s")
    late, current = shard.connect(("s", 1)), shard.connect(("s", 3))
    assert late.wait_for_sentinel("gap") == {"stream": "s", "missed_from": 2, "missed_to": 3}
    database.publish("s", "again")
    later = shard.connect(("s", 2))
    assert later.wait_for_sentinel("gap") == {"stream": "s", "missed_from": 3, "missed_to": 3}
    everything, foreign = shard.connect(("s", "all")), shard.connect(("s", 5))
    for client in (late, current, later, everything):
        client.wait_for(1)
        assert client.ids == [4]
    assert (current.sentinels, everything.sentinels) == ([], [])
    assert foreign.wait_for_sentinel("reset") == {"stream": "s", "head": 4}


def test_a_page_with_pending_events_of_a_stream_that_was_forgotten(start_shard: StartShard, database: Database) -> None:
    """The page's event is left out when it comes with its id, although the slot's number rises in between."""
    shard = start_shard(sweep_interval_s=0.1, heartbeat_interval_s=0.2)
    database.publish("s", "old")
    forget_idle(database, "s")
    with closing(Database(database.url)) as office, closing(Database(database.url)) as rounds:
        # Nobody numbers before the slot's number has risen: a turn is left, and no round is done.
        assert office.one("select headrace.take_office()")
        rounds.connection.execute("begin")
        rounds.connection.execute("select from headrace.round for update")
        database.publish("s", "shown")
        head, _, seq = str(database.one("select headrace.watermark('s')")).partition("-")
        client = shard.connect(("s", Position(int(head), Pending([int(seq)]))))
        wait_until_live(shard, 1)
        raise_the_slot(database, "s", 9)
        client.wait(lambda: client.last_id == f"9-{seq}", "the cursor behind the forgotten streams")
    client.wait_for_cursor(10)
    database.publish("s", "next")
    client.wait_for(1)
    assert (client.ids, client.sentinels) == ([11], [])


def test_a_shard_forgets_and_says_so(start_shard: StartShard, database: Database) -> None:
    """A shard forgets what nobody follows, keeps what its clients follow, and counts both in its metrics."""
    database.publish_count("idle", 1)
    database.publish_count("followed", 1)
    empty(database.connection)
    age(database.connection)
    # The pruner comes for the first time after five seconds at least, when the client is there.
    shard = start_shard(forget_after_s=3600, prune_interval_s=10)
    shard.connect(("followed", 1)).wait_for_cursor(1)
    wait_until(lambda: names(database.connection) == ["followed"], "the idle stream is forgotten")
    wait_until(lambda: shard.sample("forgotten_streams_total") == 1, "it is counted")
    wait_until(lambda: shard.sample("log_streams") > 0, "the streams are estimated")
