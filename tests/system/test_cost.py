"""What clients and deliveries cost, counted: calls, bytes and greenlets, never time."""

import pytest

from tests.fixtures.shard import Database, StartShard
from tests.fixtures.waiting import wait_until

CLIENTS = 40
FIRST, MORE = 500, 2000
MOST_BYTES = 1536
COUNTING = """
import gc
from pathlib import Path

import greenlet

from headrace import predicate


@predicate("count")
def count(context, stream):
    alive = [one for one in gc.get_objects() if isinstance(one, greenlet.greenlet) and not one.dead]
    Path(f"greenlets-{context.user}").write_text(str(len(alive)))
    return True
"""


@pytest.mark.parametrize("events", [1, 20])
def test_one_call_for_each_client_whatever_waits(start_shard: StartShard, database: Database, events: int) -> None:
    """An event, and as well all events of a transaction, cost one system call for each client."""
    # No tick comes, and so no heartbeat.
    shard = start_shard(tick_interval_s=60)
    clients = [shard.live("s") for _ in range(CLIENTS)]
    writes, deliveries = shard.counted("writes"), shard.counted("deliveries")
    with database.connection.transaction():
        database.publish("s", *("x" * 200 for _ in range(events)))
    for client in clients:
        client.wait_for(events)
    assert shard.counted("writes") - writes == CLIENTS
    assert shard.counted("deliveries") - deliveries == CLIENTS * events


def test_an_idle_client_costs_little_memory_and_no_greenlet(start_shard: StartShard, database: Database) -> None:
    """2,000 more clients take at most 1.5 KiB each of the shard's memory, and not one greenlet."""
    shard = start_shard(predicates=COUNTING, heartbeat_interval_s=3600, write_deadline_s=300)

    def greenlets(user: str) -> int:
        watching = shard.live("watched", user=user)
        database.publish("watched", user, visible_to="count")
        watching.wait_for_data(user)
        return int((shard.directory / f"greenlets-{user}").read_text())

    for _ in range(FIRST):
        shard.connect(("s", "now"))
    shard.live("s")
    before, greenlets_before = shard.memory(), greenlets("before")
    for _ in range(MORE):
        shard.connect(("s", "now"))
    shard.live("s")
    wait_until(lambda: shard.client_sockets() >= FIRST + MORE, "all clients are the shard's")
    assert (shard.memory() - before) / MORE <= MOST_BYTES
    assert greenlets("after") <= greenlets_before
