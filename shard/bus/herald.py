"""The herald: while it is on duty, this shard tells all others over the bus of new events, and reads for them.

    notification ──► heard ──► heads: streams of which few shards want pages      ──► one News a channel ──► Redis
                        └────► read:  streams that several shards want pages of   ──► and to the own dispatcher

One shard of the deployment is on duty. It listens to all slots, and holds `bus` in the directory for HOLD_S at a time.
Two shards may be on duty for a moment, after Redis was emptied: pages are safe to apply twice.

A notification of a stream that is read here for all is not passed on to the own dispatcher: the page takes its place.
If the page cannot be read, the notification is passed on, and others are told of the head alone.

The duty ends when Redis fails, when another shard holds it, or when there is little to tell. What was withheld then is
made good by Missed, for which `Hearing` cares.
"""

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import gevent
import psycopg
import redis
from gevent.event import Event
from gevent.queue import SimpleQueue

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.kept_session import KeptSession
from headrace.settings import Settings
from headrace.shard.bus.bulletin import CHANNELS, PULSE, WANT, News, NewsPage, Pulse, Seal, Wants, channel_of
from headrace.shard.bus.redis_channels import RedisChannels
from headrace.shard.bus.wanted_pages import WantedPages
from headrace.shard.inbox import Inbox
from headrace.shard.messages import BusPage, Message, Wake
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.unsendable import Unsendable
from headrace.shard.recent_rate import RecentRate
from headrace.stream import slot

logger = logging.getLogger(__name__)

BUS: Final = "bus"
HOLD_S: Final = 1.0
PULSE_S: Final = 0.2
READ_S: Final = 1.0
"""The time for a read. After it all shards are told the heads, and each reads for itself: the way of this shard to
PostgreSQL may be the only one that is slow."""
MOST_STREAMS: Final = 1000
"""The streams of one read."""
MOST_TOLD: Final = 10_000
"""The streams whose last id that was told is remembered."""
MOST_QUEUED: Final = 200
"""The times that something was read and Redis has not taken it yet; with more the duty ends."""
MOST_PAGE_BYTES: Final = 64 * 1024
"""The data of a page. A page with more is not sent: shards read it."""


class Herald:
    """Goes on and off duty as `Hearing` asks, and does the duty.

    Owned by its own greenlets; `heard` only notes, and wakes one of them. serves is asked whether a stream has a
    subscriber in this shard. told counts News by what they were of, bytes what was published.
    """

    def __init__(
        self,
        settings: Settings,
        shard_id: str,
        directory: Directory,
        channels: RedisChannels,
        seal: Seal,
        inbox: Inbox[Message],
        unsendable: Unsendable,
        serves: Callable[[str], bool],
    ) -> None:
        self.on_duty = False
        self.heads = 0
        self.pages = 0
        self.bytes = 0
        self.rate = RecentRate()
        self.began_at = 0.0
        self._settings = settings
        self._shard_id = shard_id
        self._directory = directory
        self._channels = channels
        self._seal = seal
        self._inbox = inbox
        self._unsendable = unsendable
        self._serves = serves
        self._wanted = WantedPages()
        self._kept = KeptSession(settings.database_url, f"headrace {shard_id} herald", limit_s=settings.read_deadline_s)
        self._heads: dict[str, int] = {}
        self._to_read: dict[str, int] = {}
        self._told: OrderedDict[str, int] = OrderedDict()
        self._numbers = [0] * CHANNELS
        self._published = [0] * CHANNELS
        self._session = ""
        self._stirred = Event()
        self._queue: SimpleQueue[tuple[dict[str, int], list[NewsPage]]] = SimpleQueue()

    def heard(self, stream: str, head: int) -> bool:
        """Take a notification; whether a page will take its place for the own dispatcher. Never switches greenlets."""
        if not self.on_duty:
            return False
        self.rate.add(time.monotonic())
        several = self._wanted.count(stream, time.monotonic()) + self._serves(stream) >= 2
        noted = self._to_read if several else self._heads
        noted[stream] = max(head, noted.get(stream, 0))
        self._stirred.set()
        return several

    def hold(self) -> bool:
        """Ask the directory for the duty, or for more of it; whether this shard has it. Yields."""
        try:
            return self._directory.hold(BUS, self._shard_id, HOLD_S)
        except DirectoryUnavailableError:
            return False

    def serve(self, until: Callable[[], bool]) -> None:
        """Do the duty, which this shard holds, until it is lost or `until` says so. Yields.

        MUST be called when the shard listens to all slots. Raises redis.RedisError or OSError where Redis fails.
        """
        self._session = secrets.token_hex(8)
        self._numbers, self._published = [0] * CHANNELS, [0] * CHANNELS
        self._wanted = WantedPages()
        self._told.clear()
        self.rate = RecentRate()
        self.began_at = time.monotonic()
        self._queue = SimpleQueue()
        self.on_duty = True
        logger.info("this shard reads new events for all shards")
        parts = [gevent.spawn(part) for part in (self._hear_wants, self._read_all, self._publish_all)]
        for part in parts:
            # At once, whatever `hold` waits for: nothing takes the place of the notifications any more.
            part.link(lambda _: self._end())
        try:
            while not until() and self.hold():
                self._pulse()
                for part in parts:
                    if part.ready():
                        part.get()
                gevent.sleep(PULSE_S)
        finally:
            self._end()
            gevent.killall(parts)
            self._kept.close()
            logger.info("this shard reads for itself alone")

    def _end(self) -> None:
        """From now on notifications go to the own dispatcher, and so do those that were withheld."""
        self.on_duty = False
        for stream, head in self._to_read.items():
            self._inbox.put(Wake(stream, head))
        self._to_read.clear()
        self._heads.clear()

    def give_up(self) -> None:
        """Let another shard go on duty at once. Yields."""
        try:
            self._directory.hold(BUS, self._shard_id, 0)
        except DirectoryUnavailableError:
            return

    def _pulse(self) -> None:
        channel = self._channels.name(PULSE)
        rate = self.rate.per_s(time.monotonic())
        self._channels.publish(
            [(channel, self._seal.close(channel, Pulse(self._session, round(rate, 1), self._published)))]
        )

    def _hear_wants(self) -> None:
        """Note which shards want pages of which streams. Yields."""
        reader = self._channels.subscribe(WANT)
        try:
            while True:
                gevent.sleep(PULSE_S)
                while (received := reader.received()) is not None:
                    kind, _, data = received
                    wants = self._seal.open(self._channels.name(WANT), data) if kind == "message" else None
                    if isinstance(wants, Wants) and wants.shard_id != self._shard_id:
                        self._wanted.note(wants.shard_id, wants.streams, time.monotonic())
        finally:
            reader.close()

    def _read_all(self) -> None:
        """Read what was heard, all that has come meanwhile at a time. Yields."""
        while True:
            self._stirred.wait()
            self._stirred.clear()
            heads, self._heads = self._heads, {}
            wanted, self._to_read = self._to_read, {}
            names = list(wanted)
            pages: list[NewsPage] = []
            for start in range(0, len(names), MOST_STREAMS):
                some = {name: wanted[name] for name in names[start : start + MOST_STREAMS]}
                pages += self._read(some, heads)
            if len(self._queue) > MOST_QUEUED:
                raise redis.TimeoutError("Redis takes what is told over the bus too slowly")
            self._queue.put((heads, pages))

    def _publish_all(self) -> None:
        """Tell what was read, all that has come meanwhile at a time. Yields."""
        while True:
            heads, pages = self._queue.get()
            while len(self._queue):
                more_heads, more_pages = self._queue.get()
                heads.update(more_heads)
                pages += more_pages
            self._publish(heads, pages)

    def _read(self, wanted: dict[str, int], heads: dict[str, int]) -> list[NewsPage]:
        """The pages of these streams with their new heads; what is not to be sent as a page goes to heads. Yields."""
        # Of a stream that was not told before, the newest event alone is likely to be new.
        after = {name: self._told.get(name, head - 1) for name, head in wanted.items()}
        due = [name for name, head in wanted.items() if after[name] < head]
        if not due:
            return []
        settings = self._settings
        began = time.monotonic()
        try:
            with gevent.Timeout(min(READ_S, settings.read_deadline_s)):
                found = self._kept.read(
                    lambda kept: sql_functions.read_rows(
                        kept,
                        due,
                        [after[name] for name in due],
                        settings.page_events,
                        settings.page_bytes,
                        settings.page_bytes,
                    )
                )
        except (psycopg.Error, gevent.Timeout) as error:
            logger.warning("a read for all shards has failed, each reads for itself: %s", error)
            self._kept.close()
            for name in due:
                self._inbox.put(Wake(name, wanted[name]))
                heads[name] = wanted[name]
            return []
        waited_us = (time.monotonic() - began) * 1e6
        pages = []
        for name, rows in zip(due, found, strict=True):
            page = sql_functions.page(name, after[name], rows, self._unsendable)
            if page.unread:
                self._to_read.setdefault(name, wanted[name])
                self._stirred.set()
                continue
            reach = page.frames[-1].id if page.frames else page.head
            self._told[name] = reach
            self._told.move_to_end(name)
            if len(self._told) > MOST_TOLD:
                self._told.popitem(last=False)
            ages = [row[-1] / 1e6 for row in rows if row[-1] is not None]
            self._inbox.put(BusPage(name, after[name], page, sql_functions.timeline(rows), began, ages))
            if _is_plain(rows):
                aged = [(*row[:-1], None if row[-1] is None else int(row[-1] + waited_us)) for row in rows]
                pages.append(NewsPage(name, after[name], aged))
            else:
                heads[name] = page.head
            if reach < page.head:
                self._to_read[name] = max(page.head, self._to_read.get(name, 0))
                self._stirred.set()
        return pages

    def _publish(self, heads: dict[str, int], pages: list[NewsPage]) -> None:
        news = list(self._news(heads, pages))
        messages = []
        for channel, bulletin in news:
            name = self._channels.name(channel)
            messages.append((name, self._seal.close(name, bulletin)))
        if not messages:
            return
        self._channels.publish(messages)
        self.heads += len(heads)
        self.pages += len(pages)
        self.bytes += sum(len(message) for _, message in messages)
        for channel, bulletin in news:
            self._published[channel] = bulletin.number

    def _news(self, heads: dict[str, int], pages: list[NewsPage]) -> Iterator[tuple[int, News]]:
        """(channel, News) for each channel that has some; a timeline that differs makes News of its own."""
        heads_of: dict[int, list[tuple[str, int]]] = {}
        pages_of: dict[tuple[int, str | None], list[NewsPage]] = {}
        for name, head in heads.items():
            heads_of.setdefault(channel_of(slot(name)), []).append((name, head))
        for page in pages:
            pages_of.setdefault((channel_of(slot(page.stream)), sql_functions.timeline(page.rows)), []).append(page)
        for (channel, timeline), some in pages_of.items():
            self._numbers[channel] += 1
            yield channel, News(self._session, self._numbers[channel], timeline, heads_of.pop(channel, ()), some)
        for channel, told in heads_of.items():
            self._numbers[channel] += 1
            yield channel, News(self._session, self._numbers[channel], None, told)


def _is_plain(rows: sql_functions.EventRows) -> bool:
    """Whether the rows can be told as JSON, and are worth it."""
    texts = [text for row in rows for text in row[-4:-1] if text is not None]
    return all(isinstance(text, str) for text in texts) and sum(map(len, texts)) <= MOST_PAGE_BYTES
