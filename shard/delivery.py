"""Writing to clients: the live fan-out, and the catching up of clients that are behind.

Rules, none of which anything below may break:

1. Frames of a stream reach a client in id order: a live subscription is written to only by `fan_out`, any other
   only by `_advance`, and both move its position past exactly the frames that the kernel or `unsent` has.
2. A subscription becomes live only when its position is the stream's head, in the same step in which that is found
   out; so the next page that is read reaches it. While it is live its position is the head, and nothing else: a
   subscription that does not take everything of a fan-out stops being live, at its position from before the fan-out.
3. A socket that did not take everything is never written to before it is writable and its cut piece is finished.
4. Nothing here waits, and nothing here yields.

Pending events. A client may begin at a cursor that names events which its page shows, and which had no id when the page
was made (`headrace/cursor.py`). Its subscription keeps their sequence numbers in `pending`, and `_advance` leaves each
of these events out when it comes with its id:

- An event that is left out is passed as a hidden one is: the position moves past it, and the cursor is owed
  (`hidden`). No predicate is asked about it.
- pending changes in the same step as the position, and belongs to it. Where a socket takes only some of the pieces, the
  subscription stands behind the last piece taken, with what was pending there; an event that was left out behind that
  piece is left out again in the next try. The same holds where a verdict is outstanding.
- So every cursor, in an `id:` line, in a sentinel, in a goodbye, or in a hand-off, is the position and what is pending
  there, and a client that comes back with it goes on as if it had never been away.
- A subscription with pending events is never in `Stream.sole`, whose connections are all sent the same bytes. It is
  live in `Stream.shared` until nothing is pending.
- A gap that is told and a reset drop what is pending: the client loads its page anew. Events that retention has removed
  and that the client would not have been shown leave it as it is: perhaps a pending event is kept.
- Where ids jump, the log goes on in another incarnation, which may give the sequence numbers of lost events to others.
  So what is pending is dropped there, among removed events as well. At worst an event arrives that the page shows
  already; none is lost.

Bytes are written, and connections ended, in `shard/writer.py`; whether a client may see an event is decided in
`shard/visibility.py`.
"""

import logging
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from headrace import event
from headrace.cursor import Pending
from headrace.event import Frame, Piece
from headrace.shard import wire_format
from headrace.shard.connection import Connection, Stream, Subscription, SubscriptionState
from headrace.shard.messages import Page
from headrace.shard.ports import PredicateQuestions
from headrace.shard.reads import Reads
from headrace.shard.registry import Registry
from headrace.shard.socket_calls import GONE
from headrace.shard.visibility import Visibility
from headrace.shard.writer import Writer

logger = logging.getLogger(__name__)

TURN_BYTES: Final = 256 * 1024
"""How much a client that is behind is written before the next such client has its turn."""


class Delivery:
    """Decides what each client gets next, and writes it.

    Owned by the dispatcher greenlet, which brings it the pages of the log that `reads` has asked for.
    """

    def __init__(
        self,
        registry: Registry,
        predicates: PredicateQuestions,
        writer: Writer,
        reads: Reads,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.writer = writer
        self.counters = writer.counters
        self._reads = reads
        self._visibility = Visibility(predicates)
        self._clock = clock
        self._turns: deque[Connection] = deque()

    @property
    def busy(self) -> bool:
        """Whether a client that is behind could be written to at once."""
        return bool(self._turns)

    @property
    def turns(self) -> int:
        """Connections that are behind and wait for their turn to be written to from the rings."""
        return len(self._turns)

    def place(self, subscription: Subscription) -> None:
        """Find out where a subscription stands and what it needs next. Rule 2 is kept here."""
        connection, stream = subscription.connection, subscription.stream
        if subscription.state is not SubscriptionState.BEHIND or connection.dead or not connection.has_cursor:
            return
        if connection.blocked_at is not None:
            return  # `writable` places it when the socket takes bytes again.
        if stream.head is None or subscription.position > stream.head:
            self._reads.want_start(subscription)
        elif subscription.position == stream.head:
            stream.begin_live(subscription)
        elif not connection.queued:
            connection.queued = True
            self._turns.append(connection)

    def writable(self, connection: Connection) -> None:
        """A socket that was full takes bytes again."""
        if connection.blocked_at is None or connection.dead:
            return
        if not self.writer.flush(connection):
            return
        for subscription in connection.subscriptions:
            self.place(subscription)

    def verdict(self, connection: Connection, stream: str, label: str, visible: bool) -> None:
        """A predicate has answered: the subscriptions of the connection that waited for it go on."""
        if connection.dead or connection.verdicts is None:
            return
        connection.verdicts[stream, label] = visible
        for subscription in connection.subscriptions:
            if subscription.state is SubscriptionState.VERDICT and subscription.stream.name == stream:
                subscription.state = SubscriptionState.BEHIND
                self.place(subscription)

    # -- live

    def fan_out(self, stream: Stream, page: Page) -> None:
        """Write a page, which follows the head and is in the ring by now, to every live subscription.

        Retention may have removed events before they could be read. The stream's head is moved first, so that a
        subscription that does not take everything is found to be behind it.
        """
        before, frames = stream.head, page.frames
        assert before is not None
        gap = page.trimmed_to > before
        if not frames and not gap:
            return
        last = frames[-1].id if frames else page.trimmed_to
        stream.head = last
        self.counters.events += len(frames)
        if gap or any(frame.label is not None for frame in frames):
            others = stream.live
        else:
            others = list(stream.shared)
            for chunked, sole in enumerate(stream.sole):
                if sole:
                    self._write_sole(stream, sole, bool(chunked), before, frames)
        for subscription in others:
            stream.end_live(subscription, before)
        for subscription in others:
            if not gap or self._pass_removed(subscription, page):
                self._advance(subscription, frames)

    def _write_sole(
        self, stream: Stream, sole: dict[int, Subscription], chunked: bool, before: int, frames: Sequence[Frame]
    ) -> None:
        """Write frames that every client may see to the connections that follow this stream alone; a call for each."""
        encoded = [frame.encoded(chunked) for frame in frames]
        blob = encoded[0] if len(frames) == 1 else b"".join(encoded)
        size = len(blob)
        taken = self.writer.socket_calls.write_each(sole, blob)
        done = taken.count(size)
        self.counters.writes += len(taken)
        self.counters.deliveries += done * len(frames)
        self.counters.bytes += done * size
        if done == len(taken):
            return
        short = [(subscription, n) for subscription, n in zip(sole.values(), taken, strict=True) if n != size]
        for subscription, _ in short:
            stream.end_live(subscription, before)
        for subscription, n in short:
            if n == GONE:
                self.writer.close(subscription.connection, "peer gone")
            else:
                self._cut(subscription, frames, n)

    def reset(self, stream: Stream, head: int) -> None:
        """The head here is not of this log: every live client is told so, and goes on at head."""
        subscriptions = stream.live
        for subscription in subscriptions:
            stream.end_live(subscription, subscription.position)
        stream.head = head
        stream.unused = (0, 0)
        stream.ring.reset(head)
        for subscription in subscriptions:
            self.tell_reset(subscription, head)
            self.place(subscription)

    def tell_reset(self, subscription: Subscription, head: int) -> None:
        """The position of a client is not of this log: tell it so, and go on at head."""
        self.counters.resets += 1
        self._tell(subscription, event.reset_frame(subscription.stream.name, head), head)

    def mend(self, stream: Stream) -> None:
        """After an unforeseen error: place every subscription of a stream anew, so that none stays behind for ever."""
        for connection in self.registry:
            for subscription in connection.subscriptions:
                if subscription.stream is not stream:
                    continue
                self.place(subscription)

    # -- behind

    def work(self, budget_s: float) -> None:
        """Let clients that are behind advance in turn, from the rings, for about budget_s seconds."""
        self.writer.relieve()
        deadline = self._clock() + budget_s
        while self._turns:
            connection = self._turns.popleft()
            connection.queued = False
            try:
                self._turn(connection)
            except Exception:
                logger.exception("could not write to %r", connection)
                self.writer.close(connection, "internal error")
            if self._clock() >= deadline:
                return

    def feed(self, stream: Stream, after: int, page: Page) -> None:
        """A page of the log has come: write it to every subscription that needs frames from within it."""
        last = page.frames[-1].id if page.frames else page.head
        for subscription in [s for s in stream.log if s.position >= after]:
            if page.foreign(subscription.position):
                self._leave_log(subscription)
                self.tell_reset(subscription, page.head)
                self.place(subscription)
            elif subscription.position < last:
                self._leave_log(subscription)
                if subscription.position < page.trimmed_to and not self._pass_removed(subscription, page):
                    continue
                index = bisect_left(page.frames, subscription.position + 1, key=lambda frame: frame.id)
                self._advance(subscription, page.frames[index:])
            elif subscription.position == after:
                # The page had no frame after its position: it has reached the end of the log.
                self._leave_log(subscription)
                self.place(subscription)
        self._reads.want_log_again(stream)

    # -- inside

    def _turn(self, connection: Connection) -> None:
        for subscription in connection.subscriptions:
            if connection.blocked_at is not None or connection.dead:
                return
            if subscription.state is not SubscriptionState.BEHIND:
                continue
            stream = subscription.stream
            frames = stream.ring.after(subscription.position, TURN_BYTES)
            if frames is None:
                self._reads.want_log(subscription)
            else:
                self._advance(subscription, frames)

    def _leave_log(self, subscription: Subscription) -> None:
        subscription.stream.log.discard(subscription)
        subscription.state = SubscriptionState.BEHIND

    def _cut(self, subscription: Subscription, frames: Sequence[Frame], taken: int) -> None:
        """The socket took only so many bytes of the joined frames: keep the rest of the frame that was cut."""
        connection = subscription.connection
        encoded = [frame.encoded(connection.chunked) for frame in frames]
        ends = list(accumulate(map(len, encoded)))
        index = bisect_left(ends, taken + 1)
        begun = taken - (ends[index - 1] if index else 0)
        self.writer.cut(connection, (encoded[index],), begun)
        done = index + (1 if begun else 0)
        if done:
            subscription.position = frames[done - 1].id
        self.counters.deliveries += done
        self.counters.bytes += taken

    def _advance(self, subscription: Subscription, frames: Sequence[Frame]) -> None:
        """Write the frames that the subscription may see, of those that follow its position, and place it anew.

        Frames that are pending are left out.
        """
        connection = subscription.connection
        if connection.blocked_at is not None or connection.dead:
            return
        alone = len(connection.subscriptions) == 1
        out: list[Piece] = []
        ids: list[int] = []
        rests: dict[int, Pending] = {}
        examined = before = subscription.position
        pending = held = subscription.pending
        waiting = False
        if alone and pending is None and all(frame.label is None for frame in frames):
            out = [(frame.encoded(connection.chunked),) for frame in frames]
            ids = [frame.id for frame in frames]
            examined, frames = (ids[-1] if ids else before), ()
        for frame in frames:
            # Within one incarnation each id follows the one before it.
            rest = pending if pending is None or frame.id == examined + 1 else None
            if rest is not None and frame.seq is not None and frame.seq in rest:
                examined, pending = frame.id, rest.without(frame.seq)
                continue
            visible = frame.label is None or self._visibility.visible(subscription, frame.label)
            if visible is None:
                waiting = True
                break
            examined, pending = frame.id, rest
            if visible:
                subscription.position, subscription.pending = frame.id, pending
                if pending is not None:
                    rests[frame.id] = pending
                if not alone:
                    out.append(frame.with_id(f"{connection.cursor()}/{subscription.index}", connection.chunked))
                elif pending is not None:
                    out.append(frame.with_id(connection.cursor(), connection.chunked))
                else:
                    out.append((frame.encoded(connection.chunked),))
                ids.append(frame.id)
        subscription.position, subscription.pending = before, held
        done = self.writer.write(connection, out)
        if connection.dead:
            return
        self.counters.deliveries += done
        if done == len(out):
            subscription.position, subscription.pending = examined, pending
            subscription.hidden = examined > (ids[-1] if ids else before) or (subscription.hidden and not ids)
        elif done:
            subscription.position, subscription.pending = ids[done - 1], rests.get(ids[done - 1])
        if waiting and done == len(out):
            subscription.state = SubscriptionState.VERDICT
        else:
            self.place(subscription)

    def _pass_removed(self, subscription: Subscription, page: Page) -> bool:
        """Bring a subscription past what retention has removed; false if a predicate must answer first.

        A client is told of a gap only if it has missed something. While a predicate is asked the client waits, and the
        page is read again. What is pending stays so where the stream was forgotten: a page may show an event of which
        the id comes after that.
        """
        head, begins_after = subscription.stream.unused
        if head <= subscription.position < begins_after:
            subscription.position, subscription.hidden = begins_after, True
            if page.trimmed_to <= begins_after:
                return True
        missed = self._visibility.missed(subscription, page)
        if missed is None:
            subscription.state = SubscriptionState.VERDICT
            return False
        if missed:
            self._gap(subscription, page.trimmed_to)
        else:
            if page.jumped(subscription.position):
                subscription.pending = None
            subscription.position, subscription.hidden = page.trimmed_to, True
        return True

    def _gap(self, subscription: Subscription, missed_to: int) -> None:
        self.counters.gaps += 1
        name, missed_from = subscription.stream.name, subscription.position + 1
        self._tell(subscription, event.gap_frame(name, missed_from, missed_to), missed_to)

    def _tell(self, subscription: Subscription, sentinel: bytes, position: int) -> None:
        """Write a sentinel and the cursor that follows from it as one piece, so that neither is lost alone.

        Nothing is pending behind it.
        """
        connection = subscription.connection
        if connection.blocked_at is not None or connection.dead:
            return  # Its position stays, and it is told when it advances again.
        before, held = subscription.position, subscription.pending
        subscription.position, subscription.pending = position, None
        cursor = connection.cursor() if connection.has_cursor else None
        # Without a cursor beside it, the position that follows from the sentinel is told when the connection has one.
        connection.anchored = connection.anchored and cursor is not None
        if not self.writer.write(connection, [wire_format.told(sentinel, cursor, connection.chunked)]):
            subscription.position, subscription.pending = before, held
