"""The connections whose socket is full, and how much memory is held by the pieces that they have begun to take."""

from collections.abc import Iterator

from headrace.shard.connection import Connection


class FullSockets:
    """The connections that wait for their socket to be writable.

    Owned by the dispatcher greenlet. pinned is how many bytes at most cannot be freed because of them: a frame that
    many connections have begun counts once, and whole. It is bounded by limit: beyond that `surplus` names the
    connections to close.
    """

    def __init__(self, limit: int) -> None:
        self.pinned = 0
        self._limit = limit
        self._held: dict[Connection, tuple[object, ...]] = {}
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, connection: object) -> bool:
        return connection in self._held

    def __iter__(self) -> Iterator[Connection]:
        """A snapshot: connections may be closed meanwhile."""
        return iter(list(self._held))

    def add(self, connection: Connection) -> None:
        """The socket of a connection is full. Its begun piece stays in memory until the connection is removed."""
        self.remove(connection)
        # The buffers are held until then, so that the identity of one is not given to another.
        self._held[connection] = held = tuple(view.obj for view in connection.unsent)
        for shared in held:
            holders = self._holders.get(id(shared), 0)
            self._holders[id(shared)] = holders + 1
            self.pinned += 0 if holders else _size(shared)

    def remove(self, connection: Connection) -> None:
        """The connection takes bytes again, or is gone. Idempotent."""
        for shared in self._held.pop(connection, ()):
            self._holders[id(shared)] -= 1
            if not self._holders[id(shared)]:
                del self._holders[id(shared)]
                self.pinned -= _size(shared)

    def surplus(self) -> list[Connection]:
        """The connections to close because of the limit; empty below it.

        Of the connections that hold memory, those that have taken no byte for longest come first: as many as it takes
        to get to three quarters of the limit, so that it is seldom reached. They are removed here.
        """
        if self.pinned <= self._limit:
            return []
        longest = sorted((c for c, held in self._held.items() if held), key=lambda c: c.blocked_at or 0.0)
        closing = []
        for connection in longest:
            if self.pinned <= self._limit * 3 // 4:
                break
            self.remove(connection)
            closing.append(connection)
        return closing


def _size(shared: object) -> int:
    return len(memoryview(shared)) if isinstance(shared, bytes | memoryview) else 0
