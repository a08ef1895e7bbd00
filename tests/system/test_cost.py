"""What clients and deliveries cost, counted: calls, bytes and greenlets, never time."""

import re

import pytest

from headrace import exposition
from tests.fixtures.shard import Database, Shard, StartShard
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


def counted(shard: Shard, name: str) -> int:
    """A counter of the shard's."""
    text = exposition.ask(shard.path.with_suffix(exposition.SUFFIX)).decode()
    found = re.search(rf"^headrace_{name}_total\{{[^}}]*\}} ([\d.e+]+)$", text, re.MULTILINE)
    assert found, f"the shard does not tell of {name}"
    return int(float(found[1]))


@pytest.mark.parametrize("events", [1, 20])
def test_one_call_for_each_client_whatever_waits(start_shard: StartShard, database: Database, events: int) -> None:
    """An event, and as well all events of a transaction, cost one system call for each client."""
    # No tick comes, and so no heartbeat.
    shard = start_shard(tick_interval_s=60)
    clients = [shard.live("s") for _ in range(CLIENTS)]
    writes, deliveries = counted(shard, "writes"), counted(shard, "deliveries")
    with database.connection.transaction():
        database.publish("s", *("x" * 200 for _ in range(events)))
    for client in clients:
        client.wait_for(events)
    assert counted(shard, "writes") - writes == CLIENTS
    assert counted(shard, "deliveries") - deliveries == CLIENTS * events


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
