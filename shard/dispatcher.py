"""The dispatcher: the one greenlet that owns a shard's state, and what it does with each message.

    connect   1 ensure_listening(slot), committed      wake   the stream is dirty; when the live reader is free,
              2 enter, at the cursor that was given           all dirty streams in one query, each after the
              3 read_after(cursor), page by page              shard's own head of it (never the slowest client's)
              4 write; 3 again until it meets the head  rows  encode once, keep in the ring, write to every live
              5 live                                          subscription; who is not live finds it in the ring

Why nothing is lost: a stream's head moves only here, by a page that begins right after it, and that page goes to
the ring and to all who are live in the same breath. A subscription is live only where its position is the head.
The first read of a stream is asked for after LISTEN on its slot is committed, so whatever commits later rings. A
ring that is missed is made good by the sweep, and one LISTEN connection lost by the sweep right after the next.

The live lane has one read outstanding and the catch-up lane another, so that clients catching up, however many,
never stand between an event and those who are live; see `shard/reads.py`.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from headrace.settings import Settings
from headrace.shard.arrivals import Arrivals
from headrace.shard.connection import Connection, Stream
from headrace.shard.connection_counts import Holdings
from headrace.shard.delivery import Delivery
from headrace.shard.inbox import Inbox
from headrace.shard.messages import (
    Assign,
    Connect,
    Delivered,
    Dismiss,
    Listening,
    Message,
    Page,
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
from headrace.shard.ports import Poll, Predicates, Presence, Readers, Revocations, Subscriptions, Transfer
from headrace.shard.reads import Reads
from headrace.shard.registry import Registry
from headrace.shard.ring import RingBudget
from headrace.shard.socket_calls import Wire
from headrace.shard.timers import Timers
from headrace.shard.writer import Outlet

logger = logging.getLogger(__name__)

WORK_BUDGET_S: Final = 0.005
"""How long clients behind are served before the messages are looked at again."""
MAX_RECEIVED_BYTES: Final = 64 * 1024
"""A client that has sent its request has nothing more to say; one that talks on is cut off."""


class Dispatcher:
    """Handles one message after the other; owns the registry and, through it, every connection.

    Owned by the greenlet that calls `run`; tests call `handle` and `settle_up` instead. Other greenlets put
    messages and read plain numbers.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox[Message],
        readers: Readers,
        listener: Subscriptions,
        poller: Poll,
        predicates: Predicates,
        transfer: Transfer,
        presence: Presence,
        revocations: Revocations,
        *,
        wire: Wire | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        pause: Callable[[], None] = lambda: None,
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self.registry = Registry(
            settings.ring_bytes,
            # A hot stream is found by the shard that serves it alone, or by several that each have a part of it.
            crowd=max(1, settings.hot_connections // 8),
            holdings=Holdings(by_address=settings.max_address_connections > 0),
        )
        self.outlet = Outlet(
            self.registry,
            poller,
            presence,
            wire or Wire(),
            retry_ms=settings.retry_ms,
            unsent_total_bytes=settings.unsent_total_bytes,
            clock=clock,
        )
        self.reads = Reads(self.registry, readers, listener)
        self.delivery = Delivery(self.registry, predicates, self.outlet, self.reads, clock)
        self.arrivals = Arrivals(self.registry, poller, presence, self.outlet, self.reads, self.delivery)
        self.moves = Moves(self.registry, poller, self.outlet, self.arrivals, transfer, self._adopt)
        self.timers = Timers(settings, self.registry, self.outlet, poller, listener, clock, wall_clock)
        self.stopped = False
        self.connects = 0
        self.errors = 0
        self.last_error = ""
        self._inbox = inbox
        self._poller = poller
        self._revocations = revocations
        self._pause = pause
        self._missed = missed
        self._rings = RingBudget(settings.ring_total_bytes)
        self._handlers: dict[type, Callable[..., None]] = {
            Connect: self._connect,
            Wake: self.reads.wake,
            Listening: self.reads.listening,
            Relistened: self.reads.relistened,
            Rows: self._rows,
            ReadFailed: self._read_failed,
            Verdict: self._verdict,
            Revised: self._revised,
            Assign: self.moves.assign,
            Delivered: self.moves.delivered,
            Dismiss: self.timers.dismiss,
            Ready: self._ready,
            Tick: self.timers.tick,
            Sweep: self._sweep,
            Stop: self._stop,
        }

    def run(self) -> None:
        """Handle messages until a Stop. Yields only between messages: while there are none, and after each
        batch, so that the readers and the listener get their turn."""
        while not self.stopped:
            for message in self._inbox.take(wait=not self.delivery.busy):
                self.handle(message)
            self.settle_up()
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
            if isinstance(message, Delivered) and message.given_back is not None:
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
        self.outlet.close(connection, "internal error")

    def settle_up(self) -> None:
        """After a batch: serve clients behind for a while, and ask for the reads that are wanted."""
        if self.stopped:
            return
        self.moves.step()
        self.delivery.work(WORK_BUDGET_S)
        for stream in self.outlet.emptied:
            self._rings.forget(stream.ring)
            self.reads.forget(stream)
        self.outlet.emptied.clear()
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
            self.outlet.goodbye(connection, refused, "disconnected")
            return
        self.timers.watch(connection)

    def _drop(self, fd: int) -> None:
        connection = self.registry.connection(fd)
        if connection is None:
            self._poller.close(fd)
        else:
            self.outlet.close(connection, "internal error")

    def _verdict(self, message: Verdict) -> None:
        self.delivery.verdict(message.connection, message.stream, message.label, message.visible)

    def _revised(self, message: Revised) -> None:
        for connection in self.registry:
            refused = self._revocations.refuses(connection.context)
            for subscription in connection.subscriptions if message.streams else ():
                refused = refused or message.streams.get(subscription.stream.name, "")
            if refused:
                self.outlet.goodbye(connection, refused, "disconnected")

    def _ready(self, _: Ready) -> None:
        for fd, readable, writable in self._poller.poll():
            connection = self.registry.connection(fd)
            if connection is None:
                continue
            try:
                self._heard(connection, readable, writable)
            except Exception as error:
                # The others are not told of again: what is ready is reported once.
                self._failed("Ready", error, connection)

    def _heard(self, connection: Connection, readable: bool, writable: bool) -> None:
        if readable:
            received = self._poller.receive(connection.fd)
            connection.received += max(received, 0)
            if received < 0:
                self.outlet.close(connection, "peer gone")
            elif connection.received > MAX_RECEIVED_BYTES:
                self.outlet.goodbye(connection, "unexpected data")
        if writable:
            self.delivery.writable(connection)

    def _stop(self, message: Stop) -> None:
        self.stopped = True
        for connection in self.registry:
            try:
                self.outlet.goodbye(connection, message.reason)
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
            return
        self.reads.answered(message)
        self.delivery.counters.begin()
        for stream, after, page in zip(read.streams, read.after, message.pages, strict=True):
            if stream.dropped:
                continue
            if read.kind is ReadKind.LIVE:
                self._live_page(stream, after, page)
            elif read.kind is ReadKind.CATCH_UP and page.unread:
                continue
            elif read.kind is ReadKind.CATCH_UP:
                self._log_page(stream, after, page)
            elif page.head != stream.head:
                if not self.reads.is_dirty(stream):
                    self._missed()
                self.reads.mark_dirty(stream)
        self.delivery.counters.written(message.asked_at, message.ages)

    def _live_page(self, stream: Stream, after: int | None, page: Page) -> None:
        """A page from the shard's own head on: it moves the head, and settles who waited for such a read."""
        if stream.head is None:
            self._first_page(stream, after, page)
        elif page.foreign(stream.head):
            self.delivery.reset(stream, page.head)
            self._rings.settle(stream.ring)
        else:
            gap = page.trimmed_to > stream.head
            if gap:
                stream.ring.reset(page.trimmed_to)
            if page.frames or gap:
                stream.ring.append(page.frames)
                self._rings.settle(stream.ring)
                self.delivery.fan_out(stream, page)
        if stream.head is not None and stream.head < page.head:
            self.reads.mark_dirty(stream)
        settling, stream.settling = stream.settling, []
        for subscription in settling:
            try:
                self.arrivals.begin(subscription, page)
            except Exception as error:
                # The others wait for this page alone: no other would settle them.
                self._failed("Rows", error, subscription.connection)

    def _first_page(self, stream: Stream, after: int | None, page: Page) -> None:
        """The stream is new here: its head is the snapshot's, and the ring what the page has up to it."""
        stream.head = page.head
        stream.ring.reset(page.head)
        reaches_head = bool(page.frames) and page.frames[-1].id == page.head
        if after is not None and reaches_head and not page.foreign(after):
            stream.ring.prepend(max(after, page.trimmed_to), page.frames)
            self._rings.settle(stream.ring)

    def _log_page(self, stream: Stream, after: int | None, page: Page) -> None:
        if after is None:
            raise AssertionError(f"a page of the log for {stream!r} without a position")
        if page.trimmed_to <= after and not page.foreign(after) and stream.ring.prepend(after, page.frames):
            self._rings.settle(stream.ring)
        self.delivery.feed(stream, after, page)

    def _read_failed(self, message: ReadFailed) -> None:
        self.last_error = message.error
        self.reads.refused(message)
