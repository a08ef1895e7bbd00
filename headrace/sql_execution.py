"""Executing a `Call` over any kind of connection that an application may have, in the transaction that it is in.

    a DB-API connection (psycopg 3, psycopg2, …), or a cursor of one
    Django's `connection`
    SQLAlchemy's Connection, Session or scoped_session

`headrace.database_connection` refuses all other objects. Errors that the database raises are the driver's own. For
asynchronous connections there is `headrace.asyncio`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

from headrace.database_connection import as_tuples, explain, is_of, synchronous, takes_dollars
from headrace.sql_calls import Call


def execute(connection: Any, call: Call) -> None:
    """Execute a call and ignore its row. Raises UsageError for an object that is no synchronous connection."""
    with _executed(connection, call):
        pass


def fetch(connection: Any, call: Call) -> Any:
    """Execute a call and return the single column, `id`, of its single row. Raises like `execute`."""
    with _executed(connection, call) as result:
        return single(result.fetchone())


def fetch_all(connection: Any, call: Call) -> list[tuple[Any, ...]]:
    """Execute a call and return all its rows, each as a tuple of its columns. Raises like `execute`."""
    with _executed(connection, call) as result:
        return [tuple(row.values()) if isinstance(row, Mapping) else tuple(row) for row in result.fetchall()]


def execute_script(connection: Any, sql: str) -> None:
    """Execute one statement, or several with semicolons between them, without parameters. Raises like `execute`.

    A percent sign stands for itself. Several statements MUST be run in an open transaction.
    """
    given = synchronous(connection)
    if hasattr(given, "exec_driver_sql"):
        if given.dialect.driver == "asyncpg":  # it prepares what it sends, which may be one statement alone
            sql = f"do $script$ begin execute $statements${sql}$statements$; end $script$"
        given.exec_driver_sql(sql, execution_options={"no_parameters": True})
    else:
        rows = {"row_factory": as_tuples} if is_of("psycopg", given) else {}
        with closing(given.cursor(**rows)) as cursor:
            cursor.execute(sql)


def single(row: Any) -> Any:
    """Return the single column, `id`, of a row: a mapping, a sequence, an object with attributes, or the bare value."""
    if isinstance(row, Mapping):
        return row["id"]
    if isinstance(row, Sequence) and not isinstance(row, str):
        return row[0]
    return getattr(row, "id", row)


def numbered(sql: str) -> str:
    """Return the statement with `$1`, `$2` … for its `%s`, as PostgreSQL itself and asyncpg need it."""
    first, *rest = sql.split("%s")
    return first + "".join(f"${number}{part}" for number, part in zip(count(1), rest, strict=False))


@contextmanager
def _executed(given: Any, call: Call) -> Iterator[Any]:
    """Execute the call by the methods that the kinds of connections share, and yield an object with `fetchone`."""
    connection = synchronous(given)
    if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy's Connection
        dollars = "dollar" in connection.dialect.paramstyle
        try:
            result = connection.exec_driver_sql(numbered(call.sql) if dollars else call.sql, call.parameters)
        except Exception as error:
            explain(given, error)
            raise
        yield result
    elif hasattr(connection, "cursor"):  # DB-API, Django
        rows = {"row_factory": as_tuples} if is_of("psycopg", connection) else {}
        with closing(connection.cursor(**rows)) as cursor:
            cursor.execute(numbered(call.sql) if takes_dollars(cursor) else call.sql, call.parameters)
            yield cursor
    else:  # a cursor that does not tell its connection
        result = connection.execute(*call)
        yield connection if result is None else result
