"""The drain of a whole node: which clients of this shard are asked to come back elsewhere, and when."""

import random
from collections.abc import Iterable, Sequence

from headrace.shard.connection import Connection


class NodeDrain:
    """Names the connections that are due to go, one by one, in random order, evenly over over_s seconds.

    Owned by the dispatcher greenlet. After over_s seconds every connection that was there at the beginning has been
    named. Clients come back after a delay of random length, so that they reach the other nodes evenly, too.
    """

    def __init__(self, connections: Iterable[Connection], over_s: float, now: float) -> None:
        self._left = list(connections)
        random.shuffle(self._left)
        self._count = len(self._left)
        self._over_s = over_s
        self._began = now

    def __repr__(self) -> str:
        return f"<NodeDrain {len(self._left)} of {self._count} left>"

    def join(self, connection: Connection) -> None:
        """One more connection is to go: it was on its way to another shard, and has come back."""
        self._left.insert(random.randint(0, len(self._left)), connection)
        self._count += 1

    def due(self, now: float) -> Sequence[Connection]:
        """The connections that have become due since the last call. now is in seconds of the monotonic clock."""
        passed = min(1.0, (now - self._began) / self._over_s) if self._over_s else 1.0
        stay = self._count - round(self._count * passed)
        going, self._left = self._left[stay:], self._left[:stay]
        return [connection for connection in going if not connection.dead]
