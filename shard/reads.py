"""The reads: which are wanted, which are asked for, and what becomes of a read that comes to nothing.

    live       the dirty streams in one query, each after the shard's own head of it
    catch-up   the streams on which clients need the log, each after the position furthest behind
    sweep      the heads of all streams, for notifications that were lost

Each of these three lanes has at most one read outstanding, so that clients that are being caught up, however many,
never stand between an event and the live clients.

A read has no more bytes than PAGE_BYTES, over all its streams; streams for which nothing was left are the first of the
next read. So PAGE_BYTES is what a lane can have in memory on its way from PostgreSQL, however many streams need how
much.

What the pages of a read mean for clients is decided in `shard/dispatcher.py`.
"""

import logging
from typing import Final

from headrace.shard.connection import Stream, Subscription, SubscriptionState
from headrace.shard.messages import Listening, Missed, Read, ReadFailed, ReadKind, Relistened, Rows, Wake
from headrace.shard.ports import ReadQueue, SlotListening
from headrace.shard.registry import Registry

logger = logging.getLogger(__name__)

MAX_STREAMS_A_READ: Final = 1000


class Reads:
    """Knows which reads are wanted, and asks the readers for them.

    Owned by the dispatcher greenlet. Two things are wanted: the log after the head of a *dirty* stream, and a page of
    the log for subscriptions that need frames from before their ring. A stream is a suspect when PostgreSQL has refused
    a read that it was in: it is asked for alone. The catch-up lane rests after a failure, until the next sweep.
    """

    def __init__(self, registry: Registry, readers: ReadQueue, listener: SlotListening) -> None:
        self._registry = registry
        self._readers = readers
        self._listener = listener
        self._dirty: dict[Stream, None] = {}
        self._wanting_log: dict[Stream, None] = {}
        self._busy: dict[ReadKind, bool] = dict.fromkeys(ReadKind, False)
        self._reading: frozenset[Stream] = frozenset()
        self._resting = False
        self._suspects: set[Stream] = set()

    # -- what is wanted

    def mark_dirty(self, stream: Stream) -> None:
        """A stream has events to read, or may have."""
        self._dirty[stream] = None

    def is_dirty(self, stream: Stream) -> bool:
        """Whether a stream waits for the next live read."""
        return stream in self._dirty

    def is_reading(self, stream: Stream) -> bool:
        """Whether a live read of a stream is outstanding."""
        return stream in self._reading

    def wake(self, message: Wake) -> None:
        """A notification has come. It is a hint only: the head moves when the events have been read."""
        stream = self._registry.stream(message.stream)
        if stream is not None and (stream.head is None or message.head > stream.head):
            self._dirty[stream] = None

    def listening(self, message: Listening) -> None:
        """LISTEN on these slots is committed: a first read of their streams may be asked for now."""
        for number in message.slots:
            for stream in self._registry.in_slot(number):
                self._dirty[stream] = None

    def missed(self, message: Missed) -> None:
        """News of these slots may have been lost: their streams are read."""
        for number in message.slots:
            for stream in self._registry.in_slot(number):
                self._dirty[stream] = None

    def relistened(self, _: Relistened) -> None:
        """Notifications may have been missed while the LISTEN connection was away."""
        for stream in self._registry.streams:
            self._dirty[stream] = None

    def sweep(self) -> None:
        """Ask for the heads of all streams, unless that read is outstanding; catching up may be tried again."""
        self._resting = False
        opened = []
        for stream in self._registry.streams:
            if stream.head is None or stream.opening:
                self._dirty[stream] = None
            else:
                opened.append(stream)
        if opened and not self._busy[ReadKind.SWEEP]:
            self._ask(ReadKind.SWEEP, opened, [None] * len(opened))

    def want_start(self, subscription: Subscription) -> None:
        """A subscription needs a read that is asked for from now on, to know its start or to have it confirmed."""
        subscription.state = SubscriptionState.OPENING
        subscription.stream.opening.append(subscription)
        self._dirty[subscription.stream] = None

    def want_log(self, subscription: Subscription) -> None:
        """A subscription needs frames that the ring of its stream does not have."""
        subscription.state = SubscriptionState.LOG
        subscription.stream.log.add(subscription)
        self._wanting_log[subscription.stream] = None

    def want_log_again(self, stream: Stream) -> None:
        """A page of the log has been used: subscriptions that it did not serve need another."""
        if stream.log:
            self._wanting_log[stream] = None

    def forget(self, stream: Stream) -> None:
        """A stream is dropped."""
        self._suspects.discard(stream)

    # -- what is asked for

    def ask(self) -> None:
        """Ask for what is wanted now, in each lane that is free."""
        self._ask_live()
        self._ask_catch_up()

    def _ask_live(self) -> None:
        """One query for the dirty streams whose slot is listened to, each after the shard's own head."""
        if self._busy[ReadKind.LIVE]:
            return
        streams: list[Stream] = []
        after: list[int | None] = []
        for stream in list(self._dirty):
            if stream.dropped:
                del self._dirty[stream]
                continue
            if len(streams) == MAX_STREAMS_A_READ or (self._suspects and not self._suspects.isdisjoint(streams)):
                break
            if streams and stream in self._suspects:
                continue
            del self._dirty[stream]
            # LISTEN is not committed yet: the Listening message makes the stream dirty again.
            if stream.head is None and not self._listener.ensure_listening(stream.slot):
                continue
            stream.awaiting_read, stream.opening = stream.opening, []
            streams.append(stream)
            after.append(_first_position(stream) if stream.head is None else stream.head)
        if streams:
            self._ask(ReadKind.LIVE, streams, after)

    def _ask_catch_up(self) -> None:
        """One query for the streams on which clients need the log, each after the position furthest behind."""
        if self._busy[ReadKind.CATCH_UP] or self._resting:
            return
        streams: list[Stream] = []
        after: list[int | None] = []
        for stream in list(self._wanting_log):
            if len(streams) == MAX_STREAMS_A_READ or (self._suspects and not self._suspects.isdisjoint(streams)):
                break
            if streams and stream in self._suspects:
                continue
            del self._wanting_log[stream]
            if stream.log and not stream.dropped:
                streams.append(stream)
                after.append(min(subscription.position for subscription in stream.log))
        if streams:
            self._ask(ReadKind.CATCH_UP, streams, after)

    def _ask(self, kind: ReadKind, streams: list[Stream], after: list[int | None]) -> None:
        self._busy[kind] = True
        if kind is ReadKind.LIVE:
            self._reading = frozenset(streams)
        self._readers.submit(Read(kind, tuple(streams), tuple(after)))

    # -- what becomes of a read

    def answered(self, message: Rows) -> None:
        """A read has brought its pages: its lane is free, and what had no room in it comes first in the next."""
        read = message.read
        self._free(read)
        self._suspects.difference_update(read.streams)
        wanted = self._dirty if read.kind is ReadKind.LIVE else self._wanting_log
        wanted.update((stream, None) for stream, page in zip(read.streams, message.pages, strict=True) if page.unread)

    def refused(self, message: ReadFailed) -> None:
        """PostgreSQL has refused a read. The fault of one stream must not hold up the others: ask for each alone."""
        read = message.read
        self.give_back(read)
        if len(read.streams) > 1 and read.kind is not ReadKind.SWEEP:
            logger.error("a %s read failed, asking for each stream alone: %s", read.kind.value, message.error)
            self._suspects.update(stream for stream in read.streams if not stream.dropped)
            self._resting = False
            if read.kind is ReadKind.LIVE:
                self._dirty.update(dict.fromkeys(read.streams))
        else:
            logger.error("a %s read failed, the next sweep tries again: %s", read.kind.value, message.error)

    def ask_again(self, read: Read) -> None:
        """Repeat a read whose rows came while revocations were not known: some clients may no longer see its events."""
        resting = self._resting
        self.give_back(read)
        self._resting = resting
        if read.kind is ReadKind.LIVE:
            self._dirty.update(dict.fromkeys(read.streams))

    def give_back(self, read: Read) -> None:
        """A read came to nothing: keep what it was for, until the sweep asks again."""
        self._free(read)
        for stream in read.streams:
            # Live reads alone tell a subscription its start, and one may be outstanding beside this read.
            if read.kind is ReadKind.LIVE:
                stream.opening = stream.awaiting_read + stream.opening
                stream.awaiting_read = []
            elif read.kind is ReadKind.CATCH_UP:
                self._resting = True
                if stream.log:
                    self._wanting_log[stream] = None

    def _free(self, read: Read) -> None:
        self._busy[read.kind] = False
        if read.kind is ReadKind.LIVE:
            self._reading = frozenset()


def _first_position(stream: Stream) -> int | None:
    """Where the first read of a stream begins: the position furthest behind, None if no client gave one."""
    return min((s.position for s in stream.awaiting_read if s.start is None and not s.connection.dead), default=None)
