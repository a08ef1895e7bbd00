"""A few connections to PostgreSQL, for what a router publishes; nothing else in a router asks PostgreSQL anything."""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import gevent
import psycopg
from gevent.lock import BoundedSemaphore

from headrace.errors import DatabaseUnavailableError

logger = logging.getLogger(__name__)

SIZE: Final = 4
T = TypeVar("T")


class Database:
    """At most SIZE connections, made when they are needed and kept.

    Shared by request greenlets: a connection in use belongs to its greenlet alone, an idle one to nobody. deadline_s
    bounds a transaction with the wait for a connection.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._places = BoundedSemaphore(SIZE)
        self._idle: list[psycopg.Connection[Any]] = []

    def transaction(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Run work in a READ COMMITTED transaction of its own and return what it returns, committed. Yields.

        Raises DatabaseUnavailableError if that does not come about in time, when it may have been committed or not, and
        psycopg.Error where PostgreSQL refuses, when it was not.
        """
        with gevent.Timeout(self._deadline_s, DatabaseUnavailableError()), self._places:
            connection = self._begin()
            kept = False
            try:
                try:
                    result = work(connection)
                    connection.execute("commit")
                    kept = True
                except psycopg.OperationalError:
                    raise
                except psycopg.Error:
                    connection.execute("rollback")
                    kept = True
                    raise
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                logger.warning("PostgreSQL did not take a transaction: %s", str(error).strip())
                raise DatabaseUnavailableError() from error
            finally:
                # One that a deadline has cut short is in an unknown state.
                if kept:
                    self._idle.append(connection)
                else:
                    connection.close()
            return result

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _begin(self) -> psycopg.Connection[Any]:
        """A connection in a transaction. Nothing is lost with one that turns out to be dead, so another is tried."""
        # The server gives up first, so that what is refused for its slowness is not committed later; and also when it
        # hears no more of us, or whoever tries again with the same key would wait for a lock that nobody frees.
        limit_ms = int(self._deadline_s * 800)
        begin = (
            f"begin isolation level read committed; set local statement_timeout = {limit_ms}; "
            f"set local idle_in_transaction_session_timeout = {limit_ms}"
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
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                application_name="headrace router",
                connect_timeout=max(2, int(self._deadline_s)),
                # A pooler in transaction mode gives every statement another server connection.
                prepare_threshold=None,
            )
            connection.execute(begin)
            return connection
        except psycopg.OperationalError as error:
            raise DatabaseUnavailableError() from error
