"""Sessions that play the shards' part: they take the office, do rounds, and end in every way that a shard can."""

import time

from psycopg import errors

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import Connection
from loadtests.log_torture.session_loop import SessionLoop

STOPPED_S = 1.2
"""For so long a sequencer that is stopped holds the office and does no round."""
LEAVING_S = 0.5
"""A sequencer that leaves politely does rounds for so long at most."""


class Sequencer(SessionLoop):
    """In office for a while, then away for a while. A sequencer that stands by does a round now and then."""

    role = "sequencer"

    def serve(self, connection: Connection) -> None:
        """Take the office in turn with the others, until the end."""
        # A round must be durable whatever the session says.
        connection.execute("set synchronous_commit = %s".replace("%s", self.random.choice(("on", "off"))))
        while not self.ending.is_set():
            if not _true(connection, log_calls.TAKE_OFFICE):
                if self.random.random() < 0.2 and self.cluster.before_kill != "turns":
                    self._round(connection, "rounds standing by")
                self.rest(0.1)
                continue
            self.notes.count("offices")
            self._hold(connection)
            match self.random.choice(("polite", "polite", "abrupt", "lost")):
                case "polite":
                    self._leave(connection)
                case "abrupt":
                    connection.execute(log_calls.LEAVE_OFFICE)
                    self.notes.count("offices left with a backlog")
                case "lost":
                    self.notes.count("offices lost")
                    connection.close()
                    self.rest(self.random.choice((0.01, 0.6)))
                    return
            self.rest(self.random.choice((0.01, 0.2, 0.6, 1.5)))

    def _hold(self, connection: Connection) -> None:
        until = time.monotonic() + self.random.choice((0.05, 0.3, 1.0))
        while time.monotonic() < until and not self.ending.is_set():
            if self.cluster.before_kill == "turns":
                self.ending.wait(0.01)
                until = time.monotonic() + 1.0
                continue
            self._round(connection, "rounds")
            self.rest(self.random.choice((0.0, 0.002, 0.02, 0.1)))
            if self.random.random() < 0.1:
                connection.execute(log_calls.FORGET)
            if self.random.random() < 0.005:
                self.notes.count("sequencers stopped for a while")
                self.ending.wait(STOPPED_S)

    def _leave(self, connection: Connection) -> None:
        connection.execute(log_calls.LEAVE_OFFICE)
        until = time.monotonic() + LEAVING_S
        while not _true(connection, log_calls.NOBODY_DEFERS) and time.monotonic() < until:
            self._round(connection, "rounds when leaving")
            self.ending.wait(0.005)
        self._round(connection, "rounds when leaving")
        self.notes.count("offices left politely")

    def _round(self, connection: Connection, kind: str) -> None:
        """One round. Now and then it is held open before it commits, or rolled back as by an error of its session."""
        fate = self.random.random()
        connection.execute("begin")
        try:
            done = log_calls.do_round(connection)
        except errors.LockNotAvailable:  # an ambush has a whole table
            connection.execute("rollback")
            self.notes.count("rounds given up")
            return
        self.rest(0.05, fate < 0.1)
        if fate < 0.03:
            connection.execute("rollback")
            self.notes.count("rounds rolled back")
            return
        connection.execute("commit")
        self.notes.count(kind)
        self.notes.count("numbered by rounds", done.numbered)
        self.notes.count("streams passed over", done.skipped)


def _true(connection: Connection, question: str) -> bool:
    row = connection.execute(question.encode()).fetchone()
    return bool(row and row[0])
