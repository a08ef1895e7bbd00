"""What clients can make a shard keep in memory, however they read and however large the events are."""

import pytest

from tests.fixtures.client import wait_all
from tests.fixtures.shard import Database, StartShard
from tests.fixtures.waiting import wait_until

MIB = 1 << 20
LARGE = "x" * (MIB - 1000)
SMALL = {"receive_buffer": 4096}
BOUNDS = {"page_bytes": 2 * MIB, "ring_total_bytes": 8 * MIB, "send_buffer_bytes": 16384, "write_deadline_s": 600}


def test_large_frames_that_many_have_begun_are_there_once(start_shard: StartShard, database: Database) -> None:
    """A hundred clients that stop reading within the same large event keep one copy of it, alone or among streams."""
    shard = start_shard(**BOUNDS)
    well = shard.live("s")
    before = shard.memory()
    stalled = [shard.live("s", **SMALL) for _ in range(70)] + [shard.live("s", "t", **SMALL) for _ in range(30)]
    database.publish("s", LARGE)
    well.wait_for(1)
    wait_until(lambda: shard.sample("connections", state="blocked") == len(stalled), "all have stalled")
    assert shard.memory() - before < 25 * MIB
    wait_all(stalled, lambda client: client.events, "the whole event, once it is read")
    assert {client.data[0] for client in stalled} == {LARGE}


@pytest.mark.slow
def test_what_stalled_clients_hold_is_bounded(start_shard: StartShard, database: Database) -> None:
    """Of clients that have stopped within large events the longest stalled are closed; who reads stays."""
    shard = start_shard(**BOUNDS, unsent_total_bytes=8 * MIB)
    database.publish("s", *(LARGE for _ in range(40)))
    well = shard.live("s")
    before = shard.memory()
    stalled = []
    for number in range(100):
        stalled.append(shard.connect(("s", number % 40), **SMALL))
        wait_until(lambda: shard.counted("client_stalls") >= len(stalled), "one after the other has stalled")
    wait_until(lambda: shard.sample("clients_closed_total", reason="unsent limit") >= 90, "they are closed")
    assert shard.memory() - before < 70 * MIB
    database.publish("s", "small")
    well.wait_for_data("small")
    first, last = stalled[0], stalled[-1]
    first.wait_for_end()
    last.wait_for_data("small")
    again = shard.connect(("s", int(first.last_id)))
    again.wait_for_data("small")
    assert again.ids == list(range(int(first.last_id) + 1, 42))


@pytest.mark.slow
def test_reads_of_many_streams_are_bounded(start_shard: StartShard, database: Database) -> None:
    """A large event in each of many streams, all in one transaction, is read in pieces of bounded size."""
    shard = start_shard(**BOUNDS)
    names = [f"s{number}" for number in range(96)]
    clients = [shard.live(*names[:48]), shard.live(*names[48:])]
    before = shard.memory()
    database.connection.execute(
        "select headrace.publish_many(%s, array_fill(%s::text, array[96]))", [names, "y" * (MIB - 1000)]
    )
    wait_all(clients, lambda client: len(client.events) == 48, "an event of each stream")
    assert shard.memory() - before < 48 * MIB
    late = shard.connect(*((name, 0) for name in names[:64]))
    late.wait_for(64)
    assert shard.memory() - before < 48 * MIB
