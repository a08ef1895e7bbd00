"""A stream that browsers can come back to: one list of events for several scripted connections."""

import contextlib
import threading

from tests.fixtures.scripted_sse import Connection

RETRY = b"retry: 5\n\n"


class Feed:
    """A stream for several connections: sends what it has after each one's cursor, then what is published.

    The lock guards both lists and the writes: a connection misses nothing between its past and its present.
    """

    def __init__(self, *data: str) -> None:
        self.log = list(data)
        self.open: list[Connection] = []
        self._lock = threading.Lock()

    def script(self, connection: Connection) -> None:
        """Play the feed to one connection until it ends."""
        since = connection.since or "now"
        with self._lock:
            cursor = {"all": 0, "now": len(self.log)}.get(since) if not since.isdigit() else int(since)
            assert cursor is not None, since
            past = [self._frame(id_) for id_ in range(cursor + 1, len(self.log) + 1)]
            connection.open(RETRY, b"id: %d\n\n" % cursor, *past)
            self.open.append(connection)
        connection.hold()
        with self._lock:
            self.open.remove(connection)

    def publish(self, *data: str) -> None:
        """Append an event, and send it to every open connection."""
        for each in data:
            with self._lock:
                self.log.append(each)
                for connection in self.open:
                    with contextlib.suppress(OSError):
                        connection.send(self._frame(len(self.log)))

    def _frame(self, id_: int) -> bytes:
        return f"id: {id_}\ndata: {self.log[id_ - 1]}\n\n".encode()
