"""The listener: what it promises the dispatcher about a slot, whenever that is wanted, dropped and wanted again."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Listening, Message, Wake
from headrace.shard.postgres.listener import Listener
from headrace.stream import slot
from tests.fixtures.proxy import Proxy
from tests.fixtures.shard import Database, StartShard
from tests.fixtures.waiting import DEADLINE_S, wait_until

STREAM = "room"
OTHER = "other"


class Desk:
    """A listener and the messages that it has posted. Owned by the test's greenlet."""

    def __init__(self, settings: Settings) -> None:
        self._inbox: Inbox[Message] = Inbox()
        self.listener = Listener(settings, self._inbox, "n-0", lambda payload: None)

    def wait_for(self, message: Message) -> None:
        """Wait until it is posted; all before it are dropped."""
        with gevent.Timeout(DEADLINE_S, AssertionError(f"not posted within {DEADLINE_S:g} s: {message}")):
            while message not in self._inbox.take(wait=True):
                pass


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    # A ping would have the listener look again, however it was woken.
    settings = Settings.from_environ({"HEADRACE_DATABASE_URL": database.url})
    made = Desk(dataclasses.replace(settings, ping_interval_s=600))
    made.listener.start()
    yield made
    made.listener.stop()


def test_a_slot_that_is_wanted_again_before_it_was_dropped_is_confirmed_again(database: Database, desk: Desk) -> None:
    """Dropped and wanted in one breath, the slot is still listened to, and who asked is told so."""
    number = slot(STREAM)
    assert not desk.listener.ensure_listening(number)
    desk.wait_for(Listening((number,)))
    assert desk.listener.ensure_listening(number)
    desk.listener.stop_listening([number])
    assert not desk.listener.ensure_listening(number)
    desk.wait_for(Listening((number,)))
    assert desk.listener.ensure_listening(number)
    database.publish(STREAM, "x")
    desk.wait_for(Wake(STREAM, 1))


def test_a_slot_that_is_wanted_at_the_end_of_the_proof_is_listened_to(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof that LISTEN works waits for the same stir, and may take one that tells of a new slot."""
    prove = desk.listener._prove

    def takes_the_stir(connection: Any) -> None:
        prove(connection)
        assert not desk.listener.ensure_listening(slot(STREAM))
        desk.listener._stirred.clear()

    monkeypatch.setattr(desk.listener, "_prove", takes_the_stir)
    desk.wait_for(Listening((slot(STREAM),)))


def test_a_slot_that_is_dropped_and_wanted_again_during_another_listen_is_served(
    start_shard: StartShard, database: Database, postgres_proxy: Proxy
) -> None:
    """While LISTEN on one slot is on the wire, a client of another leaves, its slot is dropped, and one comes back."""
    assert slot(STREAM) != slot(OTHER)
    database.record_reads()
    shard = start_shard(
        listen_database_url=postgres_proxy.url(database.url),
        unlisten_after_s=0,
        sweep_interval_s=0.1,
        ping_interval_s=60,
    )
    first, bystander = shard.live(STREAM), shard.live("bystander")
    postgres_proxy.pause()
    late = shard.connect((OTHER, 0))
    wait_until(lambda: postgres_proxy.holds(b"listen headrace_slot"), "LISTEN is on the wire")
    first.close()
    wait_until(lambda: shard.closed(first), "the shard has let the client go")
    sweeps = len(database.reads())
    wait_until(lambda: len(database.reads()) >= sweeps + 2, "a sweep has begun since, and dropped the slot")
    again = shard.connect((STREAM, 0))
    again.wait(lambda: again.frames, "it is served")
    postgres_proxy.resume()
    for stream, client in ((STREAM, again), (OTHER, late), ("bystander", bystander)):
        database.publish(stream, "after")
        client.wait_for_data("after")
