"""What a shard makes of the channels to its node's other shards."""

import socket
from pathlib import Path

import gevent

from headrace.directory import ShardEntry
from shard.siblings import Siblings
from tests.fixtures.descriptors import no_free_descriptor
from tests.fixtures.waiting import wait_until


def test_a_shard_that_could_not_be_watched_is_watched_later(tmp_path: Path) -> None:
    """Where no file can be opened for a while, a death is noticed all the same as soon as one can."""
    path = tmp_path / "n-1.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_behind:
        left_behind.bind(str(path))
    entry = ShardEntry("n-1", "n", 1, str(path), "up", 10, 0, 0, "0")
    died: list[ShardEntry] = []
    siblings = Siblings(died.append)
    gevent.sleep(0)
    with no_free_descriptor():
        siblings.watch([entry])
        gevent.wait(timeout=1)
    assert died == []
    siblings.watch([entry])
    wait_until(lambda: gevent.sleep(0.001) or died, "the death is noticed")
    siblings.stop()
    assert died == [entry]
