"""All streams and connections of a shard, which connection follows which streams, and the slots that these need."""

from collections.abc import Iterator

from headrace.shard.connection import Connection, Stream, SubscriptionState
from headrace.shard.connection_counts import ConnectionCounts


class Registry:
    """All streams and connections of the shard.

    Owned by the dispatcher greenlet. A stream without a subscription is dropped at once; a slot without a stream is
    remembered with the time, so that UNLISTEN can come later. crowds are the streams that are the first stream of at
    least crowd connections: candidates for hot streams. left are the names of streams that were dropped since somebody
    emptied it, for the note that they were in use; it stays empty unless keeps_left.
    """

    def __init__(
        self,
        ring_bytes: int,
        crowd: int = 1,
        connection_counts: ConnectionCounts | None = None,
        keeps_left: bool = False,
    ) -> None:
        self.crowds: set[Stream] = set()
        self.left: set[str] = set()
        self._keeps_left = keeps_left
        self.connection_counts = connection_counts or ConnectionCounts()
        self._crowd = crowd
        self._ring_bytes = ring_bytes
        self._streams: dict[str, Stream] = {}
        self._connections: dict[int, Connection] = {}
        self._slots: dict[int, set[Stream]] = {}
        self._idle_slots: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        """A snapshot of the connections: closing one while iterating is safe."""
        return iter(list(self._connections.values()))

    @property
    def streams(self) -> list[Stream]:
        """A snapshot of the streams."""
        return list(self._streams.values())

    def stream(self, name: str) -> Stream | None:
        """The stream of exactly that name, None if no connection here follows it."""
        return self._streams.get(name)

    def in_slot(self, slot_number: int) -> list[Stream]:
        """A snapshot of the streams of a slot."""
        return list(self._slots.get(slot_number, ()))

    def connection(self, fd: int) -> Connection | None:
        """The connection on a descriptor, None if there is none (any more)."""
        return self._connections.get(fd)

    def join(self, connection: Connection, name: str) -> Stream:
        """The stream of that name for one more subscription of connection; made if it is new here.

        The first stream that a connection joins is the one that the connection is counted for (`Stream.leads`).
        """
        leads = self._connections.get(connection.fd) is not connection
        self._connections[connection.fd] = connection
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(name, self._ring_bytes)
            self._slots.setdefault(stream.slot, set()).add(stream)
            self._idle_slots.pop(stream.slot, None)
        stream.subscribers += 1
        if leads:
            self.connection_counts.add(connection)
            stream.leads += 1
            if stream.leads == self._crowd:
                self.crowds.add(stream)
        return stream

    def leave(self, connection: Connection, now: float) -> list[Stream]:
        """Remove a connection and its subscriptions; returns the streams that were dropped for it. Idempotent."""
        if self._connections.get(connection.fd) is not connection:
            return []
        del self._connections[connection.fd]
        self.connection_counts.remove(connection)
        for lead in connection.subscriptions[:1]:
            lead.stream.leads -= 1
            if lead.stream.leads == self._crowd - 1:
                self.crowds.discard(lead.stream)
        emptied = []
        for subscription in connection.subscriptions:
            stream = subscription.stream
            if subscription.state is SubscriptionState.LIVE:
                stream.end_live(subscription, subscription.position)
            stream.log.discard(subscription)
            subscription.state = SubscriptionState.DEAD
            stream.subscribers -= 1
            if not stream.subscribers:
                stream.dropped = True
                if self._keeps_left:
                    self.left.add(stream.name)
                del self._streams[stream.name]
                self._slots[stream.slot].discard(stream)
                emptied.append(stream)
                if not self._slots[stream.slot]:
                    del self._slots[stream.slot]
                    self._idle_slots[stream.slot] = now
        return emptied

    def take_idle_slots(self, before: float) -> list[int]:
        """Slots without a subscriber since that time; each is returned once."""
        idle = [number for number, since in self._idle_slots.items() if since <= before]
        for number in idle:
            del self._idle_slots[number]
        return idle
