"""The database connection that a test gives: psycopg's, psycopg2's, SQLAlchemy's or, by its alias, Django's.

headrace looks at what a test publishes over the driver's connection itself: there, no statement of headrace's is
counted, logged or wrapped by a framework, and none begins a transaction that the test has not begun. Asynchronous
connections of psycopg are looked at in the same way, while the test's own program waits.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any, Final

from headrace.database_connection import asynchronous, is_of, synchronous
from headrace.errors import UsageError

DEFAULT_ALIAS: Final = "default"
IDLE: Final = 0
"""libpq's PQTRANS_IDLE, which psycopg and psycopg2 report as it is: no transaction is open."""
IN_TRANSACTION: Final = 2
"""libpq's PQTRANS_INTRANS: a transaction is open, and has not failed."""


class WatchedConnection:
    """A connection that a test publishes over. Owned by the block that watches it.

    given is what the functions that publish take; key is the same for each watching of one connection.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        # Django gives out one connection as itself and by a proxy.
        self.key = given.alias if hasattr(given, "vendor") else id(given)

    @contextmanager
    def raw(self) -> Iterator[Any]:
        """The driver's connection. A transaction that the block begins with psycopg2 is rolled back at its end."""
        with self.driver() as connection:
            if not hasattr(getattr(connection, "info", None), "transaction_status"):
                raise UsageError(f"{connection!r} is no connection of psycopg or psycopg2; tests need one of these")
            before = connection.info.transaction_status
            try:
                yield connection
            finally:
                if before == IDLE and connection.info.transaction_status != IDLE:
                    connection.rollback()

    @contextmanager
    def driver(self) -> Iterator[Any]:
        """The connection of psycopg or psycopg2 below the given one."""
        if hasattr(self.given, "exec_driver_sql"):  # SQLAlchemy's Connection
            yield self.given.connection.driver_connection
        elif hasattr(self.given, "vendor"):  # Django's
            self.given.ensure_connection()
            yield self.given.connection
        else:
            yield self.given

    def is_connected(self) -> bool:
        """Whether the driver's connection is the test's own at the moment, and not one that others use as well."""
        return True

    def watched(self, after: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block, call after when a statement has been executed over the connection."""
        if hasattr(self.given, "exec_driver_sql"):
            return _watched_sqlalchemy(self.given, after)
        if hasattr(self.given, "vendor"):
            return _watched_django(self.given, after)
        return (
            _watched_psycopg(self.given, after)
            if is_of("psycopg", self.given)
            else _watched_psycopg2(self.given, after)
        )


class WatchedSession(WatchedConnection):
    """A session of SQLAlchemy with an engine, which takes a connection for each of its transactions.

    Between them the session has none. headrace then looks at the database over one that it borrows from the engine; an
    asynchronous engine would have to be awaited, so there it is the one that the session had last. Owned like its base
    class.
    """

    def __init__(self, session: Any, engine: Any) -> None:
        super().__init__(session)
        self._engine = engine
        self._connection: Any = None
        self._last: Any = None
        if session.in_transaction():
            self._take(session.connection())

    @contextmanager
    def driver(self) -> Iterator[Any]:
        """The connection of the transaction that is open, else another one; see the class."""
        if self.is_connected() or self._engine.dialect.is_async:
            if self._last is None:
                raise UsageError(
                    f"{self.given!r} has no connection yet; begin its transaction before the block, as by "
                    "`await session.connection()`"
                )
            yield self._last
        else:
            with closing(self._engine.raw_connection()) as borrowed:
                yield borrowed.driver_connection

    def is_connected(self) -> bool:
        """Whether a transaction of the session is open, and has a connection."""
        return self._connection is not None and self.given.in_transaction() and self._connection.in_transaction()

    @contextmanager
    def watched(self, after: Callable[[], None]) -> Iterator[None]:
        """Within the block, call after when a statement has been executed in one of the session's transactions."""
        event = import_module("sqlalchemy.event")
        watched: list[Any] = []

        def executed(*arguments: Any) -> None:
            after()

        def begun(session: Any, transaction: Any, connection: Any) -> None:
            self._take(connection)
            event.listen(connection, "after_cursor_execute", executed)
            watched.append(connection)

        if self._connection is not None:
            begun(self.given, None, self._connection)
        event.listen(self.given, "after_begin", begun)
        try:
            yield
        finally:
            event.remove(self.given, "after_begin", begun)
            for connection in watched:
                event.remove(connection, "after_cursor_execute", executed)

    def _take(self, connection: Any) -> None:
        """Look at the database over this connection from now on."""
        self._connection = connection
        self._last = connection.connection.driver_connection


def connection_of(connection: Any, using: str | None) -> WatchedConnection:
    """The connection that a function of `headrace.testing` was given: itself, or Django's with the alias using.

    Without either it is Django's default one. Raises UsageError for both, and for an object that is no connection.
    """
    if connection is not None and using is not None:
        raise UsageError("give a connection, or the alias of one of Django's as using, not both")
    if connection is None:
        try:
            connection = import_module("django.db").connections[using or DEFAULT_ALIAS]
        except ImportError as error:
            raise UsageError("give a connection; without one it is Django's, and Django is not installed") from error
    if is_of("sqlalchemy", connection):
        return _of_sqlalchemy(connection)
    if is_of("psycopg", connection) and iscoroutinefunction(connection.execute):
        return WatchedConnection(asynchronous(connection))
    return WatchedConnection(synchronous(connection))


def _of_sqlalchemy(given: Any) -> WatchedConnection:
    if hasattr(given, "registry") and callable(given):  # scoped_session, and the asynchronous one
        given = given()
    if hasattr(given, "sync_connection"):
        given = asynchronous(given).sync_connection
    given = getattr(given, "sync_session", given)
    if not hasattr(given, "get_bind"):
        return WatchedConnection(synchronous(given))
    bind = _bind_of(given)
    # A test may bind a session to a connection whose transaction it rolls back in the end.
    return WatchedConnection(bind) if hasattr(bind, "exec_driver_sql") else WatchedSession(given, bind)


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

    async def awaited(*arguments: Any, **options: Any) -> Any:
        after()
        result = await wait(*arguments, **options)
        after()
        return result

    outer = vars(connection).get("wait")  # of a block around this one
    connection.wait = awaited if iscoroutinefunction(wait) else waited
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
