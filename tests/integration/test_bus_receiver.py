"""The receiver on a real Redis: messages that are lost, repeated, forged or late are noticed, and lead to a read."""

import time
from collections.abc import Callable, Iterator, Sequence

import gevent
import pytest
import redis

from headrace.settings import Settings
from headrace.shard.bus import receiver as receiver_module
from headrace.shard.bus.bulletin import CHANNELS, PULSE, WANT, Bulletin, News, NewsPage, Pulse, Seal, Wants, channel_of
from headrace.shard.bus.receiver import Receiver
from headrace.shard.bus.redis_channels import RedisChannels
from headrace.shard.inbox import Inbox
from headrace.shard.messages import BusPage, Listening, Message, Missed, Wake
from headrace.shard.postgres.unsendable import Unsendable
from headrace.stream import slot
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import DEADLINE_S

SECRET = "a secret of sixteen"
SLOT = slot("room:1")
CHANNEL = channel_of(SLOT)
ROW = (1, 9, 0, 0, None, None, None, False, "0000000A", 9, 71, "order", "shipped", None, 1500)


class Bus:
    """A receiver of one slot, and the shard on duty, which is played. Owned by the test."""

    def __init__(self, redis_url: str, database: str) -> None:
        settings = Settings(redis_url=redis_url, redis_prefix=database, secret=(SECRET,))
        self.inbox: Inbox[Message] = Inbox()
        self.seal = Seal([SECRET], lambda: "identity")
        self.channels = RedisChannels(settings)
        self.served = {"room:1"}
        self.receiver = Receiver(
            RedisChannels(settings),
            self.seal,
            self.inbox,
            "n-1",
            Unsendable(),
            self.served.__contains__,
            lambda: [SLOT],
        )
        self.numbers = [0] * CHANNELS
        self.receiver.start()
        self.receiver.enable(True)
        self.receiver.want([SLOT])

    def tell(self, channel: str | int, bulletin: Bulletin, *, seal: Seal | None = None) -> None:
        name = self.channels.name(channel)
        self.channels.publish([(name, (seal or self.seal).close(name, bulletin))])

    def pulse(self, session: str = "s") -> None:
        self.tell(PULSE, Pulse(session, 30.0, self.numbers))

    def news(self, number: int, heads: Sequence[tuple[str, int]] = (), pages: Sequence[NewsPage] = ()) -> None:
        self.numbers[CHANNEL] = max(number, self.numbers[CHANNEL])
        self.tell(CHANNEL, News("s", number, "0000000A", heads, pages))

    def until(self, kind: type, count: int = 1) -> list[Message]:
        """All messages to the dispatcher until so many of a kind have come."""
        found: list[Message] = []
        give_up = time.monotonic() + DEADLINE_S
        while sum(isinstance(message, kind) for message in found) < count:
            assert time.monotonic() < give_up, found
            found += self.inbox.take(wait=False)
            gevent.sleep(0.01)
        return found

    def until_counted(self, outcome: str, count: int) -> None:
        """Wait until so many messages have come to this."""
        give_up = time.monotonic() + DEADLINE_S
        while self.receiver.messages.counts[outcome] < count:
            assert time.monotonic() < give_up, self.receiver.messages.counts
            gevent.sleep(0.01)

    def join(self) -> None:
        """Bring the receiver to where it knows the number of the next message."""
        self.until(Listening)
        assert self.receiver.hears(SLOT)
        self.pulse()
        self.until(Missed)
        assert self.receiver.joined
        assert self.receiver.fresh


@pytest.fixture
def bus(redis_server: RedisServer) -> Iterator[Bus]:
    found = Bus(redis_server.url, "test-bus")
    yield found
    found.receiver.stop()
    found.channels.close()


def test_news_become_messages_of_the_dispatcher(bus: Bus) -> None:
    """A head is a hint to read, a page the log after an id; a stream that nobody here follows is passed over."""
    bus.join()
    bus.news(1, [("room:2", 4)], [NewsPage("room:1", 8, [ROW]), NewsPage("others", 8, [ROW])])
    wake, page = bus.until(BusPage)
    assert wake == Wake("room:2", 4)
    assert isinstance(page, BusPage)
    assert (page.stream, page.after, page.timeline, page.ages) == ("room:1", 8, "0000000A", [0.0015])
    assert (page.page.head, [frame.id for frame in page.page.frames]) == (9, [9])
    assert b"event: order\ndata: shipped\n" in page.page.frames[0].chunk


def test_a_message_that_is_lost_is_missed(bus: Bus) -> None:
    """The next message tells that one was lost, and the next pulse tells it of the last one."""
    bus.join()
    bus.news(1)
    bus.news(3, [("room:1", 7)])
    assert bus.until(Wake) == [Missed((SLOT,)), Wake("room:1", 7)]
    bus.numbers[CHANNEL] = 4
    bus.pulse()
    assert bus.until(Missed) == [Missed((SLOT,))]
    assert bus.receiver.messages.counts["lost"] == 2


def test_a_message_that_comes_again_is_dropped(bus: Bus) -> None:
    """It is repeated, or was overtaken by one that told of its loss."""
    bus.join()
    for number in (1, 1, 3, 2):
        bus.news(number, [("room:1", number)])
    bus.until_counted("repeated", 2)
    assert [message.head for message in bus.until(Wake, 2) if isinstance(message, Wake)] == [1, 3]


def test_another_shard_on_duty_begins_anew(bus: Bus) -> None:
    """What the shard before has told last is not known, so everything is read once."""
    bus.join()
    bus.news(5)
    bus.until_counted("lost", 1)
    bus.until(Missed)
    bus.numbers = [0] * CHANNELS
    bus.pulse("another")
    assert bus.until(Missed) == [Missed((SLOT,))]


def test_whoever_writes_to_redis_can_tell_nothing(bus: Bus) -> None:
    """Messages with another secret, of another channel, and garbage are counted, and nothing else."""
    bus.join()
    bus.tell(CHANNEL, News("s", 1, None, [("room:1", 99)]), seal=Seal(["another secret of 16"], lambda: "identity"))
    bus.tell(CHANNEL, News("s", 1, None, [("room:1", 99)]), seal=Seal([SECRET], lambda: "another deployment"))
    name, other = bus.channels.name(CHANNEL), bus.channels.name(CHANNEL + 1)
    bus.channels.publish([(name, bus.seal.close(other, News("s", 1, None, [("room:1", 99)])))])
    bus.channels.publish([(name, b"garbage"), (name, b""), (name, bytes(40))])
    bus.tell(CHANNEL, Wants("n-2", ["room:1"]))
    bus.until_counted("forged", 7)
    bus.news(1, [("room:1", 3)])
    assert bus.until(Wake) == [Wake("room:1", 3)]


def test_a_stream_that_is_read_here_is_wanted_once(bus: Bus) -> None:
    """The shard on duty is told which streams this shard could use pages of."""
    bus.join()
    wants = bus.channels.subscribe(WANT)
    assert wants.received() == ("subscribe", WANT, b"")
    for number in (1, 2, 3):
        bus.news(number, [("room:1", number), ("room:2", 8)])
    received = None
    while received is None:
        received = wants.received()
        gevent.sleep(0.01)
    assert bus.seal.open(bus.channels.name(WANT), received[2]) == Wants("n-1", ["room:1"])
    gevent.sleep(receiver_module.TELL_WANTS_S * 2)
    assert wants.received() is None
    wants.close()


def wait_for(condition: Callable[[], object]) -> None:
    """Let the receiver run until the condition holds."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up
        gevent.sleep(0.01)


def test_a_bus_that_says_nothing_or_says_it_late_is_not_fresh(bus: Bus, redis_server: RedisServer) -> None:
    """Without a pulse, and with answers that are late, the shard listens to PostgreSQL instead."""
    bus.join()
    wait_for(lambda: not bus.receiver.fresh)
    bus.pulse()
    bus.until_counted("pulse", 2)
    assert bus.receiver.fresh
    redis_server.pause()
    try:
        wait_for(lambda: bus.receiver.delayed)
        assert not bus.receiver.fresh
        assert not bus.receiver.up
    finally:
        redis_server.resume()
    wait_for(lambda: bus.receiver.up)


def test_a_connection_that_is_lost_is_made_again(bus: Bus, redis_server: RedisServer) -> None:
    """Everything is subscribed to again, and nothing is known of what came meanwhile."""
    bus.join()
    with redis.Redis.from_url(redis_server.url) as operator:
        operator.client_kill_filter(_type="pubsub")
    bus.until(Listening)
    assert not bus.receiver.joined
    bus.pulse()
    assert bus.until(Missed) == [Missed((SLOT,))]
    assert bus.receiver.joined
