"""The dispatcher: the one greenlet that owns a shard's state, and what it does with each message.

    connect   1 ensure_listening(slot), committed      wake   the stream is dirty; when the live lane is free,
              2 enter, at the cursor that was given           all dirty streams are read in one query, each after
              3 read_events(cursor), page by page             the shard's own head of it (never the slowest client's)
              4 write; 3 again until it meets the head  rows  encode once, keep in the ring, write to every live
              5 live                                          subscription; the others find it in the ring

Why nothing is lost. The head of a stream moves only here, by a page that begins right after it, and that page goes to
the ring and to all live subscriptions in the same step, without a yield in between. A subscription is live only while
its position is the head. The first read of a stream is asked for after LISTEN on its slot is committed, so the shard is
notified of every later commit. Events of which no notification arrived are found by the sweep. When the LISTEN
connection was lost, every stream is read again as soon as there is a new one.

The live lane has one read outstanding and the catch-up lane another, so that clients that are being caught up, however
many, never stand between an event and the live clients; see `shard/reads.py`. What is done because time has passed is
in `shard/timers.py`.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from headrace.settings import Settings
from headrace.shard.arrivals import Arrivals
from headrace.shard.bus_pages import BusPages
from headrace.shard.connection import Connection, Stream
from headrace.shard.connection_counts import ConnectionCounts
from headrace.shard.delivery import Delivery
from headrace.shard.inbox import Inbox
from headrace.shard.messages import (
    Assign,
    BusPage,
    Connect,
    DrainNode,
    Listening,
    Message,
    Missed,
    MoveEnded,
    Page,
    Read,
    ReadFailed,
    ReadKind,
    Ready,
    Relistened,
    Revised,
    Rows,
    Stop,
    Sweep,
    Tick,
    Verdict,
    Wake,
)
from headrace.shard.moves import Moves
from headrace.shard.ports import (
    ParcelQueue,
    PolledSockets,
    PredicateQuestions,
    PresenceRecord,
    ReadQueue,
    RevocationCheck,
    SlotListening,
)
from headrace.shard.reads import Reads
from headrace.shard.registry import Registry
from headrace.shard.ring import RingBudget
from headrace.shard.socket_calls import SocketCalls
from headrace.shard.timers import Timers
from headrace.shard.writer import Writer

logger = logging.getLogger(__name__)

WORK_BUDGET_S: Final = 0.005
"""How long clients that are behind are served before the messages are looked at again."""
FORGOTTEN_AFTER_S: Final = 1800.0
"""A stream that had an event, or lost one, is not forgotten within this time; headrace.forget_streams says an hour."""
MAX_RECEIVED_BYTES: Final = 64 * 1024
"""A client that has sent its request has nothing more to say; a client that sends more than this is cut off."""


class Dispatcher:
    """Handles one message after the other; owns the registry and, through it, every connection.

    Owned by the greenlet that calls `run`; tests call `handle` and `finish_batch` instead. Other greenlets put
    messages into the inbox and read plain numbers.

    pause is called after each batch of messages, and may yield. missed is called when a sweep finds events of which no
    notification has come. errors counts messages and connections that could not be handled; last_error says what the
    last error was, and stays.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox[Message],
        readers: ReadQueue,
        listener: SlotListening,
        poller: PolledSockets,
        predicates: PredicateQuestions,
        transfer: ParcelQueue,
        presence: PresenceRecord,
        revocations: RevocationCheck,
        *,
        socket_calls: SocketCalls | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        pause: Callable[[], None] = lambda: None,
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self.registry = Registry(
            settings.ring_bytes,
            # A hot stream is found by the shard that serves it alone, or by several that each have a part of it.
            crowd=max(1, settings.hot_connections // 8),
            connection_counts=ConnectionCounts(by_address=settings.max_address_connections > 0),
            keeps_left=settings.forget_after_s > 0,
        )
        self.writer = Writer(
            self.registry,
            poller,
            presence,
            socket_calls or SocketCalls(),
            retry_ms=settings.retry_ms,
            unsent_total_bytes=settings.unsent_total_bytes,
            log_clients_per_s=settings.log_clients_per_s,
            clock=clock,
        )
        self.reads = Reads(self.registry, readers, listener)
        self.delivery = Delivery(self.registry, predicates, self.writer, self.reads, clock)
        self.arrivals = Arrivals(self.registry, poller, presence, self.writer, self.reads, self.delivery)
        self.moves = Moves(self.registry, poller, self.writer, self.arrivals, transfer, self._adopt)
        self.bus_pages = BusPages(self.registry, self.reads, revocations, self._bus_page)
        self.timers = Timers(settings, self.registry, self.writer, poller, listener, clock, wall_clock)
        self.stopped = False
        self.connects = 0
        self.errors = 0
        self.last_error = ""
        self._inbox = inbox
        self._poller = poller
        self._revocations = revocations
        self._pause = pause
        self._missed = missed
        self._clock = clock
        self._rings = RingBudget(settings.ring_total_bytes)
        self._handlers: dict[type, Callable[..., None]] = {
            Connect: self._connect,
            Wake: self.reads.wake,
            Listening: self.reads.listening,
            Missed: self.reads.missed,
            Relistened: self.reads.relistened,
            BusPage: self.bus_pages.arrived,
            Rows: self._rows,
            ReadFailed: self._read_failed,
            Verdict: self._verdict,
            Revised: self._revised,
            Assign: self.moves.assign,
            MoveEnded: self.moves.ended,
            DrainNode: self.timers.drain_node,
            Ready: self._ready,
            Tick: self.timers.tick,
            Sweep: self._sweep,
            Stop: self._stop,
        }

    def run(self) -> None:
        """Handle messages until a Stop.

        Yields only while there are no messages, and after each batch of them, so that the readers and the listener get
        their turn.
        """
        while not self.stopped:
            for message in self._inbox.take(wait=not self.delivery.busy):
                self.handle(message)
            self.finish_batch()
            self._pause()

    def handle(self, message: Message) -> None:
        """Handle one message. An exception hurts this message only: it is counted and logged."""
        try:
            self._handlers[type(message)](message)
        except Exception as error:
            self.errors += 1
            self.last_error = f"{type(message).__name__}: {error!r}"
            logger.exception("could not handle %r", message)
            if isinstance(message, Connect):
                self._drop(message.fd)
            if isinstance(message, MoveEnded) and message.given_back is not None:
                self._drop(message.given_back.fd)
            if isinstance(message, Rows | ReadFailed):
                self.reads.give_back(message.read)
                for stream in message.read.streams:
                    self.delivery.mend(stream)

    def _failed(self, kind: str, error: Exception, connection: Connection) -> None:
        """An unforeseen error with one connection: it is closed, and comes back with its last id."""
        self.errors += 1
        self.last_error = f"{kind}: {error!r}"
        logger.exception("could not serve %r", connection)
        self.writer.close(connection, "internal error")

    def finish_batch(self) -> None:
        """After a batch: serve clients that are behind for a while, and ask for the reads that are wanted."""
        if self.stopped:
            return
        self.moves.step()
        self.delivery.work(WORK_BUDGET_S)
        for stream in self.writer.emptied:
            self._rings.forget(stream.ring)
            self.reads.forget(stream)
            self.bus_pages.forget(stream)
        self.writer.emptied.clear()
        if self._revocations.current():
            self.reads.ask()

    # -- clients

    def _connect(self, message: Connect) -> None:
        self.connects += 1
        connection = self.arrivals.open(message.fd, message.handoff, message.unsent)
        self._adopt(connection, moved=message.handoff.moved is not None)
        self.moves.arrived(connection)

    def _adopt(self, connection: Connection, moved: bool = True) -> None:
        if connection.dead:
            return
        refused = self._revocations.refuses(connection.context)
        if moved and not refused:
            refused = self._revocations.missed(s.stream.name for s in connection.subscriptions)
        if refused:
            self.writer.goodbye(connection, refused, "disconnected")
            return
        self.timers.watch(connection)

    def _drop(self, fd: int) -> None:
        connection = self.registry.connection(fd)
        if connection is None:
            self._poller.close(fd)
        else:
            self.writer.close(connection, "internal error")

    def _verdict(self, message: Verdict) -> None:
        self.delivery.verdict(message.connection, message.stream, message.label, message.visible)

    def _revised(self, message: Revised) -> None:
        for connection in self.registry:
            refused = self._revocations.refuses(connection.context)
            for subscription in connection.subscriptions if message.streams else ():
                refused = refused or message.streams.get(subscription.stream.name, "")
            if refused:
                self.writer.goodbye(connection, refused, "disconnected")

    def _ready(self, _: Ready) -> None:
        for fd, readable, writable in self._poller.poll():
            connection = self.registry.connection(fd)
            if connection is None:
                continue
            try:
                self._heard(connection, readable, writable)
            except Exception as error:
                # The loop goes on: the poller tells of a socket that is ready once, and not again of the others.
                self._failed("Ready", error, connection)

    def _heard(self, connection: Connection, readable: bool, writable: bool) -> None:
        if readable:
            received = self._poller.receive(connection.fd)
            connection.received += max(received, 0)
            if received < 0:
                self.writer.close(connection, "peer gone")
            elif connection.received > MAX_RECEIVED_BYTES:
                self.writer.goodbye(connection, "unexpected data")
        if writable:
            self.delivery.writable(connection)

    def _stop(self, message: Stop) -> None:
        self.stopped = True
        for connection in self.registry:
            try:
                self.writer.goodbye(connection, message.reason)
            except Exception as error:
                self._failed("Stop", error, connection)

    def _sweep(self, _: Sweep) -> None:
        self.timers.sweep()
        self.reads.sweep()

    # -- reads and what they find

    def _rows(self, message: Rows) -> None:
        read = message.read
        if read.kind is not ReadKind.SWEEP and not self._revocations.current():
            self.reads.ask_again(read)
            self._live_read_ended(read)
            return
        self.reads.answered(message)
        self.bus_pages.timeline = message.timeline
        self.delivery.counters.begin()
        for stream, after, page in zip(read.streams, read.after, message.pages, strict=True):
            if stream.dropped:
                continue
            if read.kind is ReadKind.LIVE:
                self._live_page(stream, after, page)
                stream.read_at = max(stream.read_at, message.asked_at)
            elif read.kind is ReadKind.CATCH_UP and page.unread:
                continue
            elif read.kind is ReadKind.CATCH_UP:
                self._log_page(stream, after, page)
            elif page.head != stream.head:
                if not self.reads.is_dirty(stream):
                    self._missed()
                self.reads.mark_dirty(stream)
            else:
                stream.read_at = max(stream.read_at, message.asked_at)
        self.delivery.counters.written(message.asked_at, message.ages)
        self._live_read_ended(read)

    def _live_read_ended(self, read: Read) -> None:
        if read.kind is ReadKind.LIVE:
            self.bus_pages.read_ended(read.streams)

    def _bus_page(self, stream: Stream, page: Page, message: BusPage) -> None:
        self.delivery.counters.begin()
        self._next_page(stream, page)
        self.delivery.counters.written(message.came_at, message.ages[len(message.ages) - len(page.frames) :])

    def _live_page(self, stream: Stream, after: int | None, page: Page) -> None:
        """A page that begins at the head of the shard: it moves the head, and gives waiting subscriptions a start."""
        if stream.head is None:
            self._first_page(stream, after, page)
        elif page.foreign(stream.head):
            self.delivery.reset(stream, page.head)
            self._rings.account(stream.ring)
        else:
            self._next_page(stream, page)
        if stream.head is not None and stream.head < page.head:
            self.reads.mark_dirty(stream)
        waiting, stream.awaiting_read = stream.awaiting_read, []
        for subscription in waiting:
            try:
                self.arrivals.begin(subscription, page)
            except Exception as error:
                # The loop goes on: the other subscriptions wait for this very page, and no later one would serve them.
                self._failed("Rows", error, subscription.connection)

    def _next_page(self, stream: Stream, page: Page) -> None:
        """A page of the same log that begins right after the head: it goes to the ring and to all live subscriptions.

        The stream is dirty afterwards if its head is still below that of the page.
        """
        assert stream.head is not None
        if stream.head < page.begins_after and self._clock() - stream.read_at < FORGOTTEN_AFTER_S:
            stream.renew(page.begins_after)
        gap = page.trimmed_to > stream.head
        if gap:
            stream.ring.reset(page.trimmed_to)
        if page.frames or gap:
            stream.ring.append(page.frames)
            self._rings.account(stream.ring)
            self.delivery.fan_out(stream, page)
        if stream.head < page.head:
            self.reads.mark_dirty(stream)

    def _first_page(self, stream: Stream, after: int | None, page: Page) -> None:
        """The stream is new here: its head is that of the page, and its ring gets the page's frames up to the head."""
        stream.head = page.head
        stream.ring.reset(page.head)
        reaches_head = bool(page.frames) and page.frames[-1].id == page.head
        if after is not None and reaches_head and not page.foreign(after):
            stream.ring.prepend(max(after, page.trimmed_to), page.frames)
            self._rings.account(stream.ring)

    def _log_page(self, stream: Stream, after: int | None, page: Page) -> None:
        if after is None:
            raise AssertionError(f"a page of the log for {stream!r} without a position")
        if page.trimmed_to <= after and not page.foreign(after) and stream.ring.prepend(after, page.frames):
            self._rings.account(stream.ring)
        self.delivery.feed(stream, after, page)

    def _read_failed(self, message: ReadFailed) -> None:
        self.last_error = message.error
        self.reads.refused(message)
        self._live_read_ended(message.read)
