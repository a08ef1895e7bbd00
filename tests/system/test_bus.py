"""One shard reads new events for all, and whatever becomes of the bus, every event arrives: here, no sweep helps."""

import os
import signal
from collections.abc import Sequence

import pytest
import redis

from headrace.shard.bus.herald import MOST_PAGE_BYTES
from tests.fixtures.client import Client
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import wait_until
from tests.system.test_sequencer import Writers

SECRET = "a secret of the deployment"
EAGER = {"bus_above_per_s": 2, "secret": SECRET, "log_level": "info", "directory_interval_s": 0.2}
"""A few notifications a second are many."""


class Fleet:
    """Three shards of one deployment, each with a client of the stream `s`. Owned by the test."""

    def __init__(self, shards: Sequence[Shard], clients: Sequence[Client]) -> None:
        self.shards = shards
        self.clients = clients

    def on_duty(self) -> Shard | None:
        """The shard that reads for all."""
        return next((each for each in self.shards if each.running and each.sample("hearing", mode="on_duty")), None)

    def on_bus(self) -> list[Shard]:
        """The shards that hear of new events over the bus."""
        return [each for each in self.shards if each.running and each.sample("hearing", mode="on_the_bus")]

    def wait_until_on_bus(self) -> Shard:
        """Wait until one shard reads for all others; returns it."""
        living = sum(each.running for each in self.shards)
        wait_until(lambda: self.on_duty() and len(self.on_bus()) == living - 1, "one shard reads for the others")
        found = self.on_duty()
        assert found
        return found

    def wait_until_listening(self) -> None:
        """Wait until each shard listens to PostgreSQL."""
        wait_until(
            lambda: all(each.sample("hearing", mode="listening") for each in self.shards if each.running),
            "each shard listens",
        )

    def have_all(self, database: Database) -> None:
        """Wait until the clients of living shards have what the log has, each event once, in order."""
        head = database.head("s")
        for shard, client in zip(self.shards, self.clients, strict=True):
            if shard.running:
                client.wait_for(head)
                assert client.ids == list(range(1, len(client.ids) + 1))


@pytest.fixture
def fleet(start_shard: StartShard, redis_server: RedisServer) -> Fleet:
    shards = [start_shard(f"n-{number}", redis_url=redis_server.url, **EAGER) for number in range(3)]
    return Fleet(shards, [shard.live("s") for shard in shards])


def test_one_shard_reads_for_all_while_notifications_are_many(fleet: Fleet, database: Database) -> None:
    """The others listen to nothing and apply its pages, and all listen again when notifications are few."""
    with Writers(database.url):
        reader = fleet.wait_until_on_bus()
        others = [shard for shard in fleet.shards if shard is not reader]
        pages = [shard.sample("bus_pages_total", outcome="applied") for shard in others]
        reads = [shard.sample("read_events_count", lane="live") for shard in others]
        wait_until(
            lambda: all(
                shard.sample("bus_pages_total", outcome="applied") > before + 100
                for shard, before in zip(others, pages, strict=True)
            ),
            "pages are applied",
        )
        read = [shard.sample("read_events_count", lane="live") - n for shard, n in zip(others, reads, strict=True)]
        assert max(read) < 50, read
        assert reader.sample("bus_pages_read_total") > 100
        fleet.have_all(database)
    fleet.have_all(database)
    fleet.wait_until_listening()
    database.publish("s", "in the quiet")
    for client in fleet.clients:
        client.wait_for_data("in the quiet")


def test_a_shard_that_dies_on_duty_is_followed_by_another(fleet: Fleet, database: Database) -> None:
    """Killed, it says nothing more: the others listen, one of them goes on duty, and nothing is lost."""
    with Writers(database.url):
        first = fleet.wait_until_on_bus()
        first.kill()
        second = fleet.wait_until_on_bus()
        assert second is not first
        fleet.have_all(database)
    fleet.have_all(database)


def test_a_shard_on_duty_that_may_have_missed_something_ends_its_duty(fleet: Fleet, database: Database) -> None:
    """Its LISTEN connection was lost, so other shards must not go on relying on it."""
    with Writers(database.url):
        reader = fleet.wait_until_on_bus()
        said = reader.log.count("reads for itself alone")
        (pid,) = database.backends(f"{reader.id} listener")
        database.one("select pg_terminate_backend(%s)", pid)
        wait_until(lambda: reader.log.count("reads for itself alone") > said, "the duty ends")
        fleet.wait_until_on_bus()
        fleet.have_all(database)
    fleet.have_all(database)


def test_a_shard_on_duty_that_cannot_read_tells_heads(fleet: Fleet, database: Database) -> None:
    """Its own connection for reading is stuck: each shard reads for itself, after a second."""
    with Writers(database.url):
        reader = fleet.wait_until_on_bus()
        heads = reader.sample("bus_heads_told_total")
        wait_until(lambda: database.backends(f"{reader.id} herald"), "it reads")
        (pid,) = database.backends(f"{reader.id} herald")
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: reader.sample("bus_heads_told_total") > heads, "heads are told")
            fleet.have_all(database)
        finally:
            os.kill(pid, signal.SIGCONT)
    fleet.have_all(database)


@pytest.mark.parametrize("fault", ["killed", "stopped", "emptied"])
def test_whatever_becomes_of_redis_nothing_is_lost(
    fleet: Fleet, database: Database, redis_server: RedisServer, fault: str
) -> None:
    """Without the bus each shard listens to PostgreSQL, and with it one reads for all again."""
    with Writers(database.url):
        fleet.wait_until_on_bus()
        if fault == "emptied":
            redis_server.empty()
        else:
            getattr(redis_server, {"killed": "kill", "stopped": "pause"}[fault])()
            fleet.wait_until_listening()
            fleet.have_all(database)
            getattr(redis_server, {"killed": "start", "stopped": "resume"}[fault])()
        fleet.wait_until_on_bus()
        fleet.have_all(database)
    fleet.have_all(database)


def test_a_client_that_comes_while_the_bus_is_in_use_misses_nothing(fleet: Fleet, database: Database) -> None:
    """Its stream is new to the shard, on a channel that the shard has not subscribed to yet."""
    with Writers(database.url):
        reader = fleet.wait_until_on_bus()
        other = next(shard for shard in fleet.shards if shard is not reader)
        clients = [other.live(f"new-{number}") for number in range(20)]
        for number, client in enumerate(clients):
            client.answered()
            database.publish(f"new-{number}", "one")
            database.publish(f"new-{number}", "two")
        for client in clients:
            assert [frame.data for frame in client.wait_for(2)] == ["one", "two"]


def test_a_large_event_does_not_pass_through_redis(fleet: Fleet, database: Database) -> None:
    """Others are told of its head, and read it."""
    with Writers(database.url):
        fleet.wait_until_on_bus()
        database.publish("s", "x" * (MOST_PAGE_BYTES + 1))
        fleet.have_all(database)
    assert max(len(text) for text in fleet.clients[0].data) == MOST_PAGE_BYTES + 1
    assert sum(shard.sample("bus_heads_told_total") for shard in fleet.shards) > 0


def test_the_bus_can_be_turned_off(start_shard: StartShard, redis_server: RedisServer, database: Database) -> None:
    """Then each shard listens, however many notifications there are, and no channel has a subscriber."""
    shards = [start_shard(f"n-{n}", redis_url=redis_server.url, **EAGER | {"bus": "off"}) for n in range(2)]
    off = Fleet(shards, [shard.live("s") for shard in shards])
    with Writers(database.url), redis.Redis.from_url(redis_server.url) as operator:
        off.clients[0].wait_for(300)
        assert operator.pubsub_channels("*:bus:*") == operator.execute_command("PUBSUB", "SHARDCHANNELS") == []
        off.have_all(database)
    assert all(shard.sample("hearing", mode="listening") for shard in shards)
