"""A thread with a session: it connects, works, and connects again when the session was lost, until its end."""

import random
import threading
import time
from abc import ABC, abstractmethod
from typing import ClassVar

import psycopg

from loadtests.log_torture.cluster import Cluster
from loadtests.log_torture.log_calls import Connection
from loadtests.log_torture.notes import Notes

RECONNECT_S = 0.03


class SessionLoop(ABC):
    """One of the log's clients, with one session at a time. Owned by its own thread.

    `serve` works over one session until `ending` or an error. role names the kind of client in counts and log lines.
    """

    role: ClassVar[str]

    def __init__(self, cluster: Cluster, notes: Notes, seed: int, number: int) -> None:
        self.cluster = cluster
        self.notes = notes
        self.number = number
        self.random = random.Random(f"{seed} {self.role} {number}")
        self.ending = threading.Event()
        self.name = f"{self.role} {number}"
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    @property
    def url(self) -> str:
        """The database to connect to."""
        return self.cluster.url

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end, without waiting."""
        self.ending.set()

    def ended(self, deadline_s: float) -> bool:
        """Wait for the end, so long at most; whether it has come."""
        self._thread.join(max(0.0, deadline_s))
        return not self._thread.is_alive()

    @abstractmethod
    def serve(self, connection: Connection) -> None:
        """Work over this session, in autocommit, until `ending` is set. Raises psycopg.Error when it is lost."""

    def conclude(self, connection: Connection) -> None:  # noqa: B027  # most have nothing to do
        """What is to be done at the end, over this session, again and again until it succeeds. Raises psycopg.Error."""

    def rest(self, most_s: float, share: float = 1.0) -> None:
        """Pause for up to so many seconds, in this share of all calls."""
        if self.random.random() < share:
            self.ending.wait(self.random.random() * most_s)

    def _run(self) -> None:
        concluded = False
        while not concluded:
            connected = False
            try:
                with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
                    connected = True
                    self.notes.sessions[self.name] = connection.info.backend_pid
                    if not self.ending.is_set():
                        self.serve(connection)
                    if self.ending.is_set() and not connection.closed:
                        self.conclude(connection)
                        concluded = True
            except psycopg.Error as error:
                if not _means_the_end(error):
                    self.notes.violation("error", f"{self.name}: {error!r}")
                elif connected:
                    self.notes.count(f"{self.role}s that lost their session")
                time.sleep(RECONNECT_S)
            except Exception as error:
                self.notes.violation("error", f"{self.name}: {error!r}")
                return
            finally:
                self.notes.sessions.pop(self.name, None)


def _means_the_end(error: psycopg.Error) -> bool:
    """Whether a session or its server has ended, by a kill of ours."""
    # An error without a state comes from the client's library: the connection is gone, or was refused.
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
    )
