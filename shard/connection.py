"""Connections, streams, and where each connection is in each of its streams.

What is written when is decided in `shard/delivery.py`.

A subscription is in one of these states:

    opening   its start is not known or not confirmed: LISTEN or a read that was asked for after it came is
              outstanding
    log       it needs frames that only the log has
    verdict   an audience predicate has not answered
    behind    the ring has its next frames; it advances when its turn comes and its socket takes bytes
    live      it has everything up to the stream's head; new events are written as they are read
    dead      its connection is closed

A slow client costs a cursor and no buffer: apart from the rest of one partly written piece, nothing is kept for it.
That rest is a view of bytes that other connections share, not a copy.
"""

import enum
from collections.abc import Sequence
from itertools import chain
from typing import Final

from headrace import cursor
from headrace.cursor import Position
from headrace.event import Piece
from headrace.shard.ring import Ring
from headrace.shard.socket_calls import SocketCalls
from headrace.stream import slot
from headrace.tokens import Context

MAX_BUFFERS_A_CALL: Final = 1024
"""IOV_MAX on Linux."""
MAX_PIECES_A_CALL: Final = MAX_BUFFERS_A_CALL // 2
"""A piece has at most two buffers."""


class SubscriptionState(enum.Enum):
    """Where a subscription is on its way to the head; the module says what each state means."""

    OPENING = "opening"
    LOG = "log"
    VERDICT = "verdict"
    BEHIND = "behind"
    LIVE = "live"
    DEAD = "dead"


class Subscription:
    """One stream of one connection.

    Owned by the dispatcher greenlet. start is `now` or `all` as long as the position that this means is not known, else
    None. pending are the events above the position that the client has already, nearly always None; it changes only
    with the position, and never while the subscription is live. hidden tells that the position is ahead of the last id
    that the client was told.
    """

    __slots__ = ("_position", "connection", "hidden", "index", "pending", "start", "state", "stream")

    def __init__(self, connection: "Connection", stream: "Stream", index: int, start: cursor.Start) -> None:
        self.connection = connection
        self.stream = stream
        self.index = index
        self.start = start if isinstance(start, str) else None
        known = start if isinstance(start, Position) else Position(0)
        self._position, self.pending = known.id, known.pending
        self.state = SubscriptionState.OPENING
        self.hidden = False

    @property
    def position(self) -> int:
        """The last id examined for this client: every event up to it was written or is hidden from it.

        A live subscription is at the stream's head, so that a fan-out moves all live subscriptions by moving the head.
        """
        if self.state is SubscriptionState.LIVE and self.stream.head is not None:
            return self.stream.head
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        """Move it; MUST NOT be done while the subscription is live."""
        if self.state is SubscriptionState.LIVE:
            raise AssertionError(f"{self!r} is where the head is")
        self._position = position

    @property
    def part(self) -> Position:
        """The position with the pending events, as it stands in the cursor."""
        return Position(self.position, self.pending)

    def __repr__(self) -> str:
        return f"<Subscription {self.stream.name!r} {self.state.value} at {self.part}>"


class Stream:
    """A stream with at least one subscription here.

    Owned by the dispatcher greenlet. head is the last id read here, None until the first read has answered.

    The live subscriptions, which have everything up to head, are in sole and in shared. sole has those of connections
    that follow this stream alone, by descriptor: first those without chunks, then those with chunks, since within each
    group every connection is sent the same bytes. shared has those that are sent `id:` lines of their own: of
    connections that follow several streams, and of clients that have pending events.

    opening are subscriptions whose start needs a read that is yet to be asked for; awaiting_read are those whose read
    is outstanding. log are those that need a page of the log. leads counts the connections that have this as their
    first stream, which decides what shard they belong to.

    read_at is when the last read was asked for that has told where the stream stands (seconds of the monotonic clock).
    unused are two ids: what is above the first one and up to the second one never was an event of this stream.
    """

    __slots__ = (
        "awaiting_read",
        "dropped",
        "head",
        "leads",
        "log",
        "name",
        "opening",
        "read_at",
        "ring",
        "shared",
        "slot",
        "sole",
        "subscribers",
        "unused",
    )

    def __init__(self, name: str, ring_bytes: int) -> None:
        self.name = name
        self.slot = slot(name)
        self.head: int | None = None
        self.ring = Ring(0, ring_bytes)
        self.sole: tuple[dict[int, Subscription], dict[int, Subscription]] = ({}, {})
        self.shared: dict[Subscription, None] = {}
        self.opening: list[Subscription] = []
        self.awaiting_read: list[Subscription] = []
        self.log: set[Subscription] = set()
        self.subscribers = 0
        self.leads = 0
        self.dropped = False
        self.read_at = float("-inf")
        self.unused = (0, 0)

    def __repr__(self) -> str:
        return f"<Stream {self.name!r} head={self.head} live={len(self.live)} of {self.subscribers}>"

    @property
    def live(self) -> list[Subscription]:
        """A snapshot of the live subscriptions."""
        return [*self.sole[False].values(), *self.sole[True].values(), *self.shared]

    def renew(self, begins_after: int) -> None:
        """The stream was forgotten behind its head here: it goes on above begins_after, and nothing was lost."""
        assert self.head is not None
        self.unused = (self.unused[0] if self.unused[1] == self.head else self.head, begins_after)

    def begin_live(self, subscription: Subscription) -> None:
        """A subscription has everything up to the head, and gets every later event. Its position MUST be the head."""
        connection = subscription.connection
        if len(connection.subscriptions) == 1 and subscription.pending is None:
            self.sole[connection.chunked][connection.fd] = subscription
        else:
            self.shared[subscription] = None
        subscription.state = SubscriptionState.LIVE

    def end_live(self, subscription: Subscription, position: int) -> None:
        """A live subscription has everything up to position, and is behind from now on."""
        self.sole[subscription.connection.chunked].pop(subscription.connection.fd, None)
        self.shared.pop(subscription, None)
        subscription.state = SubscriptionState.BEHIND
        subscription.position = position


class Connection:
    """A client's socket with its subscriptions.

    Owned by the dispatcher greenlet. chunked tells that its body is sent in chunks. anchored tells that the client has
    an id to come back with. unsent is the rest of a partly written piece. blocked_at is since when the socket has taken
    no byte (seconds of the monotonic clock), None while it takes bytes; outstanding is how many bytes the kernel had
    for the client soon after that, None until the kernel is asked. queued tells that it waits for its turn to be
    written to from the rings, received is how many bytes the client has sent since its request, and verdicts are the
    answers of predicates by stream and label, None for a predicate that was asked.

    guest tells that another shard should have the connection, and had no room for it or did not answer. misrouted tells
    that its router did not know of the last assignment; it moves soon.
    """

    __slots__ = (
        "anchored",
        "blocked_at",
        "chunked",
        "context",
        "dead",
        "fd",
        "guest",
        "misrouted",
        "outstanding",
        "peer",
        "queued",
        "received",
        "request_id",
        "subscriptions",
        "unsent",
        "verdicts",
    )

    def __init__(
        self, fd: int, context: Context, request_id: str, peer: str, guest: bool = False, chunked: bool = False
    ) -> None:
        self.fd = fd
        self.chunked = chunked
        self.anchored = True
        self.context = context
        self.request_id = request_id
        self.peer = peer
        self.guest = guest
        self.misrouted = False
        self.subscriptions: tuple[Subscription, ...] = ()
        self.unsent: tuple[memoryview, ...] = ()
        self.blocked_at: float | None = None
        self.outstanding: int | None = None
        self.queued = False
        self.dead = False
        self.received = 0
        self.verdicts: dict[tuple[str, str], bool | None] | None = None

    def __repr__(self) -> str:
        state = "dead" if self.dead else "blocked" if self.blocked_at is not None else "open"
        return f"<Connection {self.request_id} fd={self.fd} {state} {self.subscriptions!r}>"

    @property
    def has_cursor(self) -> bool:
        """Whether every stream's start is known, so that the connection has a cursor."""
        return all(subscription.start is None for subscription in self.subscriptions)

    def cursor(self) -> str:
        """The cursor as the client would send it back."""
        return cursor.render([s.position if s.pending is None else s.part for s in self.subscriptions])

    def write(self, socket_calls: SocketCalls, pieces: Sequence[Piece], now: float) -> int:
        """Give the kernel as many pieces as it takes, in order; never waits.

        Returns how many count as written: the whole pieces and, if a piece was cut, that one too, whose rest is kept
        in unsent. Fewer than all means that the socket is full: blocked_at is set. Raises OSError if the peer
        is gone. MUST NOT be called while unsent holds bytes: pieces would be mixed.
        """
        if self.unsent:
            raise AssertionError(f"{self!r} has the rest of a piece to write first")
        done = 0
        while done < len(pieces):
            batch = pieces[done : done + MAX_PIECES_A_CALL]
            try:
                taken = socket_calls.writev(self.fd, list(chain.from_iterable(batch)))
            except BlockingIOError:
                taken = 0
            for piece in batch:
                size = sum(map(len, piece))
                if taken < size:
                    self.cut(piece, taken, now)
                    return done + (1 if taken else 0)
                taken -= size
                done += 1
        return done

    def cut(self, piece: Piece, taken: int, now: float) -> None:
        """The socket took only the first bytes of piece: keep the rest until the socket is writable."""
        self.unsent = _rest(piece, taken) if taken else ()
        self.blocked_at = now
        self.outstanding = None

    def resume(self, unsent: Piece, now: float) -> None:
        """The client gets unsent before anything else, such as the rest of a piece that another shard has begun."""
        self.unsent = _rest(unsent, 0)
        self.blocked_at = now

    def flush(self, socket_calls: SocketCalls, now: float) -> bool:
        """The socket is writable: write what is unsent. True if all went, so that pieces may follow. Raises OSError."""
        if self.unsent:
            try:
                taken = socket_calls.writev(self.fd, self.unsent)
            except BlockingIOError:
                taken = 0
            if taken:
                self.unsent = _rest(self.unsent, taken)
                self.blocked_at = now
                self.outstanding = None
            if self.unsent:
                return False
        self.blocked_at = None
        return True


def _rest(piece: Piece, taken: int) -> tuple[memoryview, ...]:
    """Views of a piece without its first bytes, which were taken."""
    rest = []
    for buffer in piece:
        if taken < len(buffer):
            rest.append(memoryview(buffer)[taken:])
        taken = max(0, taken - len(buffer))
    return tuple(rest)
