"""Whom a router lets in; what the directory counts for that is tested with a real Redis."""

import socket
from pathlib import Path

import gevent
import pytest

from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.shard_entry import ShardEntry
from headrace.router.client_placement import ClientPlacement
from headrace.router.connection_limits import MOST_QUESTIONS, ConnectionLimits, Refusal
from headrace.settings import Settings


def test_without_redis_nobody_is_counted_who_may_have_left(tmp_path: Path) -> None:
    """A node's limit holds while Redis tells how many there are; in an outage those given away only add up."""
    settings = Settings(node="n", max_node_connections=3)
    placement = ClientPlacement("n", hold_s=3, found=list)
    limits = ConnectionLimits(Directory("redis://127.0.0.1:1/0", expiry_s=3), placement, settings)
    placement.learn(
        DirectorySnapshot(("g", 1), (ShardEntry("n-0", "n", 1, str(tmp_path / "n-0.sock"), "up", 9, 1, 0, "0"),))
    )
    placement.gave("n-0")
    assert limits.refusal("r1", {}) is None
    placement.gave("n-0")
    assert limits.refusal("r2", {}) == Refusal("this node has its 3 connections", elsewhere=True)
    placement.lose_directory()
    assert limits.refusal("r2", {}) is None


def test_who_waits_to_ask_redis_asks_no_more_when_it_is_away() -> None:
    """With all questions stuck in a silent Redis, those in line are let in as soon as it is found to be away."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        placement = ClientPlacement("n", hold_s=3, found=list)
        placement.learn(DirectorySnapshot(("g", 1)))
        directory = Directory(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", expiry_s=3)
        limits = ConnectionLimits(directory, placement, Settings(node="n"))
        questions = limits._questions
        for _ in range(MOST_QUESTIONS):
            questions.acquire()
        asked: list[Refusal | None] = []
        waiting = [
            gevent.spawn(lambda: asked.append(limits.refusal("r1", {"user:ada": 1}))),
            gevent.spawn(lambda: asked.append(limits.release("r2", {"user:ada": 1}))),
        ]
        gevent.sleep(0)
        assert not any(greenlet.ready() for greenlet in waiting)
        placement.lose_directory()
        questions.release()
        gevent.joinall(waiting)
        assert asked == [None, None]
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
