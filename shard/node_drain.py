"""A dismissal: who of a shard's clients is asked to go elsewhere, and when, while a whole node is drained."""

import random
from collections.abc import Iterable, Sequence

from headrace.shard.connection import Connection


class NodeDrain:
    """Lets clients go one by one, in random order, evenly over over_s seconds.

    Owned by the dispatcher greenlet. At the end everybody has been let go who was there at the beginning; together with
    the jitter of their own return, the other nodes get them as evenly.
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
        """One more is to go: it was on its way to another shard, and has come back."""
        self._left.insert(random.randint(0, len(self._left)), connection)
        self._count += 1

    def due(self, now: float) -> Sequence[Connection]:
        """Those whose time has come since the last call."""
        passed = min(1.0, (now - self._began) / self._over_s) if self._over_s else 1.0
        stay = self._count - round(self._count * passed)
        going, self._left = self._left[stay:], self._left[:stay]
        return [connection for connection in going if not connection.dead]
