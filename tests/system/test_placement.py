"""Where clients are put, how many may come, and what happens by itself when shards die, join, or Redis goes away."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import redis

from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.placement import bucket, rendezvous, spread
from headrace.stream import SLOTS, slot
from tests.fixtures.client import Client, wait_all
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database, Shard
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until
from tests.system.test_cli import headrace as command


def snapshot(stack: Stack) -> DirectorySnapshot:
    directory = Directory(stack.redis.url, expiry_s=3)
    try:
        return directory.read()
    finally:
        directory.close()


def owned(stack: Stack) -> Counter[str]:
    return Counter(snapshot(stack).slots.get("n1", {}).values())


def settled(stack: Stack) -> None:
    """Have the slots given out now; by themselves shards wait until the node has stayed the same for the expiry."""
    ids = {shard.id for shard in stack.shards}
    wait_until(lambda: {entry.id for entry in snapshot(stack).shards} == ids, "each shard has registered")
    directory = Directory(stack.redis.url, expiry_s=3)

    def given_out() -> bool:
        directory.claim("n1", settle_s=0, balance=True)  # where one was alone for a while it has all
        return set(owned(stack)) == ids

    wait_until(given_out, "each shard has slots")
    directory.close()


def per_shard(stack: Stack, clients: Iterable[Client]) -> Counter[str]:
    """How many of the clients each shard has; one that is on its way may be at two, or at none."""
    ports = {client.local_port for client in clients}
    return Counter({shard.id: len(shard.peers() & ports) for shard in stack.shards if shard.running})


def refused(client: Client, status: int = 429) -> bool:
    """Whether it is answered this status with a Retry-After, and why is said."""
    if client.answered() != status:
        client.close()
        return False
    assert 1 <= int(client.headers["retry-after"]) <= 5
    client.wait(lambda: b"error" in client.raw, "the reason")
    return True


def served(stack: Stack, path: str, *headers: str) -> Client:
    """Come as often as it takes."""

    def come() -> Client | None:
        client = stack.connect(path, *headers)
        return client if client.answered() == 200 else None

    client = wait_until(come, "a client is served")
    assert client is not None
    return client


def publish_to(stack: Stack, clients: dict[Client, str]) -> None:
    """One event on each of the streams reaches every client, once, on the connection that it has."""
    for stream in set(clients.values()):
        stack.database.publish(stream, "x")
    heads = {stream: stack.database.head(stream) for stream in clients.values()}
    wait_all(clients, lambda client: client.last_id == str(heads[clients[client]]), "the event")
    for client, stream in clients.items():
        assert client.ids == list(range(1, heads[stream] + 1))
        assert not client.ended


def test_a_hot_stream_is_spread_and_gathered_again(start_stack: StartStack) -> None:
    """A stream with most of all connections is served by all shards alike, by live moves; when it cools, by one."""
    stack = start_stack(3, hot_connections=60, load_factor=100, heartbeat_interval_s=1)
    settled(stack)
    clients = {stack.subscribe("hot", since="0"): "hot" for _ in range(59)}
    assert sorted(per_shard(stack, clients).values()) == [0, 0, 59]
    clients |= {stack.subscribe(f"room:{number}", since="0"): f"room:{number}" for number in range(30)}
    clients |= {stack.subscribe("hot", since="0"): "hot" for _ in range(61)}
    crowd = [client for client, stream in clients.items() if stream == "hot"]

    # With so few, how even the shares are is chance, as the ports are; whom each client belongs to is not.
    owners = spread(shard.id for shard in stack.shards)
    share: dict[str, list[Client]] = {shard.id: [] for shard in stack.shards}
    for client in crowd:
        share[owners[bucket(f"127.0.0.1:{client.local_port}")]].append(client)
    assert all(share.values())

    def spread_out() -> bool:
        return all(per_shard(stack, theirs) == Counter({id_: len(theirs)}) for id_, theirs in share.items())

    wait_until(spread_out, "each shard has its share of the hot stream")
    assert snapshot(stack).hot["n1"].keys() == {"hot"}
    publish_to(stack, clients)
    for client in crowd[25:]:
        client.close()
        del clients[client]
    left = crowd[:25]
    wait_until(lambda: sorted(per_shard(stack, left).values()) == [0, 0, 25], "the stream is gathered again")
    publish_to(stack, clients)


def test_a_user_has_no_more_connections_than_allowed(start_stack: StartStack) -> None:
    """The limit holds over all shards; beyond it the answer is 429, and when somebody has left there is room."""
    stack = start_stack(2, max_user_connections=3)
    settled(stack)
    streams = [
        next(f"s{n}" for n in range(99) if rendezvous(slot(f"s{n}"), ["n1-0", "n1-1"])[0] == id_)
        for id_ in ("n1-0", "n1-1")
    ]
    first, second = (stack.path(stream, user="ada") for stream in streams)
    clients = [served(stack, path) for path in (first, second, first)]
    assert sorted(per_shard(stack, clients).values()) == [1, 2]
    # Where Redis stands still for a second, who comes is let in uncounted.
    wait_until(lambda: refused(stack.connect(second)), "one more is refused")
    for other in (stack.path(streams[0], user="bob"), stack.path(streams[0])):
        assert stack.connect(other).answered() == 200
    clients[0].close()
    clients.append(served(stack, second))
    wait_until(lambda: refused(stack.connect(first)), "one more is refused")


def test_an_address_has_no_more_connections_than_allowed(start_stack: StartStack) -> None:
    """Behind a trusted proxy the address is the one that it names, and what others claim counts for nothing."""
    stack = start_stack(2, max_address_connections=2, trusted_proxies="127.0.0.1")
    path = stack.path("a")
    for address in ("198.51.100.1", "198.51.100.2"):
        for _ in range(2):
            assert stack.connect(path, f"X-Forwarded-For: {address}").answered() == 200
        assert refused(stack.connect(path, f"X-Forwarded-For: 203.0.113.5, {address}"))


def test_a_node_has_no_more_connections_than_allowed(start_stack: StartStack) -> None:
    """The node's limit holds over its shards, as soon as these have told how many they have."""
    stack = start_stack(2, max_node_connections=6)
    settled(stack)
    clients = [stack.connect(stack.path(f"s{number}")) for number in range(6)]
    assert [client.answered() for client in clients] == [200] * 6
    wait_until(lambda: refused(stack.connect(stack.path("s7")), 503), "there is no room for one more")


def test_without_redis_each_shard_still_refuses(database: Database, own_redis: RedisServer) -> None:
    """Limits beyond the shard are not enforced while Redis is away; its own count is."""
    stack = Stack(database, own_redis, 1, max_user_connections=2).start()
    try:
        path = stack.path("a", user="ada")
        assert stack.connect(path).answered() == 200
        own_redis.kill()
        assert stack.router is not None
        wait_until(lambda: stack.router.ready()["redis"]["status"] == "away", "the router knows")  # type: ignore[union-attr]
        assert stack.connect(path).answered() == 200
        assert refused(stack.connect(path))
        assert stack.connect(stack.path("a", user="bob")).answered() == 200
    finally:
        stack.remove()


def test_a_killed_shards_slots_and_clients_are_taken_over(start_stack: StartStack) -> None:
    """Its slots are others' long before its entry expires; its clients come back, and continue on another."""
    stack = start_stack(3, directory_interval_s=1, directory_expiry_s=600, hot_connections=0)
    settled(stack)
    clients = {stack.subscribe(f"room:{number}", since="0"): f"room:{number}" for number in range(12)}
    publish_to(stack, clients)
    dead = stack.holder(next(iter(clients)))
    theirs = [client for client in clients if stack.holder(client) is dead]
    # As long as the node has not settled, slots are kept for those that are about to start.
    with redis.Redis.from_url(stack.redis.url) as raw:
        raw.hincrby("headrace:node:n1", "joined_ms", -3_600_000)
    dead.kill()
    wait_until(lambda: not owned(stack)[dead.id], "the slots are others'")
    assert sum(owned(stack).values()) == SLOTS
    for client in theirs:
        client.wait_for_end()
        again = served(stack, stack.path(clients[client]), f"Last-Event-ID: {client.last_id}")
        assert stack.holder(again) is not dead
        stack.database.publish(clients[client], "after")
        again.wait(lambda again=again: again.ids == [2], "what came after")  # type: ignore[misc]


def test_a_shard_that_joins_gets_its_share(start_stack: StartStack) -> None:
    """A new shard is given slots and their connections by itself, and no client notices."""
    stack = start_stack(2, heartbeat_interval_s=1, directory_expiry_s=2)
    settled(stack)
    streams = [f"room:{number}" for number in range(12)]
    clients = {stack.subscribe(stream, since="0"): stream for stream in streams}
    stack.shards.append(Shard(stack.database.url, "n1-2", **stack.settings))
    stack.shards[-1].start()
    expected = Counter(rendezvous(slot(stream), ["n1-0", "n1-1", "n1-2"])[0] for stream in streams)
    assert expected["n1-2"]
    wait_until(lambda: per_shard(stack, clients) == expected, "everybody is where it belongs")
    publish_to(stack, clients)


def test_everything_goes_on_without_redis(database: Database, own_redis: RedisServer, tmp_path: Path) -> None:
    """Redis is killed, and comes back empty: clients come and get all their events, and status is right by itself."""
    stack = Stack(database, own_redis, 2, heartbeat_interval_s=1, directory_expiry_s=2).start()
    try:
        settled(stack)
        assert stack.router is not None
        environ = {
            "HEADRACE_REDIS_URL": own_redis.url,
            "HEADRACE_PUBLIC_URL": f"http://127.0.0.1:{stack.router.port}",
        }
        clients = {stack.subscribe(f"room:{number}", since="0"): f"room:{number}" for number in range(6)}
        publish_to(stack, clients)
        own_redis.kill()
        publish_to(stack, clients)
        clients |= {stack.subscribe(f"room:{number}", since="0"): f"room:{number}" for number in range(6)}
        publish_to(stack, clients)
        wait_until(lambda: stack.router.ready()["redis"]["status"] == "away", "/readyz says so")  # type: ignore[union-attr]
        away = command("status", cwd=tmp_path, environ=environ)
        assert away.returncode == 1
        assert "Redis cannot be used" in away.stderr
        assert "n1-0" in away.stdout
        own_redis.start()

        def right() -> bool:
            found = snapshot(stack)
            shards = {entry.id: entry for entry in found.shards}
            return (
                set(shards) == {"n1-0", "n1-1"}
                and sum(entry.connections for entry in shards.values()) == 12
                and len(found.slots.get("n1", {})) == SLOTS
            )

        wait_until(right, "the directory is right again")
        told = json.loads(command("status", "--json", cwd=tmp_path, environ=environ).stdout)
        assert sum(shard["connections"] for shard in told["shards"]) == 12
        assert sum(shard["slots"] for shard in told["shards"]) == SLOTS
        publish_to(stack, clients)
    finally:
        stack.remove()
