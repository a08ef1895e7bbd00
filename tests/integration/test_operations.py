"""Operators' waits over a real Redis: what counts as done. What the shards do meanwhile is tested with real ones."""

from collections.abc import Iterator

import pytest

from headrace.errors import DirectoryUnavailableError, UnavailableError
from headrace.node import shard_operations
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from tests.fixtures.directory import entry
from tests.fixtures.redis import PRODUCT_TIMEOUT_S, RedisServer


class CutOff(Directory):
    """A directory that the shards of a node are cut off from in the moment in which that is drained or undrained."""

    def drain_node(self, node: str, over_s: float) -> None:
        super().drain_node(node, over_s)
        self._lapse(node)

    def undrain_node(self, node: str) -> None:
        super().undrain_node(node)
        self._lapse(node)

    def _lapse(self, node: str) -> None:
        for shard in self.read().shards:
            if shard.node == node:
                assert self.leave(shard.id, shard.pid)


@pytest.fixture
def directory(redis_server: RedisServer) -> Iterator[Directory]:
    made = CutOff(redis_server.url, expiry_s=30)
    for node in ("n1", "n2"):
        made.register(entry(f"{node}-0", node))
    yield made
    made.close()


def test_a_node_whose_shards_are_cut_off_is_not_drained(directory: Directory) -> None:
    """Nobody there has said that its clients have left."""
    with pytest.raises(UnavailableError, match="not done within"):
        ShardOperations(directory, lambda line: None, deadline_s=0.3).drain_node("n1", 0)
    assert directory.read().drained_nodes == {"n1": 0.0}


def test_a_node_whose_shards_are_cut_off_does_not_serve_again(directory: Directory) -> None:
    """Nobody there has said that it takes clients."""
    said: list[str] = []
    with pytest.raises(UnavailableError, match="waiting for any shard of it"):
        ShardOperations(directory, said.append, deadline_s=0.3).undrain_node("n1")
    assert said == ["waiting for any shard of it"]


def test_an_operation_under_way_outlasts_a_pause_of_redis(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wanted is written, and the shards carry it out: the operation goes on waiting, and says for what."""
    said: list[str] = []
    patient = Directory(own_redis.url, expiry_s=30)
    monkeypatch.setattr(shard_operations, "SAY_S", 0)
    monkeypatch.setattr("headrace.node.directory_script._TIMEOUT_S", PRODUCT_TIMEOUT_S)
    directory = Directory(own_redis.url, expiry_s=30)

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("waiting for Redis: Redis cannot be used"):
            own_redis.resume()
            patient.register(entry("n1-0", "n1"))
        else:
            own_redis.pause()

    try:
        ShardOperations(directory, say).join(["n1-0"])
    finally:
        own_redis.resume()
        directory.close()
        patient.close()
    assert any(line.startswith("waiting for Redis") for line in said)


def test_an_operation_does_not_wait_for_redis_for_ever(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without Redis it says so, and ends."""
    monkeypatch.setattr(shard_operations, "PATIENCE_S", 0.3)
    directory = Directory(own_redis.url, expiry_s=30)
    said: list[str] = []
    try:
        own_redis.kill()
        with pytest.raises(DirectoryUnavailableError, match="Redis cannot be used"):
            ShardOperations(directory, said.append).join(["n1-0"])
    finally:
        directory.close()
    assert said[0].startswith("waiting for Redis")
