"""The slow clients as the directory is told of them: how many, and the worst by name."""

import heapq
from collections.abc import Collection
from typing import Final

from headrace.shard.connection import Connection

MOST: Final = 3
MAX_USER_CHARS: Final = 24
"""With these, what a text of a directory's entry may have holds them all."""


def slowest(blocked: Collection[Connection], now: float) -> str:
    """A line for each of the clients that have been longest without taking a byte: address, seconds, user.

    blocked are those whose socket is full; now is by the monotonic clock.
    """
    waiting = ((now - connection.blocked_at, connection) for connection in blocked if connection.blocked_at is not None)
    worst = heapq.nlargest(MOST, waiting, key=lambda one: one[0])
    return "\n".join(f"{connection.peer} {max(0.0, seconds):.0f} {_user(connection)}" for seconds, connection in worst)


def _user(connection: Connection) -> str:
    user = connection.context.user or ""
    return (user if user.isprintable() else ascii(user))[:MAX_USER_CHARS]
