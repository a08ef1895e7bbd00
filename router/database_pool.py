"""A few sessions with PostgreSQL, for what a router publishes; nothing else in a router asks PostgreSQL anything.

psycopg_pool is not used, for two reasons that tests/integration/test_database_pool.py shows. It connects in the
background: while PostgreSQL refuses connections, a request waits for its whole deadline and is not told why, where this
file answers at once, with the reason. A gevent.Timeout, which is no Exception, leaves the place of a waiting request
in the pool's queue: the next free connection is given to that place, and the pool has lost it.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import gevent
import psycopg
from gevent.lock import BoundedSemaphore

from headrace.errors import DatabaseUnavailableError
from headrace.node.kept_session import died
from headrace.node.postgres_errors import meaning, said
from headrace.node.session import connect

logger = logging.getLogger(__name__)

SIZE: Final = 4


class DatabasePool:
    """At most SIZE sessions, opened when they are needed and kept.

    Shared by request greenlets: a session in use belongs to its greenlet alone, an idle one to nobody. deadline_s
    bounds a transaction together with the wait for a session.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._places = BoundedSemaphore(SIZE)
        self._idle: list[psycopg.Connection[Any]] = []

    def fetch(self, statement: str, parameters: Sequence[object]) -> tuple[Any, ...]:
        """Run one statement in a READ COMMITTED transaction of its own and return its first row, committed. Yields.

        The commit travels in the same message as the statement. So the server waits for nobody while it holds the
        statement's locks, even if this process stops or the network loses what follows.

        Raises psycopg.Error if PostgreSQL refuses the statement: then nothing was committed. Raises
        DatabaseUnavailableError if PostgreSQL is away or does not answer in time: then the transaction may have been
        committed or not.
        """
        deadline = time.monotonic() + self._deadline_s
        with (
            gevent.Timeout(self._deadline_s, DatabaseUnavailableError("PostgreSQL did not answer in time")),
            self._places,
        ):
            if deadline - time.monotonic() < self._deadline_s / 4:
                # Too little time is left to begin.
                raise DatabaseUnavailableError("too much is being published at once")
            connection = self._begin()
            kept = False
            try:
                try:
                    # The server gives up before we do, so that no statement is committed after we called it too slow.
                    limit_ms = max(1, int((deadline - time.monotonic()) * 800))
                    message = f"set local statement_timeout = {limit_ms}; {statement}; commit"
                    # Several statements are one message only where the client puts in the parameters.
                    cursor = psycopg.ClientCursor(connection).execute(message.encode(), parameters)
                    cursor.nextset()
                    row = cursor.fetchone()
                    kept = True
                except psycopg.OperationalError:
                    raise
                except psycopg.Error as error:
                    connection.execute("rollback")
                    kept = not died(error)
                    raise
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                logger.warning("PostgreSQL did not take a transaction: %s", said(error))
                raise DatabaseUnavailableError(meaning(error).sentence) from error
            finally:
                # A session whose statement a deadline has cut short is in an unknown state.
                if kept:
                    self._idle.append(connection)
                else:
                    connection.close()
            assert row is not None
            return tuple(row)

    def close(self) -> None:
        """Close the idle sessions."""
        while self._idle:
            self._idle.pop().close()

    def _begin(self) -> psycopg.Connection[Any]:
        """A session in a transaction. Of kept sessions, those that turn out to be dead are passed over. Yields."""
        # The server ends the transaction also when it hears no more of this process.
        begin = (
            "begin isolation level read committed; "
            f"set local idle_in_transaction_session_timeout = {int(self._deadline_s * 800)}"
        )
        while self._idle:
            connection = self._idle.pop()
            try:
                connection.execute(begin)
                return connection
            except psycopg.Error:
                connection.close()
            except BaseException:
                connection.close()
                raise
        try:
            connection = connect(self._url, "headrace router", timeout_s=self._deadline_s)
            connection.execute(begin)
            return connection
        except psycopg.Error as error:
            logger.warning("PostgreSQL did not take a transaction: %s", said(error))
            raise DatabaseUnavailableError(meaning(error).sentence) from error
