"""Followers: they read the log from the beginning while it is written, as shards do, and forget nothing."""

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import Connection
from loadtests.log_torture.session_loop import SessionLoop
from loadtests.log_torture.streams import STREAMS, all_streams


class Follower(SessionLoop):
    """Reads all streams, in pages of any size, each event once.

    What it has read is in `seen`: tokens by stream and id.
    """

    role = "follower"
    seen: dict[str, dict[int, int]]
    _after: dict[str, int]

    def serve(self, connection: Connection) -> None:
        """Read until the end. Where a session was lost, it goes on behind the last event."""
        if not hasattr(self, "seen"):
            names = all_streams()
            self.seen = {name: {} for name in names}
            self._after = dict.fromkeys(names, 0)
        heads: dict[str, int] = {}
        while not self.ending.is_set():
            self.read(connection, heads)
            self.rest(0.02)

    def read(self, connection: Connection, heads: dict[str, int]) -> int:
        """One read of all streams, with a check of what comes; heads are those of reads over this session.

        Returns how many events have come.
        """
        choose, came = self.random.choice, 0
        names = list(self._after) if self.random.random() < 0.5 else [choose(STREAMS)]
        found = log_calls.read(
            connection,
            {name: self._after[name] for name in names},
            max_events=choose((1, 3, 100, 1000)),
            max_bytes=choose((1, 2000, 1 << 20)),
            total_bytes=choose((3000, 4 << 20)),
        )
        for name, read in found.items():
            if read.head < heads.get(name, 0):
                self._wrong(f"the head of {name} goes back from {heads[name]} to {read.head}")
            heads[name] = read.head
            if (
                not read.events
                and not read.unread
                and read.head > max(self._after[name], *(to for _, to in read.jumps), 0)
            ):
                self._wrong(f"{name} has head {read.head} and nothing after {self._after[name]}")
            for event in read.events:
                before = self._after[name]
                jumped = any(first <= before + 1 and last + 1 == event.id for first, last in read.jumps)
                if event.id != before + 1 and not jumped:
                    self._wrong(f"{name} goes on with {event.id} after {before}, jumps {read.jumps}")
                if event.id > read.head:
                    self._wrong(f"{name} has event {event.id} above its head {read.head}")
                self.seen[name][event.id] = event.token
                self._after[name] = event.id
                came += 1
        return came

    def _wrong(self, detail: str) -> None:
        self.notes.violation("read", f"{self.name}: {detail}")
