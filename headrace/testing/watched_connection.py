"""The database connection that a test gives: psycopg's, psycopg2's, SQLAlchemy's or, by its alias, Django's.

headrace looks at what a test publishes over the driver's connection itself: there, no statement of headrace's is
counted, logged or wrapped by a framework, and none begins a transaction that the test has not begun.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from importlib import import_module
from typing import Any, Final

from headrace.database_connection import is_of, synchronous
from headrace.errors import UsageError

DEFAULT_ALIAS: Final = "default"
IDLE: Final = 0
"""libpq's PQTRANS_IDLE, which psycopg and psycopg2 report as it is: no transaction is open."""
IN_TRANSACTION: Final = 2
"""libpq's PQTRANS_INTRANS: a transaction is open, and has not failed."""


class WatchedConnection:
    """A connection that a test publishes over. Owned by the block that watches it."""

    def __init__(self, given: Any) -> None:
        if is_of("sqlalchemy", given) and hasattr(given, "registry") and callable(given):  # scoped_session
            given = given()
        self._session = given if is_of("sqlalchemy", given) and hasattr(given, "get_bind") else None
        if self._session is not None and hasattr(bind := _bind_of(self._session), "exec_driver_sql"):
            # A test may bind a session to a connection whose transaction it rolls back in the end.
            self._session, given = None, bind
        self._connection = given if self._session is not None else synchronous(given)
        self.given = given
        self.key = id(self._connection)

    @contextmanager
    def raw(self) -> Iterator[Any]:
        """The driver's connection; for a session that has none at the moment, another one of its engine.

        A transaction that the block begins is rolled back at its end, so that the block leaves no trace.
        """
        with self._driver() as connection:
            if not hasattr(getattr(connection, "info", None), "transaction_status"):
                raise UsageError(f"{connection!r} is no connection of psycopg or psycopg2; tests need one of these")
            before = connection.info.transaction_status
            try:
                yield connection
            finally:
                if before == IDLE and connection.info.transaction_status != IDLE:
                    connection.rollback()

    def status(self) -> int:
        """Where the connection is, as libpq tells it: IDLE, IN_TRANSACTION or another number."""
        if self._session is not None and not self._session.in_transaction():
            return IDLE
        with self.raw() as connection:
            return int(connection.info.transaction_status)

    @contextmanager
    def _driver(self) -> Iterator[Any]:
        given = self._connection
        if self._session is not None:
            if not self._session.in_transaction():
                with closing(_bind_of(self._session).raw_connection()) as proxied:
                    yield proxied.dbapi_connection
                return
            given = self._session.connection()
        if hasattr(given, "exec_driver_sql"):  # SQLAlchemy's Connection
            yield given.connection.dbapi_connection
        elif hasattr(given, "vendor"):  # Django's
            given.ensure_connection()
            yield given.connection
        else:
            yield given

    def watched(self, after: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block, call after when a statement has been executed over the connection."""
        given = self._connection
        if self._session is not None:
            return _watched_session(self._session, after)
        if hasattr(given, "exec_driver_sql"):
            return _watched_sqlalchemy(given, after)
        if hasattr(given, "vendor"):
            return _watched_django(given, after)
        return _watched_psycopg(given, after) if is_of("psycopg", given) else _watched_psycopg2(given, after)


def connection_of(connection: Any, using: str | None) -> WatchedConnection:
    """The connection that a function of `headrace.testing` was given: itself, or Django's with the alias using.

    Without either it is Django's default one. Raises UsageError for both, and for an object that is no connection.
    """
    if connection is not None and using is not None:
        raise UsageError("give a connection, or the alias of one of Django's as using, not both")
    if connection is None:
        connection = import_module("django.db").connections[using or DEFAULT_ALIAS]
    return WatchedConnection(connection)


def _bind_of(session: Any) -> Any:
    """The engine or connection of a session of SQLAlchemy. Raises UsageError for one that has several or none."""
    try:
        return session.get_bind()
    except Exception as error:
        if type(error).__name__ != "UnboundExecutionError":
            raise
        raise UsageError(
            f"{session!r} has no engine of its own; give the connection that it has for one of your classes"
        ) from error


@contextmanager
def _watched_django(connection: Any, after: Callable[[], None]) -> Iterator[None]:
    def wrapper(execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        result = execute(sql, parameters, many, context)
        after()
        return result

    with connection.execute_wrapper(wrapper):
        yield


@contextmanager
def _watched_psycopg(connection: Any, after: Callable[[], None]) -> Iterator[None]:
    """Whatever the connection and its cursors do goes through its method `wait`, which holds the connection's lock.

    So after MUST use the connection by libpq alone.
    """
    wait = connection.wait

    def waited(*arguments: Any, **options: Any) -> Any:
        after()  # of a pipeline, which ends without waiting
        result = wait(*arguments, **options)
        after()
        return result

    outer = vars(connection).get("wait")  # of a block around this one
    connection.wait = waited
    try:
        yield
    finally:
        del connection.wait
        if outer is not None:
            connection.wait = outer


@contextmanager
def _watched_psycopg2(connection: Any, after: Callable[[], None]) -> Iterator[None]:
    """Every cursor that the connection makes within the block tells of its statements."""
    before = connection.cursor_factory
    factory = before or import_module("psycopg2.extensions").cursor

    class Watched(factory):  # type: ignore[misc, valid-type]
        def execute(self, *arguments: Any, **options: Any) -> Any:
            result = super().execute(*arguments, **options)
            after()
            return result

        def executemany(self, *arguments: Any, **options: Any) -> Any:
            result = super().executemany(*arguments, **options)
            after()
            return result

    connection.cursor_factory = Watched
    try:
        yield
    finally:
        connection.cursor_factory = before


@contextmanager
def _watched_sqlalchemy(connection: Any, after: Callable[[], None]) -> Iterator[None]:
    event = import_module("sqlalchemy.event")

    def executed(*arguments: Any) -> None:
        after()

    event.listen(connection, "after_cursor_execute", executed)
    try:
        yield
    finally:
        event.remove(connection, "after_cursor_execute", executed)


@contextmanager
def _watched_session(session: Any, after: Callable[[], None]) -> Iterator[None]:
    """A session takes a connection for each transaction: each of them is watched while the block lasts."""
    event = import_module("sqlalchemy.event")
    watched: list[Any] = []

    def executed(*arguments: Any) -> None:
        after()

    def begun(session: Any, transaction: Any, connection: Any) -> None:
        event.listen(connection, "after_cursor_execute", executed)
        watched.append(connection)

    if session.in_transaction():
        begun(session, None, session.connection())
    event.listen(session, "after_begin", begun)
    try:
        yield
    finally:
        event.remove(session, "after_begin", begun)
        for connection in watched:
            event.remove(connection, "after_cursor_execute", executed)
