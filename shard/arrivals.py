"""The arrival of a client: its connection is registered, gets its response head, and each of its streams a start.

A start that the client gives as an id is its position at once. `now` and `all` become a position with the first page of
a live read that was asked for after the client came. The same page confirms an id that the shard's head of the stream
does not reach.
"""

from headrace.event import Piece
from headrace.node.handoff import Handoff
from headrace.shard.connection import Connection, Subscription, SubscriptionState
from headrace.shard.delivery import Delivery
from headrace.shard.messages import Page
from headrace.shard.ports import PresenceRecord, WatchedSockets
from headrace.shard.reads import Reads
from headrace.shard.registry import Registry
from headrace.shard.writer import Writer


class Arrivals:
    """Opens connections and gives their subscriptions a position to begin at.

    Owned by the dispatcher greenlet.
    """

    def __init__(
        self,
        registry: Registry,
        sockets: WatchedSockets,
        presence: PresenceRecord,
        writer: Writer,
        reads: Reads,
        delivery: Delivery,
    ) -> None:
        self._registry = registry
        self._sockets = sockets
        self._presence = presence
        self._writer = writer
        self._reads = reads
        self._delivery = delivery

    def open(self, fd: int, handoff: Handoff, unsent: Piece = ()) -> Connection:
        """Take a client: register it, write the response head, and ask for what its streams need first.

        For a connection that was moved the response has begun: unsent, the rest of a piece, comes first.
        """
        connection = Connection(fd, handoff.context, handoff.request_id, handoff.peer, handoff.guest, handoff.chunked)
        subscriptions = []
        for index, (name, start) in enumerate(handoff.streams):
            stream = self._registry.join(connection, name)
            subscriptions.append(Subscription(connection, stream, index, start))
        connection.subscriptions = tuple(subscriptions)
        self._presence.appear(connection)
        self._sockets.register(fd)
        if handoff.moved is None:
            connection.anchored = all(start != "now" for _, start in handoff.streams)
            self._writer.begin(connection, handoff.headers)
        else:
            if handoff.moved.owed:
                # Perhaps the client has never been told any.
                connection.anchored = False
                self._writer.owe_cursor(connection)
            if unsent:
                # The socket was registered just now, so the poller tells if it is writable.
                self._writer.resume(connection, unsent)
        for subscription in connection.subscriptions:
            head = subscription.stream.head
            if subscription.start is None and head is not None and subscription.position <= head:
                subscription.state = SubscriptionState.BEHIND
            else:
                self._reads.want_start(subscription)
        for subscription in connection.subscriptions:
            self._delivery.place(subscription)
        return connection

    def begin(self, subscription: Subscription, page: Page) -> None:
        """A read that was asked for after the subscription came has answered: its start is known, or confirmed."""
        connection = subscription.connection
        if connection.dead:
            return
        if subscription.start is not None:
            subscription.position = page.head if subscription.start == "now" else page.trimmed_to
            subscription.start = None
            if connection.has_cursor:
                self._writer.tell_cursor(connection)
        elif page.foreign(subscription.position):
            self._delivery.tell_reset(subscription, page.head)
        subscription.state = SubscriptionState.BEHIND
        if connection.has_cursor:
            for other in connection.subscriptions:
                self._delivery.place(other)
