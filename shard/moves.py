"""The connections that belong to other shards, and how they leave: decided between two messages of the dispatcher.

    Assign ─► connections that belong elsewhere ─► leaving ─► detach, a bounded number at a time ─► transfer
                                                       ▲                                               │
                                                       └── open again ◄── given back ◄── MoveEnded ◄───┘

A connection leaves only when it has a cursor for all its streams, and with no read outstanding that it would need: its
cursors are all that the other shard has to know. Whatever goes wrong, the connection is either here, or the other
shard's, or shut down; see `shard/transfer.py`.

A router may send a client here because it does not know yet that the client's slot has another owner. This connection
is misrouted. It is not sent on at once, or two shards of which one has not read the directory yet would pass it to and
fro. It leaves with the next assignment, which the process gives again after its next read of the directory, though
nothing has changed. A guest, which came here because another shard refused it, is not misrouted, and stays until the
assignment of its stream changes.

A shard of an older release does not know pending events, and refuses a connection that has some. Nearly always nothing
is pending a moment later, so the connection is treated as a misrouted one: it stays, and leaves with the next
assignment.

A shard of an older release may not know how the connection's body is sent, in chunks, and refuses it for that. Another
try would end in the same way. So the connection stays, since any shard serves it as well as another. But where this
shard is to be empty, as when an older release takes its place, the client is told goodbye and comes back with its last
id, to be served in a form that the older shard knows. It loses its connection and nothing else, and the pace of the
moves spreads such clients over time.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final

from headrace.node.handoff import REFUSED_GONE, Handoff, Moved
from headrace.node.placement import bucket
from headrace.shard.arrivals import Arrivals
from headrace.shard.connection import Connection
from headrace.shard.messages import Assign, MoveEnded, Parcel
from headrace.shard.ports import ParcelQueue, WatchedSockets
from headrace.shard.registry import Registry
from headrace.shard.writer import Writer

MAX_UNDER_WAY: Final = 64
"""Connections on their way to other shards at a time: each of them is sent nothing meanwhile."""


class Moves:
    """Sends connections to the shards they belong to, and takes back those that were refused there.

    Owned by the dispatcher greenlet. adopt is called with a connection that was given back. carried_out_epoch names the
    last assignment that is carried out; moved counts connections that have left. misrouted tells that a misrouted
    connection has come since the last assignment.
    """

    def __init__(
        self,
        registry: Registry,
        sockets: WatchedSockets,
        writer: Writer,
        arrivals: Arrivals,
        transfer: ParcelQueue,
        adopt: Callable[[Connection], None],
    ) -> None:
        self.moved = 0
        self.misrouted = False
        self.carried_out_epoch = ""
        self.last_error = ""
        self._registry = registry
        self._sockets = sockets
        self._writer = writer
        self._arrivals = arrivals
        self._transfer = transfer
        self._adopt = adopt
        self._assigned = Assign("", {})
        self._leaving: deque[Connection] = deque()
        self._under_way: Counter[str] = Counter()

    @property
    def pending(self) -> int:
        """How many connections are to leave or on their way."""
        return len(self._leaving) + self._under_way.total()

    @property
    def targets(self) -> Mapping[str, int]:
        """How many connections are yet to reach each hand-off socket."""
        return +self._under_way + Counter(filter(None, map(self._elsewhere, self._leaving)))

    def assign(self, message: Assign) -> None:
        """Begin to carry out an assignment; an earlier one is forgotten.

        The same assignment again is for misrouted connections, and for all connections where none is to stay.
        """
        before, self._assigned = self._assigned, message
        if message != before or message.everybody:
            self._leaving = deque(c for c in self._registry if self._called_away(c, before))
        elif self.misrouted:
            self._leaving.extend(c for c in self._registry if c.misrouted)
        for connection in self._leaving:
            connection.misrouted = False
        self.misrouted = False
        self._note_carried_out()

    def arrived(self, connection: Connection) -> None:
        """A connection has come: note whether it is misrouted."""
        if not connection.guest and self._elsewhere(connection):
            connection.misrouted = self.misrouted = True

    def step(self) -> None:
        """Send connections off, a bounded number at a time, so that delivery goes on between them."""
        for _ in range(min(len(self._leaving), MAX_UNDER_WAY)):
            if self._under_way.total() >= MAX_UNDER_WAY:
                break
            connection = self._leaving.popleft()
            path = self._elsewhere(connection)
            if connection.dead or not path:
                continue
            if not connection.has_cursor:
                self._leaving.append(connection)
                continue
            self._under_way[path] += 1
            # Where all connections leave, a guest goes to a successor or to any shard with room, and stays a guest.
            guest = connection.guest and self._assigned.everybody
            self._transfer.submit(self._detach(connection, guest), path)
        self._note_carried_out()

    def ended(self, message: MoveEnded) -> None:
        """A move has ended: the connection was taken, was lost, or comes back."""
        self._under_way[message.path] -= 1
        if message.given_back is None:
            self.moved += not message.reason
        else:
            parcel = message.given_back
            if message.reason != REFUSED_GONE:
                self.last_error = f"a connection could not be moved: {message.reason}"
            connection = self._arrivals.open(parcel.fd, parcel.handoff, parcel.unsent)
            self._adopt(connection)
            if message.misunderstood and self._assigned.everybody:
                self._writer.goodbye(connection, "drain")
            elif self._elsewhere(connection) != message.path or (message.misunderstood and parcel.handoff.has_pending):
                # A new assignment came while the connection was on its way, and did not see it; or the other shard does
                # not know pending events.
                self.arrived(connection)
        self._note_carried_out()

    def _detach(self, connection: Connection, guest: bool) -> Parcel:
        """Give up a connection alive: nothing is written to it until another shard has it. guest: it is one there.

        MUST NOT be called before the connection has a cursor: `now` and `all` mean the moment at which the client came.
        """
        self._writer.release(connection)
        self._sockets.unregister(connection.fd)
        owed = any(subscription.hidden for subscription in connection.subscriptions)
        handoff = Handoff(
            streams=tuple((s.stream.name, s.part) for s in connection.subscriptions),
            context=connection.context,
            request_id=connection.request_id,
            peer=connection.peer,
            moved=Moved(sum(map(len, connection.unsent)), owed),
            guest=guest,
            chunked=connection.chunked,
        )
        unsent, connection.unsent = connection.unsent, ()
        return Parcel(connection.fd, handoff, unsent)

    def _called_away(self, connection: Connection, before: Assign) -> bool:
        if not self._elsewhere(connection):
            return False
        if not connection.guest or self._assigned.everybody:
            return True
        # A guest is here because its own shard was full, and that shard may be full still. It leaves only where an
        # operator has the slot assigned anew, or where its stream has become hot or is no longer hot.
        lead = connection.subscriptions[0].stream.name
        if (lead in self._assigned.hot) != (lead in before.hot):
            return True
        return _place(connection, self._assigned) != _place(connection, before)

    def _elsewhere(self, connection: Connection) -> str:
        return _place(connection, self._assigned)

    def _note_carried_out(self) -> None:
        if not self.pending:
            self.carried_out_epoch = self._assigned.epoch


def _place(connection: Connection, assigned: Assign) -> str:
    """The hand-off socket of the shard that a connection belongs to by this assignment; "" is this shard."""
    lead = connection.subscriptions[0].stream
    if lead.name in assigned.hot:
        return assigned.spread[bucket(connection.peer)]
    return assigned.paths.get(lead.slot, "")
