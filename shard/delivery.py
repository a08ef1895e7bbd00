"""Writing to clients: the live fan-out, the catching up of those behind, and closing.

Rules, each of which nothing below may break:

1. Frames of a stream reach a client in id order: a live subscription is written to only by `fan_out`, any other
   only by `_advance`, and both move its position past exactly the frames that the kernel or `unsent` has.
2. A subscription becomes live only when its position is the stream's head, in the same breath in which that is
   found out; so whatever is read next reaches it. While it is live its position is the head, and nothing else: who
   does not take everything of a fan-out stops being live, at the position from before it.
3. A socket that did not take everything is never written to before it is writable and its cut frame is finished.
4. Nothing here waits, and nothing here yields.
"""

import logging
import random
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

from headrace import event
from headrace.event import Frame
from headrace.handoff import Handoff, Moved
from shard.connection import GONE, Connection, State, Subscription, Wire
from shard.counters import Counters
from shard.messages import Page, Parcel
from shard.ports import Predicates, Presence, Sockets
from shard.registry import Registry, Stream

logger = logging.getLogger(__name__)

TURN_BYTES: Final = 256 * 1024
"""How much one client behind gets before it is the next one's turn."""


class Delivery:
    """Decides what each client gets next, and writes it.

    Owned by the dispatcher greenlet. dirty are streams that a read of the head is wanted for, wanting_log those
    with subscriptions that need a page of the log; the dispatcher asks the readers and hands back what they find.
    """

    def __init__(
        self,
        registry: Registry,
        sockets: Sockets,
        predicates: Predicates,
        presence: Presence,
        wire: Wire,
        *,
        retry_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.counters = Counters(clock)
        self.dirty: dict[Stream, None] = {}
        self.wanting_log: dict[Stream, None] = {}
        self.blocked: dict[Connection, None] = {}
        self.emptied: list[Stream] = []
        self._sockets = sockets
        self._predicates = predicates
        self._presence = presence
        self._wire = wire
        self._retry_ms = retry_ms
        self._clock = clock
        self._turns: deque[Connection] = deque()

    @property
    def busy(self) -> bool:
        """Whether somebody behind could be written to at once."""
        return bool(self._turns)

    @property
    def turns(self) -> int:
        """Connections behind that wait for their turn to be written to from the rings."""
        return len(self._turns)

    # -- a connection's life

    def open(self, fd: int, handoff: Handoff, unsent: bytes = b"") -> Connection:
        """Take a client: register it, write the response head, and ask for what its streams need first.

        For a connection that was moved the response has begun: unsent, the rest of a frame, comes first.
        """
        connection = Connection(fd, handoff.context, handoff.request_id, handoff.peer, handoff.guest)
        subscriptions = []
        for index, (name, start) in enumerate(handoff.streams):
            stream = self.registry.join(connection, name)
            subscriptions.append(Subscription(connection, stream, index, start))
        connection.subscriptions = tuple(subscriptions)
        self._presence.appear(connection)
        self._sockets.register(fd)
        if handoff.moved is None:
            self._begin(connection, handoff.headers)
        else:
            if handoff.moved.owed:
                self._owe_cursor(connection)
            if unsent:
                # Being registered just now, the socket is told of as writable if it is.
                connection.resume(unsent, self._clock())
                self.blocked[connection] = None
        for subscription in connection.subscriptions:
            head = subscription.stream.head
            if subscription.start is None and head is not None and subscription.position <= head:
                subscription.state = State.BEHIND
            else:
                self._want_read(subscription)
        for subscription in connection.subscriptions:
            self.place(subscription)
        return connection

    def detach(self, connection: Connection, guest: bool) -> Parcel:
        """Give up a connection alive, to be a guest there or not: nothing is written to it until another shard has it.

        MUST NOT be called before the connection is settled: `now` and `all` mean the moment it came.
        """
        connection.dead = True
        self.blocked.pop(connection, None)
        self.emptied += self.registry.leave(connection, self._clock())
        self._presence.disappear(connection)
        self._sockets.unregister(connection.fd)
        owed = any(subscription.hidden for subscription in connection.subscriptions)
        handoff = Handoff(
            streams=tuple((s.stream.name, s.position) for s in connection.subscriptions),
            context=connection.context,
            request_id=connection.request_id,
            peer=connection.peer,
            moved=Moved(len(connection.unsent), owed),
            guest=guest,
        )
        return Parcel(connection.fd, handoff, connection.unsent)

    def settle(self, subscription: Subscription, page: Page) -> None:
        """A read asked for after the subscription came has answered: its start is known now, or confirmed."""
        connection = subscription.connection
        if connection.dead:
            return
        if subscription.start is not None:
            subscription.position = page.head if subscription.start == "now" else page.trimmed_to
            subscription.start = None
            if connection.settled and not self._write(connection, [event.id_frame(connection.cursor())]):
                self._owe_cursor(connection)
        elif page.foreign(subscription.position):
            self._reset(subscription, page.head)
        subscription.state = State.BEHIND
        if connection.settled:
            for other in connection.subscriptions:
                self.place(other)

    def place(self, subscription: Subscription) -> None:
        """Find out where a subscription stands and what it needs next. Rule 2 is kept here."""
        connection, stream = subscription.connection, subscription.stream
        if subscription.state is not State.BEHIND or connection.dead or not connection.settled:
            return
        if connection.blocked_at is not None:
            return  # writable() comes back to it
        if stream.head is None or subscription.position > stream.head:
            self._want_read(subscription)
        elif subscription.position == stream.head:
            stream.begin_live(subscription)
        elif not connection.queued:
            connection.queued = True
            self._turns.append(connection)

    def writable(self, connection: Connection) -> None:
        """A socket that was full takes bytes again."""
        if connection.blocked_at is None or connection.dead:
            return
        try:
            if not connection.flush(self._wire, self._clock()):
                return
        except OSError:
            self.close(connection, "peer gone")
            return
        self.blocked.pop(connection, None)
        for subscription in connection.subscriptions:
            self.place(subscription)

    def verdict(self, connection: Connection, stream: str, label: str, visible: bool) -> None:
        """A predicate has answered; whoever waited for it goes on."""
        if connection.dead or connection.verdicts is None:
            return
        connection.verdicts[stream, label] = visible
        for subscription in connection.subscriptions:
            if subscription.state is State.VERDICT and subscription.stream.name == stream:
                subscription.state = State.BEHIND
                self.place(subscription)

    def beat(self, connection: Connection) -> None:
        """Write a heartbeat, or the cursor where events were hidden, to a connection that takes bytes."""
        if connection.blocked_at is not None or connection.dead:
            return
        if connection.settled and any(subscription.hidden for subscription in connection.subscriptions):
            # Owed until it is written: one that has never been told its cursor could not resume.
            if self._write(connection, [event.id_frame(connection.cursor())]):
                for subscription in connection.subscriptions:
                    subscription.hidden = False
        else:
            self._write(connection, [event.HEARTBEAT])

    def goodbye(self, connection: Connection, reason: str, cause: str = "") -> None:
        """Tell a client that the server ends the connection, as far as its socket takes it, and close it.

        cause is what is counted and logged in place of a reason that is an application's text.
        """
        if not connection.dead and connection.blocked_at is None:
            frames = [event.goodbye_frame(reason)]
            if connection.settled:
                frames.append(event.id_frame(connection.cursor()))
            self._write(connection, frames)
        self.close(connection, cause or reason)

    def close(self, connection: Connection, reason: str) -> None:
        """End a connection for real and forget it. Idempotent."""
        if connection.dead:
            return
        connection.dead = True
        self.blocked.pop(connection, None)
        self.emptied += self.registry.leave(connection, self._clock())
        self._presence.disappear(connection)
        self._sockets.close(connection.fd)
        self.counters.closed.add(reason)
        # Clients come and go; that the server ends a connection is news.
        level = logging.DEBUG if reason == "peer gone" else logging.INFO
        logger.log(level, "client closed", extra={"request_id": connection.request_id, "reason": reason})

    # -- live

    def fan_out(self, stream: Stream, frames: Sequence[Frame], gap: tuple[int, int] | None = None) -> None:
        """Write new frames, which follow the head and are in the ring by now, to every live subscription.

        gap is the range that retention took before the frames could be read. The stream's head is moved first,
        so that whoever does not take everything finds itself behind it.
        """
        if not frames and gap is None:
            return
        before, last = stream.head, frames[-1].id if frames else gap[1] if gap else 0
        assert before is not None
        stream.head = last
        self.counters.events += len(frames)
        if gap is not None or any(frame.label is not None for frame in frames):
            others = stream.live
        else:
            others = list(stream.shared)
            if stream.sole:
                self._write_sole(stream, before, frames)
        for subscription in others:
            stream.end_live(subscription, before)
        for subscription in others:
            if gap is not None:
                self._gap(subscription, gap[1])
            self._advance(subscription, frames)

    def _write_sole(self, stream: Stream, before: int, frames: Sequence[Frame]) -> None:
        """Write frames that all may see to everybody who follows this stream alone; one call a client."""
        blob = frames[0].bytes if len(frames) == 1 else b"".join([frame.bytes for frame in frames])
        size = len(blob)
        taken = self._wire.write_each(stream.sole, blob)
        done = taken.count(size)
        self.counters.writes += len(taken)
        self.counters.deliveries += done * len(frames)
        self.counters.bytes += done * size
        if done == len(taken):
            return
        short = [(subscription, n) for subscription, n in zip(stream.sole.values(), taken, strict=True) if n != size]
        for subscription, _ in short:
            stream.end_live(subscription, before)
        for subscription, n in short:
            if n == GONE:
                self.close(subscription.connection, "peer gone")
            else:
                self._cut(subscription, frames, n)

    def reset(self, stream: Stream, head: int) -> None:
        """The log is not the one that the head here came from: every live client is told and goes on at head."""
        subscriptions = stream.live
        for subscription in subscriptions:
            stream.end_live(subscription, subscription.position)
        stream.head = head
        stream.ring.reset(head)
        for subscription in subscriptions:
            self._reset(subscription, head)
            self.place(subscription)

    def mend(self, stream: Stream) -> None:
        """After an unforeseen error: nobody stays behind for ever."""
        for connection in self.registry:
            for subscription in connection.subscriptions:
                if subscription.stream is not stream:
                    continue
                self.place(subscription)

    # -- behind

    def work(self, budget_s: float) -> None:
        """Let clients behind advance in turn, from the rings, for about so long."""
        deadline = self._clock() + budget_s
        while self._turns:
            connection = self._turns.popleft()
            connection.queued = False
            try:
                self._turn(connection)
            except Exception:
                logger.exception("could not write to %r", connection)
                self.close(connection, "internal error")
            if self._clock() >= deadline:
                return

    def feed(self, stream: Stream, after: int, page: Page) -> None:
        """A page of the log has come: it serves everyone who needs frames from within it."""
        last = page.frames[-1].id if page.frames else page.head
        for subscription in [s for s in stream.log if s.position >= after]:
            if page.foreign(subscription.position):
                self._leave_log(subscription)
                self._reset(subscription, page.head)
                self.place(subscription)
            elif subscription.position < last:
                self._leave_log(subscription)
                if subscription.position < page.trimmed_to:
                    self._gap(subscription, page.trimmed_to)
                index = bisect_left(page.frames, subscription.position + 1, key=lambda frame: frame.id)
                self._advance(subscription, page.frames[index:])
            elif subscription.position == after:
                # The page had nothing for it: it has read the log's end.
                self._leave_log(subscription)
                self.place(subscription)
        if stream.log:
            self.wanting_log[stream] = None

    # -- inside

    def _begin(self, connection: Connection, headers: Iterable[tuple[str, str]]) -> None:
        # Half the interval more or less, so that clients which a restart has cut do not come back at once.
        retry = event.retry_frame(round(self._retry_ms * random.uniform(0.5, 1.5)))
        frames = [_response_head(headers), retry]
        if connection.settled:
            frames.append(event.id_frame(connection.cursor()))
        if self._write(connection, frames) < len(frames):
            self._owe_cursor(connection)

    def _owe_cursor(self, connection: Connection) -> None:
        """The client could not be told its cursor: the next beat does it."""
        for subscription in connection.subscriptions:
            subscription.hidden = True

    def _turn(self, connection: Connection) -> None:
        for subscription in connection.subscriptions:
            if subscription.state is not State.BEHIND or connection.blocked_at is not None or connection.dead:
                continue
            stream = subscription.stream
            frames = stream.ring.after(subscription.position, TURN_BYTES)
            if frames is None:
                subscription.state = State.LOG
                stream.log.add(subscription)
                self.wanting_log[stream] = None
            else:
                self._advance(subscription, frames)

    def _want_read(self, subscription: Subscription) -> None:
        subscription.state = State.OPENING
        subscription.stream.opening.append(subscription)
        self.dirty[subscription.stream] = None

    def _leave_log(self, subscription: Subscription) -> None:
        subscription.stream.log.discard(subscription)
        subscription.state = State.BEHIND

    def _cut(self, subscription: Subscription, frames: Sequence[Frame], taken: int) -> None:
        """The socket took only so many bytes of the joined frames: keep the rest of the one that was cut."""
        ends = list(accumulate(len(frame.bytes) for frame in frames))
        index = bisect_left(ends, taken + 1)
        begun = taken - (ends[index - 1] if index else 0)
        connection = subscription.connection
        connection.cut(frames[index].bytes, begun, self._clock())
        self.blocked[connection] = None
        self.counters.stalls += 1
        done = index + (1 if begun else 0)
        if done:
            subscription.position = frames[done - 1].id
        self.counters.deliveries += done
        self.counters.bytes += taken

    def _advance(self, subscription: Subscription, frames: Sequence[Frame]) -> None:
        """Write what the subscription may see of frames that follow its position, and place it anew."""
        connection = subscription.connection
        if connection.blocked_at is not None or connection.dead:
            return
        alone = len(connection.subscriptions) == 1
        out: list[bytes] = []
        ids: list[int] = []
        examined = before = subscription.position
        waiting = False
        if alone and all(frame.label is None for frame in frames):
            out, ids = [frame.bytes for frame in frames], [frame.id for frame in frames]
            examined, frames = (ids[-1] if ids else before), ()
        for frame in frames:
            visible = frame.label is None or self._visible(subscription, frame.label)
            if visible is None:
                waiting = True
                break
            examined = frame.id
            if visible:
                subscription.position = frame.id
                out.append(frame.bytes if alone else frame.with_id(f"{connection.cursor()}/{subscription.index}"))
                ids.append(frame.id)
        subscription.position = before
        done = self._write(connection, out)
        if connection.dead:
            return
        self.counters.deliveries += done
        if done == len(out):
            subscription.position = examined
            subscription.hidden = examined > (ids[-1] if ids else before) or (subscription.hidden and not ids)
        elif done:
            subscription.position = ids[done - 1]
        if waiting and done == len(out):
            subscription.state = State.VERDICT
        else:
            self.place(subscription)

    def _visible(self, subscription: Subscription, label: str) -> bool | None:
        connection = subscription.connection
        if label in connection.context.audiences:
            return True
        if connection.verdicts is None:
            connection.verdicts = {}
        key = subscription.stream.name, label
        if key not in connection.verdicts:
            connection.verdicts[key] = self._predicates.ask(connection, *key)
        return connection.verdicts[key]

    def _gap(self, subscription: Subscription, missed_to: int) -> None:
        self.counters.gaps += 1
        name, missed_from = subscription.stream.name, subscription.position + 1
        self._tell(subscription, event.gap_frame(name, missed_from, missed_to), missed_to)

    def _reset(self, subscription: Subscription, head: int) -> None:
        self.counters.resets += 1
        self._tell(subscription, event.reset_frame(subscription.stream.name, head), head)

    def _tell(self, subscription: Subscription, sentinel: bytes, position: int) -> None:
        """Write a sentinel and the cursor that follows from it as one piece, so that neither is lost alone."""
        connection = subscription.connection
        if connection.blocked_at is not None or connection.dead:
            return  # it stays where it is and is told when it advances again
        before, subscription.position = subscription.position, position
        piece = sentinel + (event.id_frame(connection.cursor()) if connection.settled else b"")
        if not self._write(connection, [piece]):
            subscription.position = before

    def _write(self, connection: Connection, frames: list[bytes]) -> int:
        """Write whole frames as far as they go; how many count as written. Closes a connection that is gone."""
        if not frames or connection.dead or connection.blocked_at is not None:
            return 0
        try:
            done = connection.write(self._wire, frames, self._clock())
        except OSError:
            self.close(connection, "peer gone")
            return 0
        self.counters.writes += 1
        self.counters.bytes += sum(map(len, frames[:done]))
        if connection.blocked_at is not None:
            self.blocked[connection] = None
            self.counters.stalls += 1
            # Rule 3: none of its subscriptions may be written to as if it were live.
            for subscription in connection.subscriptions:
                if subscription.state is State.LIVE:
                    subscription.stream.end_live(subscription, subscription.position)
        return done


def _response_head(headers: Iterable[tuple[str, str]]) -> bytes:
    # Without a length or chunking the body ends with the connection: there is no encoder state to carry.
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Cache-Control: no-cache, no-transform",
        "X-Accel-Buffering: no",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError(f"a response header with a line break: {lines!r}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
