"""The receiver: hears on the bus what the shard on duty tells, and puts it into the dispatcher's inbox.

A message of the bus may be lost, late, repeated or forged. What is done about it:

    forged, damaged      dropped: its seal does not open
    repeated             dropped: its number is not above the last one of its channel
    lost                 the next message, or the next pulse, has a higher number than expected: Missed, so that the
                         streams of the channel are read
    all lost             no pulse comes: the bus is not `fresh` any more, and LISTEN takes its place
    late                 the answer to a PING, which takes the same way, is late as well: the bus is not fresh

A reader that was made just now does not know which number comes next. So the first pulse after it is answered
with Missed once. A shard that goes on duty begins another session, which is answered with Missed for all channels.

While streams are told by their heads alone, this shard reads them for itself. It then wants pages of these streams, and
says so once in WANT_S.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import gevent
import redis
from gevent import get_hub
from gevent.event import Event

from headrace.node.outage import Outage
from headrace.shard.bus.bulletin import PULSE, WANT, News, Pulse, Seal, Wants, channel_of
from headrace.shard.bus.redis_channels import ChannelReader, RedisChannels
from headrace.shard.inbox import Inbox
from headrace.shard.messages import BusPage, Listening, Message, Missed, Wake
from headrace.shard.numbers.counters import Tally
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.unsendable import Unsendable

logger = logging.getLogger(__name__)

FRESH_S: Final = 0.75
"""The time since the last pulse, and for the answer to a PING, after which LISTEN takes the place of the bus."""
PING_S: Final = 0.25
IDLE_PING_S: Final = 2.0
"""As PING_S, while no shard is on duty."""
LATE_S: Final = 0.15
"""The time for the answer to a PING after which messages are late. It is several times what a busy machine takes."""
WANT_S: Final = 10.0
TELL_WANTS_S: Final = 0.2
MOST_WANTS: Final = 10_000
"""The streams that are remembered as wanted."""
OUTCOMES: Final = ("news", "pulse", "repeated", "lost", "forged")


class Receiver:
    """Subscribes to the channels that are wanted, over any number of connections.

    Owned by its own greenlet; `want`, `drop` and `enable` only record what is wanted and wake it. serves is asked
    whether a stream has a subscriber in this shard, wanted_slots which slots of this shard have. messages counts what
    came, by what became of it. delayed tells that the answer to the last PING was late.
    """

    def __init__(
        self,
        channels: RedisChannels,
        seal: Seal,
        inbox: Inbox[Message],
        shard_id: str,
        unsendable: Unsendable,
        serves: Callable[[str], bool],
        wanted_slots: Callable[[], Iterable[int]],
    ) -> None:
        self.messages = Tally(OUTCOMES)
        self.delayed = False
        self.rate = 0.0
        self.outage = Outage(logger, "the bus is away, shards listen to PostgreSQL", "the bus is back")
        self._channels = channels
        self._seal = seal
        self._inbox = inbox
        self._shard_id = shard_id
        self._unsendable = unsendable
        self._serves = serves
        self._wanted_slots = wanted_slots
        self._enabled = False
        self._wanted: set[int] = set()
        self._confirmed: set[int] = set()
        self._proven: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._session = ""
        self._pulse_at = float("-inf")
        self._wants: OrderedDict[str, float] = OrderedDict()
        self._new_wants: list[str] = []
        self._wants_told_at = 0.0
        self._stirred = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start waiting to be enabled; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Close the connection and end. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()

    # -- what is wanted; nothing here switches greenlets

    def enable(self, enabled: bool) -> None:
        """Hear the pulse, or nothing at all."""
        if enabled != self._enabled:
            self._enabled = enabled
            self._stirred.set()

    def want(self, slots: Iterable[int]) -> None:
        """Subscribe to the channels of these slots; Listening tells of the slots when it is done."""
        self._wanted.update(map(channel_of, slots))
        self._stirred.set()

    def drop(self) -> None:
        """Subscribe to the pulse alone."""
        self._wanted.clear()
        self._stirred.set()

    def hears(self, slot_number: int) -> bool:
        """Whether the channel of a slot is subscribed to."""
        return channel_of(slot_number) in self._confirmed

    @property
    def fresh(self) -> bool:
        """Whether a shard on duty was heard lately, and without delay."""
        return not self.delayed and time.monotonic() - self._pulse_at < FRESH_S

    @property
    def up(self) -> bool:
        """Whether Redis was heard in time when it was asked last, or need not be heard."""
        return not self.delayed and not self.outage.last_error

    @property
    def joined(self) -> bool:
        """Whether all channels that are wanted are subscribed to, and a pulse has come since."""
        return self._wanted <= self._proven

    # -- the connection

    def _run(self) -> None:
        while True:
            if not self._enabled or not self._seal.ready:
                self._stirred.wait(IDLE_PING_S)
                self._stirred.clear()
                continue
            try:
                self._serve()
            except (redis.RedisError, OSError, gevent.Timeout) as error:
                gevent.sleep(self.outage.failed(error))

    def _serve(self) -> None:
        """Follow one connection until it fails, or nothing is to be heard. Yields."""
        reader = self._channels.subscribe(PULSE)
        watcher = get_hub().loop.io(reader.fileno(), 1)
        try:
            watcher.start(self._stirred.set)
            self.outage.ended()
            self._follow(reader)
        finally:
            watcher.stop()
            watcher.close()
            reader.close()
            self._confirmed.clear()
            self._proven.clear()
            self._numbers.clear()
            self._pulse_at = float("-inf")
            self.delayed = False

    def _follow(self, reader: ChannelReader) -> None:
        asked: set[int] = set()
        pinged_at: float | None = None
        last_ping = float("-inf")
        while self._enabled:
            now = time.monotonic()
            quiet = now - self._pulse_at > 4 * FRESH_S
            if pinged_at is None and now - last_ping >= (IDLE_PING_S if quiet else PING_S):
                reader.ping()
                pinged_at = last_ping = now
            elif pinged_at is not None and now - pinged_at > LATE_S:
                self.delayed = True
                if now - pinged_at > 4 * FRESH_S:
                    raise gevent.Timeout(4 * FRESH_S)
            if asked != self._wanted:
                wanted = set(self._wanted)
                reader.change(sorted(wanted - asked), sorted(asked - wanted))
                for channel in asked - wanted:
                    self._forget(channel)
                asked = wanted
            self._stirred.wait(PING_S if pinged_at is not None or not quiet else IDLE_PING_S)
            self._stirred.clear()
            while (received := reader.received()) is not None:
                if received[0] == "pong" and pinged_at is not None:
                    self.delayed = time.monotonic() - pinged_at > LATE_S
                    pinged_at = None
                else:
                    self._received(*received)
            self._tell_wants()

    def _forget(self, channel: int) -> None:
        self._confirmed.discard(channel)
        self._proven.discard(channel)
        self._numbers.pop(channel, None)

    # -- what is heard

    def _received(self, kind: str, channel: str, data: bytes) -> None:
        if kind == "subscribe" and channel.isdigit() and int(channel) in self._wanted:
            self._confirmed.add(int(channel))
            self._inbox.put(Listening(self._slots_of({int(channel)})))
        elif kind == "message":
            bulletin = self._seal.open(self._channels.name(channel), data)
            if isinstance(bulletin, Pulse) and channel == PULSE:
                self.messages.add("pulse")
                self._pulsed(bulletin)
            elif isinstance(bulletin, News) and channel.isdigit():
                self._told(int(channel), bulletin)
            else:
                self.messages.add("forged")

    def _pulsed(self, pulse: Pulse) -> None:
        self._pulse_at = time.monotonic()
        self.rate = pulse.rate
        missed: set[int] = set()
        if pulse.session != self._session:
            self._session = pulse.session
            self._numbers.clear()
            missed |= self._confirmed
        for channel in self._confirmed:
            number = pulse.numbers[channel]
            known = self._numbers.get(channel)
            if known is None or channel not in self._proven:
                missed.add(channel)
            elif number > known:
                self.messages.add("lost")
                missed.add(channel)
            self._numbers[channel] = max(number, known or 0)
        self._proven = set(self._confirmed)
        self._miss(missed)

    def _told(self, channel: int, news: News) -> None:
        known = self._numbers.get(channel)
        if news.session == self._session and known is not None:
            if news.number <= known:
                self.messages.add("repeated")
                return
            self._numbers[channel] = news.number
            if news.number > known + 1:
                self.messages.add("lost")
                self._miss({channel})
        self.messages.add("news")
        for stream, head in news.heads:
            self._inbox.put(Wake(stream, head))
            if self._serves(stream):
                self._want_pages(stream)
        came_at = time.monotonic()
        for told in news.pages:
            if self._serves(told.stream):
                page = sql_functions.page(told.stream, told.after, told.rows, self._unsendable)
                ages = [row[-1] / 1e6 for row in told.rows if row[-1] is not None]
                self._inbox.put(BusPage(told.stream, told.after, page, news.timeline, came_at, ages))
                self._want_pages(told.stream)

    def _miss(self, channels: set[int]) -> None:
        slots = self._slots_of(channels)
        if slots:
            self._inbox.put(Missed(slots))

    def _slots_of(self, channels: set[int]) -> tuple[int, ...]:
        return tuple(number for number in self._wanted_slots() if channel_of(number) in channels)

    # -- what is said

    def _want_pages(self, stream: str) -> None:
        now = time.monotonic()
        if self._wants.get(stream, -WANT_S) + WANT_S <= now:
            self._wants[stream] = now
            self._wants.move_to_end(stream)
            self._new_wants.append(stream)
            if len(self._wants) > MOST_WANTS:
                self._wants.popitem(last=False)

    def _tell_wants(self) -> None:
        now = time.monotonic()
        if not self._new_wants or now - self._wants_told_at < TELL_WANTS_S:
            return
        wants, self._new_wants, self._wants_told_at = self._new_wants, [], now
        channel = self._channels.name(WANT)
        self._channels.publish([(channel, self._seal.close(channel, Wants(self._shard_id, wants)))])
