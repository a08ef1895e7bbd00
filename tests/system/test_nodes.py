"""Two nodes on one machine, with nginx in front: what one gives up, the other serves."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from headrace.tokens import sign
from tests.fixtures.client import Client
from tests.fixtures.redis import RedisServer
from tests.fixtures.reverse_proxy import ReverseProxy
from tests.fixtures.shard import Database
from tests.fixtures.up import ENVIRON, Up, searchable_directory
from tests.fixtures.waiting import DEADLINE_S, wait_until
from tests.system.test_cli import headrace as command

SECRET = "a-secret-of-two-nodes"
STREAMS = [f"room:{number}" for number in range(40)]
OVER_S = 4.0


@dataclass(frozen=True)
class Address:
    """Where nginx finds a node."""

    port: int


@dataclass
class Reader:
    """A client over all its connections, as a browser is: it comes back at once, with its last id."""

    stream: str
    port: int
    ids: list[int] = field(default_factory=list)
    left_at: float | None = None
    client: Client | None = None
    last_id: str = "0"

    def read(self) -> None:
        """Take what is there; come back if the connection has ended."""
        if self.client is None:
            path = f"/streams/{sign([self.stream], secrets=[SECRET])}"
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
            lines = [f"GET {path} HTTP/1.0", "Host: test", f"Last-Event-ID: {self.last_id}", "", ""]
            connection.sendall("\r\n".join(lines).encode())
            self.client = Client(connection)
        self.client.pump()
        if self.client.ended:
            assert self.client.status == 200, bytes(self.client.raw)
            assert ("goodbye", {"reason": "drain"}) in self.client.sentinels
            self.left_at = time.monotonic()
            self.ids += self.client.ids
            self.last_id = self.client.last_id
            self.client.close()
            self.client = None

    @property
    def seen(self) -> list[int]:
        """Every event that it was given."""
        return self.ids + (self.client.ids if self.client is not None else [])


@pytest.fixture
def nodes(database: Database, own_redis: RedisServer) -> Iterator[list[Up]]:
    """Two times `headrace up` with directories of their own, one PostgreSQL and one Redis."""
    environ = {
        "HEADRACE_DATABASE_URL": database.url,
        "HEADRACE_REDIS_URL": own_redis.url,
        "HEADRACE_SECRET": SECRET,
        "HEADRACE_DEMO": "0",
        # More often than the test's nginx loses patience.
        "HEADRACE_HEARTBEAT_INTERVAL_S": "0.5",
    }
    with ExitStack() as closing:
        made = []
        for name in ("a", "b"):
            directory = searchable_directory()
            closing.callback(shutil.rmtree, directory)
            made.append(Up(directory, "--node", name, "--port", "0", "--shards", "2", environ=environ))
            closing.callback(made[-1].close)
        for up in made:
            up.ready()
        yield made


def shards(up: Up) -> dict[str, dict[str, int | str]]:
    told = json.loads(command("status", "--json", cwd=up.directory).stdout)
    return {shard["id"]: shard for shard in told["shards"]}


def connections(up: Up, node: str) -> int:
    return sum(int(shard["connections"]) for shard in shards(up).values() if shard["node"] == node)


def test_draining_a_node_sends_its_clients_to_the_other(nodes: list[Up], database: Database) -> None:
    """Over the set time its clients are asked to leave, nginx takes them to the other node, and nothing is lost."""
    ports = [int(up.ready().rpartition(":")[2]) for up in nodes]
    front = ReverseProxy("nginx", [Address(port) for port in ports])  # type: ignore[misc]
    readers = [Reader(stream, front.port) for stream in STREAMS]
    try:
        wait_until(lambda: _read(readers) and all(r.client and r.client.last_id for r in readers), "all are served")
        wait_until(lambda: connections(nodes[0], "a") + connections(nodes[0], "b") == 40, "the directory has them")
        theirs = connections(nodes[0], "a")
        assert 2 < theirs < 38  # nginx spreads streams by chance, as nodes have other ports each time
        draining = subprocess.Popen(
            [sys.executable, "-P", "-m", "headrace.cli", "drain", "--node", "a", "--over", str(OVER_S)],
            cwd=nodes[1].directory,
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
        assert {shard["state"] for shard in shards(nodes[0]).values() if shard["node"] == "a"} == {"drained"}
        wait_until(lambda: connections(nodes[0], "b") == 40, "the other node has all")
        assert command("undrain", "--node", "a", cwd=nodes[0].directory).returncode == 0
        newcomers = [Reader(stream, front.port) for stream in STREAMS]
        readers += newcomers
        wait_until(lambda: _read(readers) and all(r.client and r.client.last_id for r in newcomers), "all are served")
        # nginx has taken node a for failed; it tries again two seconds later.
        wait_until(lambda: _again(readers, front.port) and connections(nodes[0], "a") > 0, "node a serves again")
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
