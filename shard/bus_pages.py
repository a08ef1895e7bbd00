"""What becomes of a page of the log that came over the bus, and which pages are trusted to move a head.

Why nothing is lost or repeated. A page has everything that the log has after the id `after`. So it is as good as a read
of this shard if it is of the same log, and if the head here is not below `after`:

    head here below after     there is a hole: the stream is read
    head here at after        the page is applied as a read is
    head here above after     frames up to the head are cut off, and the rest follows the head; without a rest the page
                              is a repetition, and dropped

While a live read of the stream is outstanding its answer must find the head where it was asked for. So a page that
comes meanwhile waits for the answer, and is then judged as above. A page is dropped, and the stream read, if its
timeline is not the one of this shard's last read: the shard on duty may be connected to a server that was replaced.
Like any read, a page is not used while revocations are not current.

Pages are hints for a head that is not known yet: a stream begins with a read, which is asked for after the shard was
sure to hear of later events.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from headrace.shard.connection import Stream
from headrace.shard.messages import BusPage, Page
from headrace.shard.numbers.counters import Tally
from headrace.shard.ports import RevocationCheck
from headrace.shard.reads import Reads
from headrace.shard.registry import Registry

MOST_WAITING: Final = 64
"""The pages of a stream that wait for a read. One more makes the stream dirty instead."""
OUTCOMES: Final = ("applied", "repeated", "hole", "refused")


class BusPages:
    """Judges the pages that come over the bus.

    Owned by the dispatcher greenlet. follow moves the head of a stream by a page that begins right after it, and counts
    the ages of its events. outcomes counts pages by what became of them. timeline is that of the last read.
    """

    def __init__(
        self,
        registry: Registry,
        reads: Reads,
        revocations: RevocationCheck,
        follow: Callable[[Stream, Page, BusPage], None],
    ) -> None:
        self.outcomes = Tally(OUTCOMES)
        self.timeline: str | None = None
        self._registry = registry
        self._reads = reads
        self._revocations = revocations
        self._follow = follow
        self._waiting: dict[Stream, list[BusPage]] = {}

    def arrived(self, message: BusPage) -> None:
        """A page has come over the bus."""
        stream = self._registry.stream(message.stream)
        if stream is None:
            return
        if not self._reads.is_reading(stream):
            self._judge(stream, message)
            return
        waiting = self._waiting.setdefault(stream, [])
        if len(waiting) < MOST_WAITING:
            waiting.append(message)
        else:
            self._refuse(stream)

    def read_ended(self, streams: Iterable[Stream]) -> None:
        """A live read of these streams has ended, well or not: the pages that waited for it are judged."""
        if not self._waiting:
            return
        for stream in streams:
            for message in self._waiting.pop(stream, ()):
                if not stream.dropped:
                    self._judge(stream, message)

    def forget(self, stream: Stream) -> None:
        """A stream is dropped."""
        self._waiting.pop(stream, None)

    def _judge(self, stream: Stream, message: BusPage) -> None:
        page, head = message.page, stream.head
        if head is None or message.timeline is None or message.timeline != self.timeline:
            self._refuse(stream)
        elif page.head <= head:
            self.outcomes.add("repeated")
        elif message.after > head or page.foreign(head):
            self.outcomes.add("hole")
            self._reads.mark_dirty(stream)
        elif not self._revocations.current():
            self._refuse(stream)
        else:
            self.outcomes.add("applied")
            rest = [frame for frame in page.frames if frame.id > head]
            self._follow(stream, page if len(rest) == len(page.frames) else replace(page, frames=rest), message)

    def _refuse(self, stream: Stream) -> None:
        self.outcomes.add("refused")
        self._reads.mark_dirty(stream)
