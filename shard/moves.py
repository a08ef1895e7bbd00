"""The connections that belong to other shards, and how they leave: decided between two messages of the dispatcher.

    Assign ─► who is called away ─► leaving ─► detach, a bounded number at a time ─► transfer
                                        ▲                                              │
                                        └── open again ◄── given back ◄── MoveEnded ◄──┘

A connection leaves only when it is settled, and with no read outstanding that it would need: what it is owed is its
cursors. Whatever goes wrong it is either here, or the other shard's, or shut down; see `shard/transfer.py`.

Who sent a client here may not have known yet where it belongs now. It is not sent on at once, or two shards of which
one has not read the directory yet would pass it to and fro: it is a stranger, and leaves with the next assignment,
which the process gives again after its next read of the directory, though nothing has changed. Who was refused
elsewhere is none, and stays until something has.

A shard of an older release may not know how the connection's body is sent, in chunks, and refuses it for that. No
later try ends otherwise. So the connection stays, since any shard serves it as well as another; but where this shard is
to be empty, as when an older release takes its place, the client is told goodbye and comes back with its last id, to be
served in a form that the older shard knows. It loses its connection and nothing else, and the pace of the moves spreads
them.
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
"""Connections on their way to other shards at a time: each is silent meanwhile."""


class Moves:
    """Sends off who belongs elsewhere, and takes back who was refused there.

    Owned by the dispatcher greenlet. adopt is called with a connection that was given back. carried_out_epoch names the
    last assignment that is carried out; moved counts connections that have left. strangers tells that somebody has
    come since the last assignment who belongs elsewhere by it.
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
        """Connections that are to leave or on their way."""
        return len(self._leaving) + self._under_way.total()

    @property
    def targets(self) -> Mapping[str, int]:
        """How many connections are yet to reach each hand-off socket."""
        return +self._under_way + Counter(filter(None, map(self._elsewhere, self._leaving)))

    def assign(self, message: Assign) -> None:
        """Begin to carry out where connections belong; an earlier assignment is forgotten.

        The same assignment again is for the strangers, and for everybody where nobody is to stay.
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
        """Note whether a client that has come belongs here."""
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
            # Who goes with everybody goes to a successor, or wherever there is room, and is a guest there as here.
            guest = connection.guest and self._assigned.everybody
            self._transfer.submit(self._detach(connection, guest), path)
        self._note_carried_out()

    def ended(self, message: MoveEnded) -> None:
        """A connection was taken, was lost, or comes back."""
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
            elif self._elsewhere(connection) != message.path:
                # Assigned anew while it was on its way, and so overlooked.
                self.arrived(connection)
        self._note_carried_out()

    def _detach(self, connection: Connection, guest: bool) -> Parcel:
        """Give up a connection alive, to be a guest there or not: nothing is written to it until another shard has it.

        MUST NOT be called before the connection is settled: `now` and `all` mean the moment it came.
        """
        self._writer.release(connection)
        self._sockets.unregister(connection.fd)
        owed = any(subscription.hidden for subscription in connection.subscriptions)
        handoff = Handoff(
            streams=tuple((s.stream.name, s.position) for s in connection.subscriptions),
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
        # Sent here because its own shard was full, which may not have changed; but an operator's word counts, and so
        # does it when its stream has become hot or has ceased to be.
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
