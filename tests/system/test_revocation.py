"""Nobody whose token was revoked gets events any more, whatever way it tries."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest

import headrace
from headrace.node.directory import Directory
from headrace.shard.postgres.revocations import LEASE_S
from headrace.stream import slot
from tests.fixtures.client import Client, wait_all
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import took_less, wait_until

WITHIN_S = 1.0


@pytest.fixture
def stack(start_stack: StartStack) -> Stack:
    return start_stack(2, heartbeat_interval_s=1)


def status(stack: Stack, path: str) -> int:
    """What a request for the path is answered."""
    return stack.connect(path).answered()


def refused(stack: Stack, path: str) -> None:
    """The path is refused with the reason."""
    assert stack.router is not None
    code, _, body = stack.router.get(path)
    assert (code, "revoked" in json.loads(body)["error"]) == (403, True)


def test_a_user_is_disconnected_everywhere(
    stack: Stack, start_stack: StartStack, database: Database, redis_server: RedisServer
) -> None:
    """Within a second of the commit, on every node, shard and stream; others stay, and a new token is good."""
    other = start_stack(1, node="n2")
    streams = [f"room:{number}" for number in range(6)]
    old = stack.path(*streams[:3], user="ada")
    staying = [stack.subscribe(streams[0], user=user) for user in ("bob", "Ada", None)]
    with psycopg.connect(database.url) as connection:

        def disconnect() -> float:
            gone = [node.subscribe(stream, user="ada") for node in (stack, other) for stream in streams]
            gone += [stack.subscribe(*streams, user="ada", audiences=["staff"])]
            assert {stack.holder(client).id for client in gone[:6]} == {shard.id for shard in stack.shards}
            headrace.disconnect(connection, user="ada", reason="no longer welcome")
            headrace.disconnect(connection, user="bob")
            connection.rollback()
            headrace.disconnect(connection, user="ada", reason="no longer welcome")
            connection.commit()
            began = time.monotonic()
            wait_all(gone, lambda client: client.ended, "the end")
            took_s = time.monotonic() - began
            for client in gone:
                assert client.sentinels == [("goodbye", {"reason": "no longer welcome"})]
            return took_s

        took_less(WITHIN_S, disconnect)
        headrace.publish(connection, streams[0], "x")
    for client in staying:
        client.wait_for_data("x")
    for node in (stack, other):
        refused(node, old)
        refused(node, node.path(streams[5], user="ada", since="all", now=time.time() - 60))
        assert status(node, node.path(streams[0], user="ada")) == 200
        assert status(node, old.replace(".", ".x", 1)) == 404


def test_the_streams_connections_are_closed_once(stack: Stack, database: Database) -> None:
    """Those that have the stream among theirs are closed; they may come back, and others do not notice."""
    gone = [stack.subscribe("room:1"), stack.subscribe("room:2", "room:1", user="ada")]
    staying = stack.subscribe("room:2", user="ada")
    headrace.disconnect(database.connection, stream="room:1", reason="closed for today")
    wait_all(gone, lambda client: client.ended, "the end")
    assert [client.sentinels for client in gone] == [[("goodbye", {"reason": "closed for today"})]] * 2
    back = stack.subscribe("room:1", last_event_id=gone[0].last_id)
    database.publish("room:1", "x")
    database.publish("room:2", "y")
    assert back.wait_for_data("x") == ["x"]
    assert staying.wait_for_data("y") == ["y"]


def test_a_shard_that_dies_forgets_nothing(start_stack: StartStack, database: Database) -> None:
    """After kill -9 of the shard that held the connection, neither another nor its successor lets the token in."""
    stack = start_stack(2, heartbeat_interval_s=1)
    path = stack.path("room:1", user="ada", since="all")
    client = stack.connect(path)
    client.wait(lambda: client.last_id, "the cursor")
    database.publish("room:1", "secret")
    holder = stack.holder(client)
    headrace.disconnect(database.connection, user="ada")
    committed = time.monotonic()
    holder.kill()
    client.wait_for_end()
    holder.launch()
    wait_until(lambda: time.monotonic() > committed + WITHIN_S, "the second that is promised is over")
    for _ in range(20):
        again = stack.connect(path)
        again.wait(lambda c=again: c.status and (c.ended or c.status == 403), "the refusal")  # type: ignore[misc]
        assert again.status in (403, 503) or again.sentinels
        assert not again.events
    wait_until(lambda: holder.log.count(" serves up to ") == 2, "the successor serves")
    assert stack.router is not None
    stack.router.knows(*(shard.id for shard in stack.shards))
    refused(stack, path)


@contextlib.contextmanager
def stopped(shard: Shard) -> Iterator[None]:
    os.kill(shard.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(shard.pid, signal.SIGCONT)


@pytest.mark.parametrize("what", [{"user": "ada"}, {"stream": "room:0"}])
def test_a_connection_between_shards_is_found(
    start_stack: StartStack, database: Database, what: dict[str, str]
) -> None:
    """Who is on its way to another shard at the commit is shown out on arrival, and gets no event there."""
    stack = start_stack(2, handoff_deadline_s=30, directory_expiry_s=60)
    client = stack.subscribe("room:0", user="ada")
    giver = stack.holder(client)
    (taker,) = [shard for shard in stack.shards if shard is not giver]
    with stopped(taker):
        stopped_at = time.monotonic()
        Directory(stack.redis.url, expiry_s=60).assign("n1", {slot("room:0"): taker.id})
        database.publish("room:0", "before")
        # Detached by the giver, from then on nobody writes to it.
        wait_until(lambda: Directory(stack.redis.url, expiry_s=60).read().shards, "the directory")
        wait_until(
            lambda: next(s for s in Directory(stack.redis.url, expiry_s=60).read().shards if s.id == giver.id).moving,
            "the client is on its way",
        )
        headrace.disconnect(database.connection, **what)  # type: ignore[arg-type]
        database.publish("room:0", "after")
        # The giver has read it by then and has nobody to close.
        probe = stack.path("room:1", user="ada", now=1)
        wait_until(lambda: "stream" in what or status(stack, probe) == 403, "a shard knows of it")
        # From then on it has to ask before it reads any event.
        wait_until(lambda: time.monotonic() > stopped_at + LEASE_S, "what the taker knows is too old")
    client.wait_for_end()
    assert [name for name, _ in client.sentinels] == ["goodbye"]
    assert "after" not in client.data


def test_a_shard_that_knows_no_revocations_delivers_nothing(start_shard: StartShard, database: Database) -> None:
    """Started while they cannot be read, a shard keeps who comes waiting, and then shows out who was revoked."""
    database.publish("s", "secret")
    headrace.disconnect(database.connection, user="ada")
    with psycopg.connect(database.url) as blocker:
        blocker.execute("lock table headrace.revocation in access exclusive mode")
        shard = start_shard()
        ada, bob = (shard.connect(("s", 0), user=user, issued_ms=1) for user in ("ada", "bob"))
        for client in (ada, bob):
            client.wait(lambda c=client: c.last_id, "the head")  # type: ignore[misc]
        wait_until(lambda: len(database.backends("revocations")) == 1, "the shard tries to read them")
        # For as long as an event would take, were it delivered.
        with pytest.raises(AssertionError, match="not within"):
            wait_all([ada, bob], lambda client: client.events, "an event", 0.5)
        assert not ada.events + bob.events
    ada.wait_for_end()
    assert ada.sentinels == [("goodbye", {"reason": "disconnected"})]
    assert not ada.events
    assert bob.wait_for_data("secret") == ["secret"]


def test_events_wait_while_revocations_cannot_be_read(start_shard: StartShard, database: Database) -> None:
    """A shard that has lost only the way by which revocations come withholds events, and then delivers them all."""
    shard = start_shard(read_deadline_s=1)
    client = shard.live("s")
    with psycopg.connect(database.url) as blocker:
        blocker.execute("lock table headrace.revocation in access exclusive mode")
        published = 0
        began = last = time.monotonic()
        while time.monotonic() - last < 0.5:
            assert last - began < 8, "events are delivered though revocations cannot be read"
            published += 1
            database.publish("s", str(published))
            with contextlib.suppress(AssertionError):
                client.wait_for(published, 0.05)
                last = time.monotonic()
    client.wait_for(published)
    assert client.ids == list(range(1, published + 1))


def test_tokens_that_live_too_long_are_refused(start_stack: StartStack) -> None:
    """With a longest life set, a token without expiry or with a later one is refused, so that revocations may end."""
    stack = start_stack(1, max_token_life_s=60)
    assert status(stack, stack.path("s", ttl_s=60)) == 200
    assert status(stack, stack.path("s", ttl_s=61)) == 403
    assert status(stack, stack.path("s")) == 403


def test_many_revocations_cost_little(start_shard: StartShard, database: Database) -> None:
    """With 20,000 users revoked a shard starts and refuses as ever."""
    database.connection.execute("select headrace.disconnect('u' || n) from generate_series(1, 20000) n")
    shard = start_shard()
    # A shard that has not read them yet takes the client, and shows it out then.
    wait_until(
        lambda: shard.offer((("s", 0),), user="u20000", issued_ms=1)[1].refused == "revoked", "the client is refused"
    )
    client, answer = shard.offer((("s", 0),), user="v", issued_ms=1)
    assert not answer.refused
    assert isinstance(client, Client)
