"""How many connections each user and each address has here, and which of these counts the directory was not told."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.node.limit_keys import address_limit_key, user_limit_key
from headrace.shard.connection import Connection

MOST_ARRIVED: Final = 20_000


class ConnectionCounts:
    """Counts connections by user and by address; see `headrace.node.limit_keys`.

    Owned by the dispatcher greenlet; `ReportedCounts` takes the changes, and nothing here yields. A connection without
    a user counts for no user, and addresses are counted only by_address: each costs some hundred bytes.
    """

    def __init__(self, *, by_address: bool = False) -> None:
        self._by_address = by_address
        self._counts: dict[str, int] = {}
        self._changed: set[str] = set()
        # The oldest arrivals are dropped beyond that. They say which clients the directory must no longer count as
        # admitted by a router, and it counts each of those for a short time only.
        self._arrived: deque[tuple[str, str]] = deque(maxlen=MOST_ARRIVED)

    def __repr__(self) -> str:
        return f"<ConnectionCounts of {len(self._counts)}, {len(self._changed)} changed>"

    def count(self, holder: str) -> int:
        """How many connections it has here."""
        return self._counts.get(holder, 0)

    def add(self, connection: Connection) -> None:
        """A connection is here."""
        for holder in self._holders(connection):
            self._counts[holder] = self._counts.get(holder, 0) + 1
            self._changed.add(holder)
            self._arrived.append((holder, connection.request_id))

    def remove(self, connection: Connection) -> None:
        """A connection is gone, or another shard's."""
        for holder in self._holders(connection):
            self._changed.add(holder)
            self._counts[holder] -= 1
            if not self._counts[holder]:
                del self._counts[holder]

    def take_changes(self, most: int) -> tuple[Mapping[str, int], Sequence[tuple[str, str]]]:
        """At most so many counts that have changed, and at most so many arrivals with their request ids; once each."""
        changed = [self._changed.pop() for _ in range(min(most, len(self._changed)))]
        arrived = [self._arrived.popleft() for _ in range(min(most, len(self._arrived)))]
        return {holder: self.count(holder) for holder in changed}, arrived

    def forget(self) -> None:
        """The directory knows nothing any more: everything is to be told anew."""
        self._changed = set(self._counts)

    def _holders(self, connection: Connection) -> list[str]:
        user = connection.context.user
        holders = [] if user is None else [user_limit_key(user)]
        if self._by_address:
            holders.append(address_limit_key(connection.peer))
        return holders
