"""The lanes: which reads are asked for, one outstanding in each, and what becomes of those that come to nothing.

    live       the dirty streams in one query, each after the shard's own head of it
    catch-up   the streams on which clients need the log, each after the position furthest behind
    sweep      the heads of all, for notifications that were lost

A read has no more bytes than PAGE_BYTES, over all its streams; those for which nothing was left are the first of the
next. So that is what a lane can have in memory on its way from PostgreSQL, however many streams need how much.
"""

import logging
from typing import Final

from headrace.shard.connection import Stream
from headrace.shard.delivery import Delivery
from headrace.shard.messages import Read, ReadFailed, ReadKind, Rows
from headrace.shard.ports import Readers, Subscriptions

logger = logging.getLogger(__name__)

MAX_STREAMS_A_READ: Final = 1000


class Lanes:
    """Asks the readers for what delivery wants.

    Owned by the dispatcher greenlet. A stream is a suspect when a read that it was in has been refused by PostgreSQL:
    it is asked for alone. The catch-up lane rests after a failure, until the next sweep.
    """

    def __init__(self, delivery: Delivery, readers: Readers, listener: Subscriptions) -> None:
        self._delivery = delivery
        self._readers = readers
        self._listener = listener
        self._busy: dict[ReadKind, bool] = dict.fromkeys(ReadKind, False)
        self._resting = False
        self._suspects: set[Stream] = set()

    def ask(self) -> None:
        """Ask for what is wanted now, in each lane that is free."""
        self._ask_live()
        self._ask_catch_up()

    def sweep(self, streams: list[Stream]) -> None:
        """Ask for the heads of these streams, unless that is outstanding; catching up may be tried again."""
        self._resting = False
        if streams and not self._busy[ReadKind.SWEEP]:
            self._ask(ReadKind.SWEEP, streams, [None] * len(streams))

    def forget(self, stream: Stream) -> None:
        """A stream is dropped."""
        self._suspects.discard(stream)

    def answered(self, message: Rows) -> None:
        """A read has brought its pages: its lane is free, and what had no room in it comes first in the next."""
        read = message.read
        self._busy[read.kind] = False
        self._suspects.difference_update(read.streams)
        wanted = self._delivery.dirty if read.kind is ReadKind.LIVE else self._delivery.wanting_log
        wanted.update((stream, None) for stream, page in zip(read.streams, message.pages, strict=True) if page.unread)

    def refused(self, message: ReadFailed) -> None:
        """PostgreSQL has refused a read. One stream's fault must not hold up the others: ask for each alone."""
        read = message.read
        self.give_back(read)
        if len(read.streams) > 1 and read.kind is not ReadKind.SWEEP:
            logger.error("a %s read failed, asking for each stream alone: %s", read.kind.value, message.error)
            self._suspects.update(stream for stream in read.streams if not stream.dropped)
            self._resting = False
            if read.kind is ReadKind.LIVE:
                self._delivery.dirty.update(dict.fromkeys(read.streams))
        else:
            logger.error("a %s read failed, the next sweep tries again: %s", read.kind.value, message.error)

    def ask_again(self, read: Read) -> None:
        """What a read that was kept waiting shows, somebody may no longer see: repeat it when that is known."""
        resting = self._resting
        self.give_back(read)
        self._resting = resting
        if read.kind is ReadKind.LIVE:
            self._delivery.dirty.update(dict.fromkeys(read.streams))

    def give_back(self, read: Read) -> None:
        """A read came to nothing: keep what it was for, until the sweep asks again."""
        self._busy[read.kind] = False
        for stream in read.streams:
            if read.kind is ReadKind.LIVE:  # which alone settles anybody; one may be outstanding beside this read
                stream.opening = stream.settling + stream.opening
                stream.settling = []
            elif read.kind is ReadKind.CATCH_UP:
                self._resting = True
                if stream.log:
                    self._delivery.wanting_log[stream] = None

    def _ask_live(self) -> None:
        """One query for the dirty streams whose slot is listened to, each after the shard's own head."""
        if self._busy[ReadKind.LIVE]:
            return
        streams: list[Stream] = []
        after: list[int | None] = []
        for stream in list(self._delivery.dirty):
            if stream.dropped:
                del self._delivery.dirty[stream]
                continue
            if len(streams) == MAX_STREAMS_A_READ or (self._suspects and not self._suspects.isdisjoint(streams)):
                break
            if streams and stream in self._suspects:
                continue
            del self._delivery.dirty[stream]
            # Not yet: the Listening message makes the stream dirty again.
            if stream.head is None and not self._listener.ensure_listening(stream.slot):
                continue
            stream.settling, stream.opening = stream.opening, []
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
        for stream in list(self._delivery.wanting_log):
            if len(streams) == MAX_STREAMS_A_READ or (self._suspects and not self._suspects.isdisjoint(streams)):
                break
            if streams and stream in self._suspects:
                continue
            del self._delivery.wanting_log[stream]
            if stream.log and not stream.dropped:
                streams.append(stream)
                after.append(min(subscription.position for subscription in stream.log))
        if streams:
            self._ask(ReadKind.CATCH_UP, streams, after)

    def _ask(self, kind: ReadKind, streams: list[Stream], after: list[int | None]) -> None:
        self._busy[kind] = True
        self._readers.submit(Read(kind, tuple(streams), tuple(after)))


def _first_position(stream: Stream) -> int | None:
    """Where the first read of a stream begins: the position furthest behind, None if no client gave one."""
    return min((s.position for s in stream.settling if s.start is None and not s.connection.dead), default=None)
