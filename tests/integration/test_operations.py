"""Operators' waits over a real Redis: what counts as done. What the shards do meanwhile is tested with real ones."""

from collections.abc import Iterator

import pytest

from headrace.directory import Directory
from headrace.errors import UnavailableError
from headrace.operations import Operations
from tests.fixtures.directory import entry
from tests.fixtures.redis import RedisServer


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
        Operations(directory, lambda line: None, deadline_s=0.3).drain_node("n1", 0)
    assert directory.read().drained_nodes == {"n1": 0.0}


def test_a_node_whose_shards_are_cut_off_does_not_serve_again(directory: Directory) -> None:
    """Nobody there has said that it takes clients."""
    said: list[str] = []
    with pytest.raises(UnavailableError, match="waiting for any shard of it"):
        Operations(directory, said.append, deadline_s=0.3).undrain_node("n1")
    assert said == ["waiting for any shard of it"]
