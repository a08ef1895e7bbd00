"""The timers: all that a shard does because time has passed.

    each tick   connections whose socket has taken nothing for WRITE_DEADLINE_S are closed
                tokens that have expired end their connections
                while the node is drained, some clients are asked to go elsewhere
                a share of the connections has its beat: a heartbeat or the cursor is written, and a peer that has
                vanished is found
    each sweep  slots that have had no subscriber for long are no longer listened to

When ticks and sweeps come is decided in `shard/clock.py`.
"""

import heapq
import time
from collections.abc import Callable

from headrace.settings import Settings
from headrace.shard.connection import Connection
from headrace.shard.messages import DrainNode, Tick
from headrace.shard.node_drain import NodeDrain
from headrace.shard.ports import PolledSockets, SlotListening
from headrace.shard.registry import Registry
from headrace.shard.writer import Writer


class Timers:
    """Watches the time for every connection.

    Owned by the dispatcher greenlet. clock is the monotonic clock and wall_clock the wall clock, both in seconds;
    tokens expire by the wall clock, everything else goes by the monotonic one.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        writer: Writer,
        poller: PolledSockets,
        listener: SlotListening,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._poller = poller
        self._listener = listener
        self._clock = clock
        self._wall_clock = wall_clock
        self._write_deadline_s = settings.write_deadline_s
        self._unlisten_after_s = settings.unlisten_after_s
        self._ticks_a_beat = max(1, round(settings.heartbeat_interval_s / settings.tick_interval_s))
        self._beat_interval_s = self._ticks_a_beat * settings.tick_interval_s
        self._node_drain: NodeDrain | None = None
        self._expiries: list[tuple[int, int, Connection]] = []
        self._beats: dict[int, list[Connection]] = {}
        self._ticks = 0
        self._serial = 0

    def watch(self, connection: Connection) -> None:
        """A connection has come: it has beats from now on, until it is dead."""
        if self._node_drain is not None:
            self._node_drain.join(connection)
        self._serial += 1
        self._watch_expiry(connection)
        # Spread over the interval by arrival, so that no tick walks over all connections.
        self._beats.setdefault(self._serial % self._ticks_a_beat, []).append(connection)

    def drain_node(self, message: DrainNode) -> None:
        """The whole node is to be empty, or no longer."""
        over_s = message.over_s
        self._node_drain = None if over_s is None else NodeDrain(self._registry, over_s, self._clock())

    def tick(self, _: Tick) -> None:
        """Do what is due at a tick."""
        now = self._clock()
        self._end_stalled(now)
        for connection in self._node_drain.due(now) if self._node_drain else ():
            self._writer.goodbye(connection, "drain")
        now_ms = self._wall_clock() * 1000
        while self._expiries and self._expiries[0][0] <= now_ms:
            self._writer.goodbye(heapq.heappop(self._expiries)[2], "expired")
        self._beat()

    def sweep(self) -> None:
        """Stop listening to slots that have had no subscriber for long."""
        self._listener.stop_listening(self._registry.take_idle_slots(self._clock() - self._unlisten_after_s))

    def _end_stalled(self, now: float) -> None:
        for connection in self._writer.full_sockets:
            if connection.blocked_at is None:
                continue
            if connection.outstanding is None:
                connection.outstanding = self._poller.outstanding(connection.fd)
            elif now - connection.blocked_at > self._write_deadline_s:
                # The kernel calls a socket writable when a third of its buffer is free: a slow client takes long
                # to get there. It is given up only if it has taken nothing at all.
                left = self._poller.outstanding(connection.fd)
                if left < connection.outstanding:
                    connection.outstanding, connection.blocked_at = left, now
                else:
                    self._writer.close(connection, "write deadline")

    def _beat(self) -> None:
        """Each connection has its beat at one tick of an interval."""
        self._ticks = (self._ticks + 1) % self._ticks_a_beat
        due = [connection for connection in self._beats.get(self._ticks, ()) if not connection.dead]
        self._beats[self._ticks] = due
        for connection in due:
            # A living peer acknowledges each heartbeat; one that has vanished leaves them outstanding.
            if self._poller.silent_s(connection.fd) > self._write_deadline_s + self._beat_interval_s:
                self._writer.close(connection, "peer gone")
                continue
            self._watch_expiry(connection)
            self._writer.beat(connection)

    def _watch_expiry(self, connection: Connection) -> None:
        """Note the expiry if it comes before the next beat, so that the heap keeps no client that left long ago."""
        expires_ms = connection.context.expires_ms
        if expires_ms is None:
            return
        if expires_ms <= (self._wall_clock() + 2 * self._beat_interval_s) * 1000:
            self._serial += 1
            heapq.heappush(self._expiries, (expires_ms, self._serial, connection))
