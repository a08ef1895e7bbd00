"""Redis behind Sentinels, and as a cluster: real servers, a fail-over, and a slot that moves to another node."""

import contextlib
import ctypes
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from headrace.errors import SettingsError
from headrace.node.directory import Directory
from headrace.node.redis_client import redis_client
from headrace.settings import Settings
from headrace.shard.bus.redis_channels import RedisChannels
from tests.fixtures.redis import program
from tests.fixtures.waiting import wait_until

PASSWORD = "s3cret/&?"
QUOTED = "s3cret%2F%26%3F"
SLOTS = 16384
LIBC = ctypes.CDLL(None)


def free_port() -> int:
    """A port that nobody has, nor the one 10,000 above it, at which the nodes of a cluster meet."""
    while True:
        port = random.randrange(15_000, 30_000)
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 10_000)),
        ):
            return port


class Server:
    """One Valkey at a TCP port, which dies with the tests. Owned by the test."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-redis-"))
        file = self.directory / "redis.conf"
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\nsave ''\n" + "\n".join(arguments) + "\n"
        )
        self.process = subprocess.Popen(
            [program(), str(file), *(["--sentinel"] if "sentinel" in "".join(arguments) else [])],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: LIBC.prctl(1, signal.SIGKILL),
        )

    def client(self, password: str | None = None) -> "redis.Redis":
        return redis.Redis(host="127.0.0.1", port=self.port, password=password, decode_responses=True)

    def wait(self, password: str | None = None) -> "Server":
        def answers() -> bool:
            try:
                with self.client(password) as client:
                    return bool(client.ping())
            except redis.RedisError:
                return False

        wait_until(answers, f"the server at {self.port} answers")
        return self

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Stops what was started."""
    with ExitStack() as stack:
        yield stack


def started(servers: ExitStack, *arguments: str) -> Server:
    server = Server(*arguments)
    servers.callback(server.stop)
    return server


def holds(directory: Directory, who: str) -> bool:
    """Whether the directory answers, as a shard asks it."""
    try:
        return directory.hold("test", who, 30)
    except Exception:
        return False


def test_the_primary_is_found_by_sentinels_and_found_again(servers: ExitStack) -> None:
    """The directory and the bus follow a fail-over, with a password of the servers and one of the Sentinels."""
    secured = f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"'
    primary = started(servers, *secured).wait(PASSWORD)
    replica = started(servers, *secured, f"replicaof 127.0.0.1 {primary.port}").wait(PASSWORD)
    sentinel = started(
        servers,
        f"sentinel monitor events 127.0.0.1 {primary.port} 1",
        f'sentinel auth-pass events "{PASSWORD}"',
        "sentinel down-after-milliseconds events 300",
        "sentinel failover-timeout events 1500",
        'requirepass "of the sentinels"',
    ).wait("of the sentinels")
    with replica.client(PASSWORD) as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica follows")
    with sentinel.client("of the sentinels") as client:
        wait_until(lambda: client.execute_command("SENTINEL", "REPLICAS", "events"), "the Sentinel knows the replica")
    url = (
        f"redis+sentinel://:{QUOTED}@127.0.0.1:1,127.0.0.1:{sentinel.port}/events/0"
        "?sentinel_password=of%20the%20sentinels"
    )
    settings = Settings(redis_url=url)
    directory = servers.enter_context(closing(Directory.of(settings, lambda: "")))
    channels = servers.enter_context(closing(RedisChannels(settings)))
    assert directory.hold("test", "first", 60)
    reader = channels.subscribe("pulse")
    assert channels.publish([(channels.name("pulse"), b"x")]) == 1
    reader.close()
    with replica.client(PASSWORD) as client:
        wait_until(lambda: client.get("headrace:held_by:test"), "the replica has it")
    primary.stop()
    wait_until(lambda: holds(directory, "first"), "the directory is at the new primary")
    assert not directory.hold("test", "second", 30)
    with replica.client(PASSWORD) as client:
        assert client.info("replication")["role"] == "master"


def test_the_node_of_a_cluster_is_found_and_found_again(servers: ExitStack) -> None:
    """All keys and channels are on the node with the prefix' slot, and a client follows the slot to another node."""
    nodes = [started(servers, "cluster-enabled yes").wait() for _ in range(2)]
    first, second = (servers.enter_context(node.client()) for node in nodes)
    slot = key_slot(b"{events}")
    first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1, slot + 1, SLOTS - 1)
    second.execute_command("CLUSTER", "ADDSLOTS", slot)
    # An epoch each, as `redis-cli --cluster create` gives them.
    first.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 1)
    second.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
    first.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
    wait_until(
        lambda: all("cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")) for client in (first, second)),
        "the cluster is whole",
    )
    settings = Settings(redis_url=f"redis+cluster://127.0.0.1:{nodes[0].port}", redis_prefix="{events}")
    directory = servers.enter_context(closing(Directory.of(settings, lambda: "")))
    channels = servers.enter_context(closing(RedisChannels(settings)))
    assert directory.hold("test", "first", 60)
    assert second.keys() == ["{events}:held_by:test"]
    reader = channels.subscribe("pulse", 3)
    assert channels.publish([(channels.name("pulse"), b"x"), (channels.name(3), b"y")]) == 2
    reader.close()
    second.delete("{events}:held_by:test")
    ids = [client.execute_command("CLUSTER", "MYID") for client in (first, second)]
    for client in (second, first):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[0])
    wait_until(lambda: holds(directory, "first"), "the directory is at the other node")
    assert first.keys() == ["{events}:held_by:test"]


@pytest.mark.parametrize(
    ("url", "prefix", "told"),
    [
        ("redis+sentinel://localhost", "headrace", "name of the service"),
        ("redis+sentinel://localhost/a/b", "headrace", "name of the service"),
        ("redis+sentinel:///a", "headrace", "no host"),
        ("redis+cluster://localhost", "headrace", "hash tag"),
    ],
)
def test_what_cannot_be_used_is_told(url: str, prefix: str, told: str) -> None:
    """Before any connection is tried."""
    with pytest.raises(ValueError, match=told):
        redis_client(url, prefix)
    with pytest.raises(SettingsError, match=told):
        Directory.of(Settings(redis_url=url, redis_prefix=prefix), lambda: "")
