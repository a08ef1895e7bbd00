"""Two deployments on one Redis: whatever they have in common, nothing crosses, and an accident is told."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from headrace.cursor import Position
from headrace.node import handoff
from headrace.node.directory import Directory
from headrace.node.handoff import Handoff, Moved
from headrace.node.shard_operations import ShardOperations
from headrace.schema.identity import identity
from headrace.tokens import Context
from tests.fixtures.client import Client
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database, StartShard
from tests.fixtures.stack import Stack
from tests.fixtures.waiting import DEADLINE_S, wait_until

SENTENCE = "this Redis database holds the directory of another headrace deployment"
Build = Callable[..., Stack]


@pytest.fixture
def build(database: Database, other_database_url: str, own_redis: RedisServer) -> Iterator[Build]:
    """Builds a node of one of two deployments, which have the node's name and the Redis in common."""
    other = Database(other_database_url)
    made: list[Stack] = []

    def build_(which: int, shards: int = 1, **settings: Any) -> Stack:
        made.append(Stack((database, other)[which], own_redis, shards, directory_expiry_s=1, **settings))
        return made[-1]

    yield build_
    for stack in made:
        print(*(shard.log for shard in stack.shards), sep="\n")  # noqa: T201  # pytest shows it with a failure
        if stack.router is not None:
            print(stack.router.log.read_text())  # noqa: T201
        stack.remove()
    other.close()


def command(*arguments: str, stack: Stack) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environ |= {"HEADRACE_DATABASE_URL": stack.database.url, "HEADRACE_REDIS_URL": stack.redis.url}
    program = [sys.executable, "-P", "-m", "headrace.cli", *arguments]
    ran = subprocess.run(program, env=environ, cwd=stack.runtime_dir, capture_output=True, text=True, check=False)
    return ran


def publish_to_both(*stacks: Stack) -> None:
    """An event to the same stream of both, which tells where it is from."""
    for stack in stacks:
        stack.database.publish("room:1", f"of {stack.database.url}")


def only_its_own(stack: Stack, client: Client, count: int) -> None:
    """The client has so many events of its own deployment, and none of the other's."""
    client.wait(lambda: len(client.events) >= count, "its events")
    assert client.data == [f"of {stack.database.url}"] * count
    assert not client.ended


def test_an_accident_is_told_and_touches_nobody(build: Build) -> None:
    """The second deployment's shards and commands refuse with what to do; the first one goes on as if alone."""
    first, second = build(0).start(), build(1)
    client = first.subscribe("room:1")
    pid = first.shards[0].pid
    (refused,) = second.shards
    refused.launch()
    assert refused.exit_status() == 1
    assert SENTENCE in refused.log
    assert "HEADRACE_REDIS_PREFIX" in refused.log
    for arguments in (["status"], ["drain", "n1-0"], ["undrain", "--node", "n1"], ["rebalance"]):
        ran = command(*arguments, stack=second)
        assert ran.returncode == 1
        assert SENTENCE in ran.stderr
    findings = {finding["check"]: finding for finding in json.loads(command("doctor", "--json", stack=second).stdout)}
    assert findings["directory"]["level"] == "fail"
    assert SENTENCE in findings["directory"]["found"]
    assert "HEADRACE_REDIS_PREFIX" in findings["directory"]["advice"]
    publish_to_both(first, second)
    only_its_own(first, client, 1)
    assert first.router is not None
    assert [(shard["pid"], shard["state"]) for shard in first.router.ready()["shards"]] == [(pid, "up")]
    assert "n1-0" in command("status", stack=first).stdout


def test_with_a_prefix_they_share_on_purpose(build: Build) -> None:
    """With a prefix for one of them both serve; draining a shard, or a node, of one is nothing to the other."""
    first, second = build(0).start(), build(1, shards=2, redis_prefix="shop").start()
    clients = [stack.subscribe("room:1") for stack in (first, second)]
    publish_to_both(first, second)
    directory = Directory(second.redis.url, expiry_s=1, prefix="shop")
    ShardOperations(directory, lambda line: None, deadline_s=DEADLINE_S).drain("n1-0")
    publish_to_both(first, second)
    for stack, client in zip((first, second), clients, strict=True):
        only_its_own(stack, client, 2)
    assert first.router is not None
    (shard,) = first.router.ready()["shards"]
    assert (shard["state"], first.router.ready()["redis"]["status"]) == ("up", "ok")
    directory.close()


def test_two_that_run_already_when_they_meet(build: Build, own_redis: RedisServer) -> None:
    """Both began while Redis was away. One gets the directory; the other says so and serves its clients without."""
    own_redis.kill()
    stacks = [build(which).start(directory=False) for which in (0, 1)]
    routers = [stack.router for stack in stacks if stack.router is not None]
    own_redis.start()
    # The directory is given to one of them; at a moment at which its entry has expired, the other may get it.
    wait_until(
        lambda: sorted(router.ready()["redis"]["status"] for router in routers) == ["foreign", "ok"],
        "one has the directory",
    )
    clients = [stack.subscribe("room:1") for stack in stacks]
    publish_to_both(*stacks)
    for stack, client in zip(stacks, clients, strict=True):
        only_its_own(stack, client, 1)
        for router in routers:
            assert all(shard["reachable"] for shard in router.ready()["shards"])
    assert any(SENTENCE in shard.log for stack in stacks for shard in stack.shards)
    assert any(SENTENCE in router.log.read_text() for router in routers)


def offer(channel: socket.socket, shard: Any, message: Handoff) -> str:
    near, far = shard.pair()
    with near, far:
        socket.send_fds(channel, [handoff.encode(message)], [far.fileno()])
        return handoff.decode_answer(channel.recv(65536)).refused


def test_no_client_of_another_deployment_is_taken(start_shard: StartShard, database: Database) -> None:
    """Neither from a router nor from a shard; those of its own, and of processes that do not know theirs, are."""
    shard = start_shard()
    with psycopg.connect(database.url, autocommit=True) as connection:
        ours = str(identity(connection))
    theirs = "00000000-0000-4000-8000-000000000000"

    def message(deployment: str, **more: Any) -> Handoff:
        return Handoff((("s", Position(0)),), Context(), "r", "127.0.0.1:9", deployment=deployment, **more)

    with contextlib.closing(shard.channel()) as channel:
        assert offer(channel, shard, message(theirs)) == handoff.REFUSED_FOREIGN
        assert offer(channel, shard, message(theirs, moved=Moved())) == handoff.REFUSED_FOREIGN
        assert offer(channel, shard, message(theirs, page=5)) == handoff.REFUSED_FOREIGN
        for deployment in (ours, ""):
            assert offer(channel, shard, message(deployment)) == ""
    assert Path(shard.path.parent / "deployment").read_text().strip() == ours


def test_a_redis_that_refuses_writes_costs_no_shard(build: Build, own_redis: RedisServer) -> None:
    """While nobody can write, entries of living shards expire; routers keep to all of them, and say what is wrong."""
    stack = build(0, shards=2).start()
    assert stack.router is not None
    with redis.Redis(unix_socket_path=str(own_redis.socket)) as admin:
        admin.config_set("maxmemory", "1")
        wait_until(lambda: not list(admin.scan_iter("headrace:shard:*")), "the entries have expired")
        wait_until(lambda: stack.router.ready()["redis"]["status"] == "read-only", "/readyz says so")  # type: ignore[union-attr]
        ready = stack.router.ready()
        assert ready["status"] == "degraded"
        assert {shard["id"]: shard["reachable"] for shard in ready["shards"]} == {"n1-0": True, "n1-1": True}
        assert "raise its maxmemory" in stack.router.log.read_text()
        wait_until(lambda: all("raise its maxmemory" in shard.log for shard in stack.shards), "the shards say it")
        assert b"headrace_redis_up" in stack.router.get("/metrics")[2]
        assert [
            line.rpartition(" ")[2]
            for line in stack.router.get("/metrics")[2].decode().splitlines()
            if line.startswith("headrace_redis_up{")
        ] == ["0.0"] * 3
        ran = command("doctor", "--json", stack=stack)
        findings = {finding["check"]: finding for finding in json.loads(ran.stdout)}
        assert "raise its maxmemory" in findings["directory"]["advice"]
        client = stack.subscribe("room:1")
        admin.config_set("maxmemory", "0")
    wait_until(lambda: stack.router.ready()["status"] == "ok", "all is well again")  # type: ignore[union-attr]
    stack.router.knows("n1-0", "n1-1")
    publish_to_both(stack)
    only_its_own(stack, client, 1)
