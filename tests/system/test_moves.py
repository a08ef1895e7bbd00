"""Live connections move between shards: nothing closes, nothing is lost, repeated or out of order."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

import headrace
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from headrace.stream import slot
from tests.fixtures.client import Client
from tests.fixtures.shard import tcp_table
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until
from tests.system.test_placement import settled, snapshot

STREAMS = [f"room:{number}" for number in range(12)]


@contextmanager
def publishing(url: str) -> Iterator[dict[str, int]]:
    """Publishes to all streams, one after the other, while the block runs; gives the newest id of each."""
    heads: dict[str, int] = {}
    ending = threading.Event()

    def publish() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ending.wait(0.005):
                for stream in STREAMS:
                    heads[stream] = headrace.publish_now(connection, stream, f"{stream} {'x' * 200}")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield heads
    finally:
        ending.set()
        thread.join()


def operations(stack: Stack) -> ShardOperations:
    return ShardOperations(Directory(stack.redis.url, expiry_s=1), lambda line: None)


def whole(clients: dict[Client, str], heads: dict[str, int]) -> None:
    """Each client has every event of its stream exactly once, on the connection it began with."""
    for client, stream in clients.items():
        client.wait(lambda c=client, s=stream: c.last_id == str(heads[s]), f"everything of {stream}")
        assert client.ids == list(range(1, heads[stream] + 1))
        assert not client.ended


class Unsent:
    """The bytes that the server's kernel holds for a client that does not read."""

    def __init__(self, client: Client) -> None:
        self._port = f":{client.local_port:04X}"
        self._seen: list[int] = []

    def stands_still(self) -> bool:
        """Whether there are some, and as many as the last twenty times."""
        rows = [line.split() for line in tcp_table() if self._port in line]
        # Only what is established (01): a socket that waits for its end may have had a peer with the same port.
        self._seen += [int(row[4].split(":")[0], 16) for row in rows if row[2].endswith(self._port) and row[3] == "01"]
        return len(self._seen) > 20 and self._seen[-1] > 0 and len(set(self._seen[-20:])) == 1


@pytest.fixture
def stack(start_stack: StartStack) -> Stack:
    return start_stack(3, heartbeat_interval_s=1)


def test_drain_undrain_move_rebalance(stack: Stack) -> None:
    """While events flow, every operation moves clients and none of them notices."""
    clients = {stack.subscribe(stream, since="0"): stream for stream in STREAMS for _ in range(3)}
    ports = {client.local_port for client in clients}
    running = operations(stack)
    with publishing(stack.database.url) as heads:
        for number, shard in enumerate(stack.shards):
            running.drain(shard.id)
            assert not shard.peers() & ports
            running.undrain(shard.id)
            running.move(STREAMS[number], shard.id)
            holders = {stack.holder(client) for client, stream in clients.items() if stream == STREAMS[number]}
            assert holders == {shard}
        running.rebalance()
        wait_until(lambda: len(heads) == len(STREAMS), "all streams have events")
    whole(clients, heads)


def test_who_was_sent_to_the_former_owner_moves_as_well(stack: Stack) -> None:
    """A client that a router without the latest news hands to a shard whose slot has moved follows the others."""
    settled(stack)  # or the next change would take it along
    earlier = stack.subscribe("room:0", since="0")
    giver = stack.holder(earlier)
    taker = next(shard for shard in stack.shards if shard is not giver)
    with publishing(stack.database.url) as heads:
        operations(stack).move("room:0", taker.id)
        assert stack.holder(earlier) is taker
        epoch = snapshot(stack).epoch
        late = giver.connect(("room:0", "all"))
        wait_until(lambda: stack.holder(late) is taker, "it has moved")
        assert snapshot(stack).epoch == epoch
        wait_until(lambda: "room:0" in heads, "the stream has events")
    whole(dict.fromkeys((earlier, late), "room:0"), heads)


def test_unsent_bytes_move(stack: Stack) -> None:
    """A client that stopped reading in the middle of a frame moves with the rest of it."""
    client = stack.subscribe("room:0", since="0")
    giver = stack.holder(client)
    with psycopg.connect(stack.database.url, autocommit=True) as connection:
        for number in range(40):
            headrace.publish_now(connection, "room:0", f"{number} " + "y" * 300_000)
    queue = Unsent(client)
    wait_until(queue.stands_still, "the client's socket is full")
    taker = next(shard for shard in stack.shards if shard is not giver)
    operations(stack).move("room:0", taker.id)
    assert stack.holder(client) is taker
    client.wait(lambda: client.last_id == "40", "all forty large events")
    assert client.ids == list(range(1, 41))


def test_taker_is_stopped(start_stack: StartStack) -> None:
    """A client on its way to a shard that stands still is let go, comes back by itself, and has lost nothing."""
    stack = start_stack(3, handoff_deadline_s=5, directory_expiry_s=60)
    client = stack.subscribe("room:0", since="0")
    giver = stack.holder(client)
    taker = next(shard for shard in stack.shards if shard is not giver)
    os.kill(taker.pid, signal.SIGSTOP)
    try:
        directory = Directory(stack.redis.url, expiry_s=1)
        directory.assign("n1", {slot("room:0"): taker.id})
        client.wait_for_end()
    finally:
        os.kill(taker.pid, signal.SIGCONT)
    with psycopg.connect(stack.database.url, autocommit=True) as connection:
        headrace.publish_now(connection, "room:0", "after")
    again = stack.subscribe("room:0", last_event_id=client.last_id)
    again.wait(lambda: again.last_id == "1", "the event")
    assert again.ids == [1]


def test_taker_is_killed(stack: Stack) -> None:
    """A shard that dies before it has taken a client leaves it with the giver, undisturbed."""
    client = stack.subscribe("room:0", since="0")
    giver = stack.holder(client)
    taker = next(shard for shard in stack.shards if shard is not giver)
    os.kill(taker.pid, signal.SIGKILL)
    Directory(stack.redis.url, expiry_s=1).assign("n1", {slot("room:0"): taker.id})
    with psycopg.connect(stack.database.url, autocommit=True) as connection:
        for _ in range(20):
            headrace.publish_now(connection, "room:0", "x")
    client.wait(lambda: client.last_id == "20", "twenty events")
    assert client.ids == list(range(1, 21))
    assert not client.ended
