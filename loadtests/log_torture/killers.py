"""Ends of sessions: at random, and at the points where a round or a numbering at commit can be made to wait."""

import time

from psycopg import errors

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import AMBUSHES, Connection
from loadtests.log_torture.session_loop import SessionLoop

LOCK_TIMEOUT = "200ms"
"""How long an ambush waits for its lock, while publishers wait behind it."""
AMBUSH_S = 0.4
"""How long an ambush lies in wait for its victim."""


class RandomKiller(SessionLoop):
    """Ends sessions of sequencers often, of publishers seldom, and cancels statements now and then."""

    role = "killer"

    def serve(self, connection: Connection) -> None:
        """Kill until the end."""
        while not self.ending.is_set():
            self.rest(0.6)
            role = self.random.choice(("sequencer",) * 6 + ("publisher",) * 3 + ("listener", "follower"))
            if (pid := _victim(self, role)) is None:
                continue
            if role == "publisher" and self.random.random() < 0.5:
                connection.execute("select pg_cancel_backend(%s)", [pid])
                self.notes.count("statements cancelled")
            else:
                connection.execute("select pg_terminate_backend(%s)", [pid])
                self.notes.count(f"{role}s killed")


class Ambusher(SessionLoop):
    """Locks a table, waits until a victim waits for that lock amid its work, and ends the victim's session."""

    role = "ambusher"

    def serve(self, connection: Connection) -> None:
        """Lie in wait, at one point after the other, until the end. Removes what is old in between."""
        connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
        while not self.ending.is_set():
            table, mode = self.random.choice(AMBUSHES)
            role = self.random.choice(("sequencer", "sequencer", "publisher"))
            try:
                connection.execute("begin")
                connection.execute(f"lock table {table} in {mode} mode".encode())
                if self._catch(connection, role):
                    self.notes.count(f"{role}s killed at {table.removeprefix('headrace.')}, {mode}")
            except errors.LockNotAvailable:
                self.notes.count("ambushes given up")
            except errors.DeadlockDetected:
                self.notes.count("ambushes deadlocked")
            connection.execute("rollback")
            connection.execute(self.random.choice((log_calls.PRUNE, log_calls.FORGET)))
            self.rest(0.8)

    def _catch(self, connection: Connection, role: str) -> bool:
        until = time.monotonic() + AMBUSH_S
        while time.monotonic() < until and not self.ending.is_set():
            for name, pid in list(self.notes.sessions.items()):
                blocked = connection.execute("select pg_backend_pid() = any (pg_blocking_pids(%s))", [pid]).fetchone()
                if name.startswith(role) and blocked and blocked[0]:
                    connection.execute("select pg_terminate_backend(%s)", [pid])
                    return True
            self.ending.wait(0.005)
        return False


def _victim(loop: SessionLoop, role: str) -> int | None:
    pids = [pid for name, pid in list(loop.notes.sessions.items()) if name.startswith(role)]
    return loop.random.choice(pids) if pids else None
