"""The database connection of an object that an application has given, or an error that says what to give instead.

Applications give drivers' connections and cursors, sessions, or, by mistake, pools, engines and coroutines. Objects are
told apart by their attributes and by the packages of their classes, so that no library is imported. Where a cursor is
given, statements go over a new cursor of its connection: a named cursor would not execute before somebody fetches from
it, and other cursors make rows of other kinds.
"""

from collections.abc import Awaitable
from inspect import isclass, iscoroutinefunction, ismodule, isroutine
from typing import Any

from headrace.errors import UsageError

_USED = ("cursor", "execute", "exec_driver_sql", "run_sync", "fetchval", "vendor")
"""Attributes of which every connection has at least one."""
_OTHERS = {
    "sqlite": "SQLite",
    "sqlite3": "SQLite",
    "aiosqlite": "SQLite",
    "mysql": "MySQL",
    "mariadb": "MySQL",
    "pymysql": "MySQL",
    "MySQLdb": "MySQL",
    "oracle": "Oracle",
    "mssql": "SQL Server",
}
"""Databases that headrace does not work with, by the names of dialects, backends and packages."""


def synchronous(given: Any) -> Any:
    """Return the connection of the given object: SQLAlchemy's Connection, Django's, or one of DB-API.

    Raises UsageError, with what to give instead, for an object that has none.
    """
    refuse(given)
    # A coroutine that nobody awaits would lose the event without an error.
    if _is_asynchronous(given):
        raise UsageError(f"{given!r} is asynchronous; await the function of this name in `headrace.asyncio`")
    if hasattr(getattr(given, "db", None), "vendor"):  # Django's cursor
        given = given.db
    elif hasattr(given, "execute") and not hasattr(given, "exec_driver_sql") and hasattr(given, "connection"):
        given = _of_session(given) if isroutine(given.connection) else given.connection
    return _usable(given)


def asynchronous(given: Any) -> Any:
    """Return the connection of the given object: SQLAlchemy's AsyncConnection or AsyncSession, asyncpg's or psycopg's.

    Raises UsageError, with what to give instead, for an object that has none.
    """
    refuse(given)
    if not _is_asynchronous(given):
        raise UsageError(f"{given!r} is no asynchronous database connection; for others there is `headrace`")
    if getattr(given, "sync_connection", given) is None:
        raise UsageError(f"{given!r} is not connected; enter it first, as in `async with engine.connect()`")
    if is_of("psycopg", given) and not hasattr(given, "cursor"):
        given = given.connection
    return _usable(given)


def is_of(package: str, given: object) -> bool:
    """Whether the object's class, or one that it derives from, is defined in this package."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(given).__mro__)


def takes_dollars(cursor: object) -> bool:
    """Whether a cursor of psycopg takes parameters written `$1`, `$2` …, as PostgreSQL itself does."""
    return any(kind.__name__ == "RawCursorMixin" for kind in type(cursor).__mro__)


def as_tuples(cursor: object) -> type[tuple[Any, ...]]:
    """A row factory for psycopg that makes tuples; the connection's own may be any other."""
    return tuple


def _is_asynchronous(given: Any) -> bool:
    return (
        hasattr(given, "run_sync")
        or is_of("asyncpg", given)
        or any(iscoroutinefunction(getattr(given, name, None)) for name in ("execute", "commit"))
    )


def refuse(given: Any) -> None:
    """Raise UsageError, with what to give instead, for an object that is no connection, cursor or session."""

    def has(*names: str) -> bool:
        return all(hasattr(given, name) for name in names)

    if isinstance(given, str | bytes):  # not shown: a URL has a password
        raise UsageError("a text is no connection; open one, and give that")
    if isclass(given) or ismodule(given):
        raise UsageError(f"{given!r} is no connection; open one, and give that")
    if has("Model", "session"):
        raise UsageError("Flask-SQLAlchemy's object is no connection; give its `session`")
    if has("class_", "configure"):
        raise UsageError(f"{type(given).__name__} makes sessions; give a session that it has made")
    if has("getconn") or has("acquire"):
        raise UsageError(
            f"{given!r} is a pool, without a transaction of yours; give a connection that you take from it"
        )
    if has("dispose", "connect"):
        raise UsageError(f"{given!r} is an engine, without a transaction; give a connection or a session of it")
    if has("databases", "all"):
        raise UsageError("Django's connections are no connection; give one of them, as `connections['default']`")
    if any(map(has, _USED)):
        return
    if isinstance(given, Awaitable):
        raise UsageError(f"{given!r} was not awaited; give what it gives when it is awaited, or entered")
    if has("connection"):
        raise UsageError(f"{given!r} is no connection; give its `connection`")
    if is_of("contextlib", given):
        raise UsageError(f"{given!r} was not entered; give what `with … as connection` gives")
    raise UsageError(f"{given!r} is no database connection; give one, with the transaction that is to publish")


def _of_session(session: Any) -> Any:
    """The Connection of SQLAlchemy's Session or scoped_session."""
    try:
        return session.connection()
    except Exception as error:
        if type(error).__name__ == "UnboundExecutionError":
            raise UsageError(
                f"{session!r} has no engine of its own; give the connection that it has for one of your classes, "
                "`session.connection(bind_arguments={'mapper': Note})`"
            ) from error
        explain(session, error)
        raise


def explain(given: object, error: Exception) -> None:
    """Raise UsageError instead of SQLAlchemy's error for an asynchronous connection that synchronous code uses."""
    if type(error).__name__ == "MissingGreenlet":
        raise UsageError(
            f"{given!r} is of an asynchronous session or connection; give that one to `headrace.asyncio`, and await it"
        ) from error


def _usable(given: Any) -> Any:
    """Return the connection. Raises UsageError for one that was closed, and for another database than PostgreSQL."""
    # A connection that was lost is left to its driver: programs that reconnect wait for the driver's own error.
    if getattr(given, "closed", False) in (True, 1) and not getattr(given, "broken", False):
        raise UsageError(f"{given!r} is closed; give an open connection")
    names = [getattr(given, "vendor", ""), getattr(getattr(given, "dialect", None), "name", "")]
    for name in (*names, *(kind.__module__.partition(".")[0] for kind in type(given).__mro__)):
        if name in _OTHERS:
            raise UsageError(f"{given!r} is a connection to {_OTHERS[name]}; headrace's functions are in PostgreSQL")
    return given
