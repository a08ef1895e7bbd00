"""Restarting and scaling a running node: every process is replaced, and no client's connection closes."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator

import psycopg
import pytest

import headrace
from headrace.node.directory import Directory
from headrace.tokens import sign
from tests.fixtures.client import Client, wait_all
from tests.fixtures.up import REDIS, Up, searchable_directory
from tests.fixtures.waiting import took_less, wait_until
from tests.system.test_cli import headrace as command

STREAMS = [f"room:{number}" for number in range(8)]


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    directory = searchable_directory()
    # A process of this machine may stand still for a while; who waits for it loses no client.
    patient = {"HEADRACE_HANDOFF_DEADLINE_S": "10", "HEADRACE_DIRECTORY_EXPIRY_S": "10"}
    up = Up(directory, "--port", "0", "--shards", "1", environ=patient)
    up.ready()
    yield up
    up.close()
    shutil.rmtree(directory)


@pytest.fixture
def clients(up: Up) -> Iterator[dict[Client, str]]:
    """Three live clients of each stream."""
    port = int(up.ready().rpartition(":")[2])
    made: dict[Client, str] = {}
    for stream in STREAMS * 3:
        path = f"/streams/{sign(stream, secrets=[up.environ['HEADRACE_SECRET']])}?since=all"
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        made[Client(connection)] = stream
    wait_all(made, lambda client: client.last_id, "the cursor")
    yield made
    for client in made:
        client.close()


def publish_round(up: Up) -> dict[str, int]:
    with psycopg.connect(up.environ["HEADRACE_DATABASE_URL"], autocommit=True) as connection:
        return {stream: headrace.publish_now(connection, stream, "x") for stream in STREAMS}


def whole(clients: dict[Client, str], heads: dict[str, int]) -> None:
    wait_all(clients, lambda client: client.last_id == str(heads[clients[client]]), "the newest event")
    for client, stream in clients.items():
        assert client.ids == list(range(1, heads[stream] + 1))
        assert not client.ended


def processes(up: Up) -> dict[str, int]:
    directory = Directory(up.environ["HEADRACE_REDIS_URL"], expiry_s=3)
    return {entry.id: entry.pid for entry in directory.read().shards}


def test_restart(up: Up, clients: dict[Client, str]) -> None:
    """A single shard is replaced by its successor, which takes all clients."""
    publish_round(up)
    before = processes(up)
    done = command("restart", cwd=up.directory)
    assert (done.returncode, done.stdout) == (0, "restarted n-0\n")
    after = processes(up)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    whole(clients, publish_round(up))


def test_scale(up: Up, clients: dict[Client, str]) -> None:
    """Shards that are added get their share of the clients, and give it back when they are removed."""
    assert command("scale", "3", cwd=up.directory).stdout == "3 shards\n"
    assert sorted(processes(up)) == ["n-0", "n-1", "n-2"]
    heads = publish_round(up)
    assert command("scale", "1", cwd=up.directory).stdout == "1 shards\n"
    assert list(processes(up)) == ["n-0"]
    assert heads
    whole(clients, publish_round(up))


def test_hang_up_restarts_all(up: Up, clients: dict[Client, str]) -> None:
    """SIGHUP replaces the router's workers and every shard, as a deploy does."""
    before = processes(up)["n-0"]
    up.process.send_signal(signal.SIGHUP)
    wait_until(lambda: processes(up).get("n-0", before) != before, "the successor is registered")
    up.says(rf"pid {before} hands its connections")
    whole(clients, publish_round(up))


def test_unknown_shard(up: Up) -> None:
    """A shard that is not there is named, with those that are, and the status is that of bad input."""
    done = command("restart", "n-9", cwd=up.directory)
    assert done.returncode == 2
    assert "it has n-0" in done.stderr


def test_without_redis_nothing_is_replaced(up: Up, clients: dict[Client, str]) -> None:
    """While Redis is away, a restart and a scaling say so within seconds, and no process or client is touched."""
    before = up.pids("shard")
    redis = up.pid(REDIS)
    os.kill(redis, signal.SIGSTOP)

    def refused(*arguments: str) -> float:
        began = time.monotonic()
        done = command(*arguments, cwd=up.directory)
        assert (done.returncode, done.stdout) == (1, "")
        assert "HEADRACE_REDIS_URL" in done.stderr
        return time.monotonic() - began

    try:
        for arguments in (["restart"], ["scale", "2"], ["scale", "1"]):
            took_less(10, lambda arguments=arguments: refused(*arguments))
    finally:
        os.kill(redis, signal.SIGCONT)
    assert up.pids("shard") == before
    whole(clients, publish_round(up))


def test_nobody_to_ask(up: Up) -> None:
    """Without an `up`, restart and scale say where they can be run."""
    environ = {"HEADRACE_REDIS_URL": up.environ["HEADRACE_REDIS_URL"], "HEADRACE_RUNTIME_DIR": "/nonexistent"}
    for arguments in (["restart"], ["scale", "2"]):
        done = command(*arguments, cwd=up.directory, environ=environ)
        assert done.returncode == 1
        assert "no `headrace up` answers" in done.stderr
