"""A listener: it knows the heads of all streams by notifications, as a shard does, and reads them when it connects."""

from collections.abc import Mapping

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import Connection
from loadtests.log_torture.session_loop import SessionLoop
from loadtests.log_torture.streams import all_streams

POLL_S = 0.1


class Listener(SessionLoop):
    """Listens to the slots of all streams. heads is what it knows, by stream."""

    role = "listener"
    heads: Mapping[str, int] = {}

    def serve(self, connection: Connection) -> None:
        """Listen until the end. Notifications that came while no session was there are made up for by one read."""
        names = all_streams()
        found = connection.execute("select distinct headrace.slot(n) from unnest(%s::text[]) n", [names]).fetchall()
        for (slot,) in found:
            connection.execute(f"listen headrace_slot_{slot}".encode())
        heads = {name: read.head for name, read in log_calls.read(connection, dict.fromkeys(names, 0)).items()}
        self.heads = heads
        while not self.ending.is_set():
            for notification in connection.notifies(timeout=POLL_S):
                head, name = notification.payload.split(" ", 1)
                heads[name] = max(heads[name], int(head))
                self.notes.count("notifications")
