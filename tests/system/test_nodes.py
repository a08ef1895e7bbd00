"""Two nodes on one machine, with nginx in front: what one gives up, the other serves."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fixtures.nodes import Node, Reader, running_nodes
from tests.fixtures.redis import RedisServer
from tests.fixtures.reverse_proxy import ReverseProxy
from tests.fixtures.shard import Database
from tests.fixtures.up import ENVIRON, Up
from tests.fixtures.waiting import wait_until
from tests.system.test_cli import headrace as command

STREAMS = [f"room:{number}" for number in range(40)]
OVER_S = 4.0


@pytest.fixture
def nodes(database: Database, own_redis: RedisServer) -> Iterator[list[Node]]:
    """Two nodes of two shards."""
    with running_nodes(("a", "b"), database, own_redis, 2) as made:
        yield made


def shards(up: Up) -> dict[str, dict[str, int | str]]:
    told = json.loads(command("status", "--json", cwd=up.directory).stdout)
    return {shard["id"]: shard for shard in told["shards"]}


def connections(up: Up, node: str) -> int:
    return sum(int(shard["connections"]) for shard in shards(up).values() if shard["node"] == node)


def test_draining_a_node_sends_its_clients_to_the_other(nodes: list[Node], database: Database) -> None:
    """Over the set time its clients are asked to leave, nginx takes them to the other node, and nothing is lost."""
    front = ReverseProxy("nginx", nodes)
    readers = [Reader(stream, front.port) for stream in STREAMS]
    try:
        wait_until(lambda: _read(readers) and all(r.client and r.client.last_id for r in readers), "all are served")
        wait_until(
            lambda: connections(nodes[0].up, "a") + connections(nodes[0].up, "b") == 40, "the directory has them"
        )
        theirs = connections(nodes[0].up, "a")
        assert theirs == 20, "nginx gives each client to the node with fewer"
        draining = subprocess.Popen(
            [sys.executable, "-P", "-m", "headrace.cli", "drain", "--node", "a", "--over", str(OVER_S)],
            cwd=nodes[1].up.directory,
            env=ENVIRON,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while draining.poll() is None:
            for stream in STREAMS:
                database.publish(stream, "x")
            _read(readers)
        said, progress = draining.communicate()
        assert (draining.returncode, said) == (0, "node a is drained\n"), progress
        assert "connections left" in progress
        for stream in STREAMS:
            database.publish(stream, "the last")
        wait_until(
            lambda: _read(readers) and all(r.seen == list(range(1, database.head(r.stream) + 1)) for r in readers),
            "everybody has everything, once, in order",
        )
        left = sorted(reader.left_at for reader in readers if reader.left_at is not None)
        assert len(left) == theirs, "nobody is asked to leave who need not"
        assert left[-1] - left[0] > OVER_S / 4, "they do not leave together"
        assert {shard["state"] for shard in shards(nodes[0].up).values() if shard["node"] == "a"} == {"drained"}
        wait_until(lambda: connections(nodes[0].up, "b") == 40, "the other node has all")
        assert command("undrain", "--node", "a", cwd=nodes[0].up.directory).returncode == 0
        newcomers = [Reader(stream, front.port) for stream in STREAMS]
        readers += newcomers
        wait_until(lambda: _read(readers) and all(r.client and r.client.last_id for r in newcomers), "all are served")
        # nginx has taken node a for failed; it tries again two seconds later.
        wait_until(lambda: _again(readers, front.port) and connections(nodes[0].up, "a") > 0, "node a serves again")
    finally:
        for reader in readers:
            if reader.client is not None:
                reader.client.close()
        front.remove()


def _read(readers: list[Reader]) -> bool:
    for reader in readers:
        reader.read()
    return True


def _again(readers: list[Reader], port: int) -> bool:
    """One more client of each stream."""
    more = [Reader(stream, port) for stream in STREAMS]
    readers += more
    return _read(more)
