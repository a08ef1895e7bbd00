"""What a shard makes of the channels to its node's other shards."""

import socket
from pathlib import Path

import gevent
from gevent import socket as gsocket

from headrace.node.shard_entry import ShardEntry
from headrace.shard.node.death_watch import DeathWatch
from tests.fixtures.descriptors import no_free_descriptor
from tests.fixtures.waiting import wait_until


def test_a_shard_that_could_not_be_watched_is_watched_later(tmp_path: Path) -> None:
    """Where no file can be opened for a while, a death is noticed all the same as soon as one can."""
    path = tmp_path / "n-1.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_behind:
        left_behind.bind(str(path))
    entry = ShardEntry("n-1", "n", 1, str(path), "up", 10, 0, 0, "0")
    died: list[ShardEntry] = []
    deaths = DeathWatch(died.append)
    gevent.sleep(0)
    with no_free_descriptor():
        deaths.watch([entry])
        gevent.wait(timeout=1)
    assert died == []
    deaths.watch([entry])
    wait_until(lambda: gevent.sleep(0.001) or died, "the death is noticed")
    deaths.stop()
    assert died == [entry]


def test_a_death_is_seen_whichever_file_the_kernel_closes_first(tmp_path: Path) -> None:
    """Our channel ends while its socket still listens for a moment: a death; it goes on listening: none."""
    for id_ in ("n-1", "n-2"):
        died: list[ShardEntry] = []
        deaths = DeathWatch(died.append)
        path = tmp_path / f"{id_}.sock"
        entry = ShardEntry(id_, "n", 1, str(path), "up", 10, 0, 0, "0")
        with gsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(path))
            listening.listen(4)
            deaths.watch([entry])
            channel, _ = listening.accept()
            channel.close()
            # The first look, which finds that somebody listens.
            listening.accept()[0].close()
            if id_ == "n-1":
                listening.close()
            gevent.wait(timeout=5)
        deaths.stop()
        assert died == ([entry] if id_ == "n-1" else [])
