"""A shard's pruner, as it forgets idle streams and notes those of its own clients."""

from collections.abc import Iterator

import gevent
import pytest

from headrace.settings import Settings
from headrace.shard.connection import Connection as ClientConnection
from headrace.shard.connection import Subscription
from headrace.shard.postgres.pruner import Pruner
from headrace.shard.registry import Registry
from headrace.tokens import Context
from tests.fixtures.forgetting import age, empty, names
from tests.fixtures.postgres import Connection
from tests.fixtures.waiting import wait_until


def follow(registry: Registry, fd: int, stream: str) -> ClientConnection:
    """A client of the stream."""
    client = ClientConnection(fd, Context(), str(fd), "peer")
    client.subscriptions = (Subscription(client, registry.join(client, stream), 0, "now"),)
    return client


@pytest.fixture
def registry() -> Registry:
    return Registry(0, keeps_left=True)


@pytest.fixture
def pruner(database_url: str, registry: Registry) -> Iterator[Pruner]:
    """A pruner that forgets what has been idle for an hour; it is not started."""
    settings = Settings.from_environ(
        {
            "HEADRACE_DATABASE_URL": database_url,
            "HEADRACE_PRUNE_INTERVAL_S": "0.1",
            "HEADRACE_FORGET_AFTER_S": "3600",
        }
    )
    made = Pruner(settings, "n-0", registry)
    yield made
    made.stop()


def test_streams_with_a_client_are_noted_before_others_are_forgotten(
    connection: Connection, pruner: Pruner, registry: Registry
) -> None:
    """Streams that have a client here, or had one since the last note, stay; the others go, and are counted."""
    empty(connection, "followed", "left", "idle")
    age(connection)
    follow(registry, 1, "followed")
    registry.leave(follow(registry, 2, "left"), 0.0)
    pruner.start()

    def forgotten() -> bool:
        gevent.sleep(0.01)
        return pruner.forgotten == 1

    wait_until(forgotten, "the pruner has forgotten a stream")
    assert names(connection) == ["followed", "left"]
    assert registry.left == set()


def test_a_pruner_that_may_not_forget(database_url: str, connection: Connection) -> None:
    """With 0 nothing is forgotten, and no name of a stream that was left is kept in memory."""
    empty(connection, "idle")
    age(connection)
    registry = Registry(0)
    registry.leave(follow(registry, 1, "left"), 0.0)
    assert registry.left == set()
    settings = Settings.from_environ(
        {
            "HEADRACE_DATABASE_URL": database_url,
            "HEADRACE_PRUNE_INTERVAL_S": "0.1",
            "HEADRACE_FORGET_AFTER_S": "0",
        }
    )
    pruner = Pruner(settings, "n-0", registry)
    pruner.start()

    def looked() -> bool:
        gevent.sleep(0.01)
        return pruner.streams == 1

    try:
        wait_until(looked, "the pruner has been through one turn")
    finally:
        pruner.stop()
    assert names(connection) == ["idle"]
