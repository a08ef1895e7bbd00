"""A session that is kept from one use to the next, and replaced by a new one if it has died in between.

Much may end a session that is not in use: PostgreSQL's idle_session_timeout, a restart of the server or of a pooler, a
firewall. The next use finds out; the same work is then done on a new session instead of being refused.
"""

from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from headrace.node import session
from headrace.node.session import Session

T = TypeVar("T")


class KeptSession:
    """One session of `headrace.node.session`, opened when it is needed.

    Owned by one greenlet. reopened counts the sessions that have replaced a lost one. A session is closed if anything
    goes wrong in the middle of an answer, such as a deadline of the caller's.
    """

    def __init__(
        self, url: str, application: str, *, timeout_s: float = session.CONNECT_TIMEOUT_S, limit_s: float = 0.0
    ) -> None:
        self.reopened = 0
        self._url = url
        self._application = application
        self._timeout_s = timeout_s
        self._limit_s = limit_s
        self._session: Session | None = None
        self._opened = False

    def read(self, work: Callable[[Session], T]) -> T:
        """Call work with the session, and again with a new session if the kept one has died; return its result. Yields.

        work MUST be safe to repeat after any of its statements. Raises psycopg.Error, and whatever work raises.
        """
        if self._session is not None:
            try:
                return self._use(self._session, work)
            except psycopg.Error as error:
                if not died(error):
                    raise
        return self._use(self._open(), work)

    def write(self, work: Callable[[Session], T]) -> T:
        """Call work with a session that has answered just before; return its result. Yields.

        work is never repeated: it may have been committed although no answer came. Raises as `read`.
        """
        return self._use(self.proven(), work)

    def proven(self) -> Session:
        """A session that has answered just before. Yields.

        The caller MUST call `close` when anything goes wrong while it uses the session. Raises psycopg.Error.
        """
        if self._session is not None:
            try:
                self._use(self._session, lambda kept: kept.execute("select"))
            except psycopg.Error as error:
                if not died(error):
                    raise
        return self._session or self._open()

    def close(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> Session:
        self._session = session.connect(self._url, self._application, timeout_s=self._timeout_s, limit_s=self._limit_s)
        self.reopened += self._opened
        self._opened = True
        return self._session

    def _use(self, kept: Session, work: Callable[[Session], T]) -> T:
        whole = False
        try:
            done = work(kept)
            whole = True
            return done
        except psycopg.Error as error:
            # A statement that PostgreSQL refused leaves the session as it was.
            whole = not died(error) and kept.info.transaction_status == TransactionStatus.IDLE
            raise
        finally:
            if not whole:
                self.close()


def died(error: psycopg.Error) -> bool:
    """Whether an error means that the session is of no more use, rather than that a statement was refused.

    PostgreSQL, appendix A: class 08 is about connections, 57P about an operator's commands and session timeouts; 25006
    is about a session that may only read, such as one to a server that has become a standby. Errors that libpq itself
    notices have no SQLSTATE.
    """
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.InterfaceError | psycopg.OperationalError)
    return state.startswith(("08", "57P", "25P03", "25P04", "25006"))
