"""Writing to sockets: whole pieces, the rest of a piece that a full socket has begun to take, and a connection's end.

What is written, and where a subscription is afterwards, is decided in `shard/delivery.py`, whose rules 3 and 4 are
kept here.

The opening piece is the only one that is kept although the socket took none of it, because no later piece would stand
for the response head. It is `unsent` from the first moment, so rule 3 keeps everything else behind it, and a connection
that moves takes it along. Any other piece that was not begun is not kept, and what it would have told is told later: an
event or a sentinel because the position has not moved, a cursor because it is owed (`Subscription.hidden`).

What stalled clients keep in memory is the pieces that they have begun to take; frames are shared between clients. Where
these pieces add up to more than UNSENT_TOTAL_BYTES, clients are closed, between two messages: a client cannot lose the
rest of a piece and go on afterwards. Those that have taken no byte for longest are closed first, since a client that
has just taken bytes is not to blame.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Final

from headrace.event import Piece
from headrace.node.client_lines import ClientLines
from headrace.shard import wire_format
from headrace.shard.connection import Connection, Stream, SubscriptionState
from headrace.shard.full_sockets import FullSockets
from headrace.shard.numbers.counters import Counters
from headrace.shard.ports import PresenceRecord, WatchedSockets
from headrace.shard.registry import Registry
from headrace.shard.socket_calls import SocketCalls

logger = logging.getLogger(__name__)

UNSENT_LIMIT: Final = "unsent limit"
"""The reason for which a connection is closed that keeps too much memory."""


class Writer:
    """Writes to connections and ends them.

    Owned by the dispatcher greenlet. full_sockets are the connections whose socket is full. emptied are the streams
    that have lost their last subscription; the dispatcher takes them from here, to account for their rings.
    """

    def __init__(
        self,
        registry: Registry,
        sockets: WatchedSockets,
        presence: PresenceRecord,
        socket_calls: SocketCalls,
        *,
        retry_ms: int,
        unsent_total_bytes: int,
        log_clients_per_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters(clock)
        self.full_sockets = FullSockets(unsent_total_bytes)
        self.emptied: list[Stream] = []
        self.socket_calls = socket_calls
        self._registry = registry
        self._sockets = sockets
        self._presence = presence
        self._retry_ms = retry_ms
        self._clock = clock
        self._lines = ClientLines(logger, "client closed", log_clients_per_s)

    # -- pieces

    def begin(self, connection: Connection, headers: Iterable[tuple[str, str]]) -> None:
        """Write the response head and the cursor to begin at, if that is known; all of it, now or later."""
        # Half the interval more or less, so that clients which a restart has cut do not come back at once.
        retry_ms = round(self._retry_ms * random.uniform(0.5, 1.5))
        start = connection.cursor() if connection.has_cursor else None
        opening = wire_format.opening(headers, retry_ms, start, connection.anchored, connection.chunked)
        connection.resume(opening, self._clock())
        self.counters.writes += 1
        self.counters.bytes += sum(map(len, opening))
        if not self.flush(connection) and not connection.dead:
            self._stall(connection)

    def resume(self, connection: Connection, unsent: Piece) -> None:
        """A connection has moved here in the middle of a piece: the rest goes out when the socket is writable."""
        connection.resume(unsent, self._clock())
        self.full_sockets.add(connection)

    def write(self, connection: Connection, out: list[Piece]) -> int:
        """Write as many whole pieces as the socket takes; how many count as written. Closes it if the peer is gone."""
        if not out or connection.dead or connection.blocked_at is not None:
            return 0
        try:
            done = connection.write(self.socket_calls, out, self._clock())
        except OSError:
            self.close(connection, "peer gone")
            return 0
        self.counters.writes += 1
        self.counters.bytes += sum(len(buffer) for piece in out[:done] for buffer in piece)
        if connection.blocked_at is not None:
            self._stall(connection)
            # Rule 3: none of its subscriptions may be written to as if it were live.
            for subscription in connection.subscriptions:
                if subscription.state is SubscriptionState.LIVE:
                    subscription.stream.end_live(subscription, subscription.position)
        return done

    def cut(self, connection: Connection, piece: Piece, taken: int) -> None:
        """The socket took only the first bytes of a piece, or none."""
        connection.cut(piece, taken, self._clock())
        self._stall(connection)

    def flush(self, connection: Connection) -> bool:
        """Write the rest of a piece that was begun; whether more may follow. Closes a connection that is gone."""
        try:
            if not connection.flush(self.socket_calls, self._clock()):
                return False
        except OSError:
            self.close(connection, "peer gone")
            return False
        self.full_sockets.remove(connection)
        return True

    def _stall(self, connection: Connection) -> None:
        self.full_sockets.add(connection)
        self.counters.stalls += 1

    def relieve(self) -> None:
        """Keep the memory that stalled clients hold within its limit."""
        closing = self.full_sockets.surplus()
        if closing:
            logger.warning("stalled clients hold more than UNSENT_TOTAL_BYTES in memory: closing %d", len(closing))
        for connection in closing:
            self.close(connection, UNSENT_LIMIT)

    # -- where the client is

    def tell_cursor(self, connection: Connection) -> None:
        """Tell a client its cursor, now or at the next beat. MUST NOT be called before the connection has one."""
        start = wire_format.cursor(connection.cursor(), connection.anchored, connection.chunked)
        if self.write(connection, [start]):
            connection.anchored = True
            for subscription in connection.subscriptions:
                subscription.hidden = False
        else:
            self.owe_cursor(connection)

    def owe_cursor(self, connection: Connection) -> None:
        """The client could not be told its cursor: the next beat does it."""
        for subscription in connection.subscriptions:
            subscription.hidden = True

    def beat(self, connection: Connection) -> None:
        """Write a heartbeat, or the cursor where it is owed, to a connection that takes bytes."""
        if connection.blocked_at is not None or connection.dead:
            return
        if connection.has_cursor and any(subscription.hidden for subscription in connection.subscriptions):
            # Owed until it is written: a client that has never been told its cursor could not resume.
            self.tell_cursor(connection)
        else:
            self.write(connection, [wire_format.heartbeat(connection.chunked)])

    # -- the end

    def goodbye(self, connection: Connection, reason: str, cause: str = "") -> None:
        """Tell a client that the server ends the connection, as far as its socket takes it, and close it.

        cause is what is counted and logged in place of a reason that is an application's text.
        """
        if not connection.dead and connection.blocked_at is None:
            cursor = connection.cursor() if connection.has_cursor else None
            self.write(connection, [wire_format.goodbye(reason, cursor, connection.chunked)])
        self.close(connection, cause or reason)

    def close(self, connection: Connection, reason: str) -> None:
        """End a connection for real and forget it. Idempotent."""
        if connection.dead:
            return
        self.release(connection)
        # A closed connection may stay in a list of the timers until its next beat; its bytes must not.
        connection.unsent = ()
        self._sockets.close(connection.fd)
        self.counters.closed.add(reason)
        # Clients come and go: only an end that the server decides is worth a line at INFO.
        level = logging.DEBUG if reason == "peer gone" else logging.INFO
        self._lines.log(level, request_id=connection.request_id, reason=reason)

    def release(self, connection: Connection) -> None:
        """Forget a connection, whose socket is left as it is."""
        connection.dead = True
        self.full_sockets.remove(connection)
        self.emptied += self._registry.leave(connection, self._clock())
        self._presence.disappear(connection)
