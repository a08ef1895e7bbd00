"""What every long-lived part of a shard promises about starting and stopping, whatever it does in between."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from headrace.directory import Directory, ShardEntry
from headrace.settings import Settings
from shard.announcer import Announcer
from shard.filters import Filters
from shard.heartbeat import Heartbeat
from shard.history import History
from shard.inbox import Inbox
from shard.intake import Intake
from shard.listener import Listener
from shard.messages import Message, Ready, Sweep, Tick
from shard.poller import Poller
from shard.presence import Presence
from shard.process import Part
from shard.pruner import Pruner
from shard.readers import Readers
from shard.registration import Registration
from shard.revocations import Revocations
from shard.transfer import Transfer
from tests.fixtures.redis import RedisServer

PARTS = [
    "announcer",
    "readers",
    "listener",
    "filters",
    "heartbeat",
    "pruner",
    "presence",
    "revocations",
    "transfer",
    "history",
    "intake",
    "registration",
]


class House:
    """What parts are built from. Owned by the test."""

    def __init__(self, database_url: str, redis_url: str, directory: Path) -> None:
        self.settings = Settings.from_environ(
            {
                "HEADRACE_DATABASE_URL": database_url,
                "HEADRACE_REDIS_URL": redis_url,
                "HEADRACE_TICK_INTERVAL_S": "0.02",
                "HEADRACE_SWEEP_INTERVAL_S": "0.1",
            }
        )
        self.path = directory / "n-0.sock"
        self.inbox: Inbox[Message] = Inbox()
        self.directory = Directory(redis_url, expiry_s=3)

    def entry(self) -> ShardEntry:
        return ShardEntry("n-0", "n", os.getpid(), str(self.path), "up", 10, 0, 0, "0")

    def build(self, name: str) -> Part:
        settings, inbox = self.settings, self.inbox
        parts: dict[str, Callable[[], Part]] = {
            "readers": lambda: Readers(settings, inbox, "n-0"),
            "announcer": lambda: Announcer(settings, "n-0"),
            "listener": lambda: Listener(settings, inbox, "n-0", lambda payload: None),
            "filters": lambda: Filters({"label": lambda context, stream: True}, 1.0, inbox),
            "heartbeat": lambda: Heartbeat(settings, inbox),
            "pruner": lambda: Pruner(settings, "n-0"),
            "presence": lambda: Presence(settings, "n-0"),
            "transfer": lambda: Transfer(1.0, inbox),
            "intake": lambda: Intake(settings, self.path, inbox, lambda message: "", lambda fd, message: os.close(fd)),
            "history": lambda: History(settings, "n-0", lambda *asked: True, Revocations(settings, inbox, "n-0")),
            "revocations": lambda: Revocations(settings, inbox, "n-0"),
            "registration": lambda: Registration(self.directory, self.entry, lambda snapshot: None, 0.1),
        }
        return parts[name]()


@pytest.fixture
def house(database_url: str, redis_server: RedisServer, tmp_path: Path) -> Iterator[House]:
    made = House(database_url, redis_server.url, tmp_path)
    yield made
    made.directory.close()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_was_not_started_can_be_stopped(house: House, name: str) -> None:
    """Stop before start does nothing, also twice, and a start after it works."""
    part = house.build(name)
    part.stop()
    part.stop()
    greenlets = part.start()
    gevent.sleep(0)
    assert greenlets
    assert not any(greenlet.ready() for greenlet in greenlets)
    part.stop()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_ends_only_by_stop(house: House, name: str) -> None:
    """After start its greenlets live; after stop they have all ended, without an error; a second stop does nothing."""
    part = house.build(name)
    greenlets = part.start()
    gevent.sleep(0.05)  # lets it get to work; nothing is waited for
    assert greenlets
    assert not any(greenlet.ready() for greenlet in greenlets)
    began = time.monotonic()
    part.stop()
    assert time.monotonic() - began < 5
    gevent.joinall(greenlets, timeout=5)
    assert all(greenlet.ready() for greenlet in greenlets)
    assert [greenlet.exception for greenlet in greenlets if not greenlet.successful()] == []
    part.stop()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_leaves_nothing_open(house: House, name: str) -> None:
    """Started and stopped three times anew, a part leaves neither descriptors nor threads behind."""

    def once() -> None:
        part = house.build(name)
        part.start()
        gevent.sleep(0.02)  # lets it get to work; nothing is waited for
        part.stop()
        house.directory.close()
        gc.collect()

    once()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        once()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_the_poller_stops_without_having_been_used() -> None:
    """The poller, which has no greenlet, frees its descriptor; it may be stopped twice."""
    before = len(os.listdir("/proc/self/fd"))
    poller = Poller(lambda: None)
    poller.stop()
    poller.stop()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_heartbeat_stops_at_once_whatever_its_interval(house: House) -> None:
    """A stop does not wait for the interval."""
    settings: Any = SimpleNamespace(tick_interval_s=60.0, sweep_interval_s=60.0)
    heartbeat = Heartbeat(settings, house.inbox)
    heartbeat.start()
    gevent.sleep(0)
    began = time.monotonic()
    heartbeat.stop()
    assert time.monotonic() - began < 1


def test_the_heartbeat_posts_no_more_than_one_message_of_a_kind_at_a_time(house: House) -> None:
    """However long the dispatcher is busy, one tick and one sweep wait for it."""
    heartbeat = Heartbeat(house.settings, house.inbox)
    heartbeat.start()
    gevent.sleep(0.3)
    heartbeat.stop()
    assert sorted(type(message).__name__ for message in house.inbox.take(wait=False)) == ["Sweep", "Tick"]


def test_the_inbox_keeps_the_order_and_merges_what_is_put_once() -> None:
    """Messages come in the order of arrival; equal ones put once are one until they were taken."""
    inbox: Inbox[Message] = Inbox()
    inbox.put_once(Tick())
    inbox.put(Ready())
    inbox.put_once(Tick())
    inbox.put_once(Sweep())
    assert inbox.take(wait=True) == [Tick(), Ready(), Sweep()]
    inbox.put_once(Tick())
    assert inbox.take(wait=True) == [Tick()]
    assert inbox.take(wait=False) == []


def test_the_inbox_wakes_who_waits(house: House) -> None:
    """A waiting reader gets a message as soon as there is one."""
    reader = gevent.spawn(house.inbox.take, True)
    gevent.sleep(0)
    assert not reader.ready()
    house.inbox.put(Tick())
    assert reader.get(timeout=1) == [Tick()]
