"""Clients that break off while they are handed over."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.node import handoff
from headrace.node.handoff import Handoff
from headrace.node.placement import rendezvous
from headrace.stream import slot
from headrace.tokens import sign
from tests.fixtures.client import is_reset, reset
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET, Router
from tests.fixtures.scripted_shard import ScriptedShard, Shards
from tests.fixtures.waiting import DEADLINE_S, wait_until


@pytest.fixture
def router(shared_redis: RedisServer, runtime_dir: Path) -> Iterator[Router]:
    made = Router(redis_url=shared_redis.url, runtime_dir=runtime_dir, directory_interval_s=0.2)
    yield made
    made.remove()


def test_a_client_that_breaks_off_is_offered_to_nobody_else(router: Router, shards: Shards) -> None:
    """A shard that finds a connection reset is not at fault, whatever it says, and no other shard is asked."""
    left = threading.Event()

    def finds_it_gone(shard: ScriptedShard, channel: socket.socket, message: Handoff, client: socket.socket) -> bool:
        with client:
            left.wait(DEADLINE_S)
            wait_until(lambda: is_reset(client), "the reset has come")
        channel.send(handoff.encode_answer(handoff.HandoffAnswer(reasons.pop())))
        return True

    pair = rendezvous(slot("room:1"), ["gone-a", "gone-b"])
    first, second = (shards.add(id_, finds_it_gone) for id_ in pair)
    router.knows(*pair)
    # The last is what release 0.2.0 says, of each form that it is offered.
    for said in (["gone"], ["unreadable"] * 2):
        reasons = list(said)
        left.clear()
        known = len(first.messages)
        lines = len(router.log.read_text())
        client = router.connect(f"/streams/{sign('room:1', secrets=[SECRET])}")
        wait_until(lambda: len(first.messages) > known, "the first shard has it")  # noqa: B023
        reset(client)
        left.set()
        wait_until(lambda: "outcome=gone" in router.log.read_text()[lines:], "the router knows that it has gone")  # noqa: B023
        assert "failed" not in router.log.read_text()[lines:]
    assert not second.messages
