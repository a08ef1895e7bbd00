"""What every long-lived part of a shard promises about starting and stopping, whatever it does in between."""

import contextlib
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from headrace.node.directory import Directory
from headrace.node.shard_entry import ShardEntry
from headrace.settings import Settings
from headrace.shard.clock import Clock
from headrace.shard.filters import Filters
from headrace.shard.history import History
from headrace.shard.inbox import Inbox
from headrace.shard.intake import Intake
from headrace.shard.messages import Message, Ready, Sweep, Tick
from headrace.shard.node.registration import Registration
from headrace.shard.poller import Poller
from headrace.shard.postgres.listener import Listener
from headrace.shard.postgres.presence import Presence
from headrace.shard.postgres.pruner import Pruner
from headrace.shard.postgres.readers import Readers
from headrace.shard.postgres.revocations import Revocations
from headrace.shard.postgres.sequencer import Sequencer
from headrace.shard.process import Part
from headrace.shard.registry import Registry
from headrace.shard.transfer import Transfer
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import DEADLINE_S, wait_until

PARTS = [
    "sequencer",
    "readers",
    "listener",
    "filters",
    "clock",
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
            "sequencer": lambda: Sequencer(settings, "n-0"),
            "listener": lambda: Listener(settings, inbox, "n-0", lambda payload: None),
            "filters": lambda: Filters({"label": lambda context, stream: True}, 1.0, inbox),
            "clock": lambda: Clock(settings, inbox),
            "pruner": lambda: Pruner(settings, "n-0", Registry(0)),
            "presence": lambda: Presence(settings, "n-0"),
            "transfer": lambda: Transfer(1.0, inbox, lambda: ""),
            "intake": lambda: Intake(settings, self.path, inbox, lambda message: "", lambda fd, message: os.close(fd)),
            "history": lambda: History(settings, "n-0", lambda *asked: True, Revocations(settings, inbox, "n-0")),
            "revocations": lambda: Revocations(settings, inbox, "n-0"),
            "registration": lambda: Registration(self.directory, self.entry, lambda snapshot: None, 0.1),
        }
        return parts[name]()


def open_now() -> set[object]:
    """The threads and descriptors of this process. What others have left behind may go at any time."""
    found: set[object] = set(threading.enumerate())
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


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
    gevent.joinall(greenlets, timeout=DEADLINE_S)
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
    before = open_now()
    for _ in range(3):
        once()
    assert not open_now() - before


def test_the_poller_stops_without_having_been_used() -> None:
    """The poller, which has no greenlet, frees its descriptor; it may be stopped twice."""
    before = open_now()
    poller = Poller(lambda: None)
    assert open_now() - before
    poller.stop()
    poller.stop()
    assert not open_now() - before


def test_the_heartbeat_stops_at_once_whatever_its_interval(house: House) -> None:
    """A stop does not wait for the interval."""
    settings: Any = SimpleNamespace(tick_interval_s=60.0, sweep_interval_s=60.0)
    clock = Clock(settings, house.inbox)
    clock.start()
    gevent.sleep(0)
    began = time.monotonic()
    clock.stop()
    assert time.monotonic() - began < 30


def test_the_heartbeat_posts_no_more_than_one_message_of_a_kind_at_a_time(house: House) -> None:
    """However long the dispatcher is busy, one tick and one sweep wait for it."""
    posted = Counter[str]()

    class Counted(Inbox[Message]):
        """An inbox that nobody empties."""

        def put_once(self, message: Message) -> None:
            posted[type(message).__name__] += 1
            super().put_once(message)

    inbox = Counted()
    clock = Clock(house.settings, inbox)
    clock.start()
    wait_until(lambda: gevent.sleep(0.01) or min(posted["Sweep"], posted["Tick"]) >= 3, "each is due three times")
    clock.stop()
    assert sorted(type(message).__name__ for message in inbox.take(wait=False)) == ["Sweep", "Tick"]


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
    assert reader.get(timeout=DEADLINE_S) == [Tick()]
