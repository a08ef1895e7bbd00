"""Sessions of headrace's own: how every process opens one, and under which settings its statements run.

A session inherits settings from its role, its database, a pooler and the environment. Any of them may be wrong for
headrace: a statement_timeout of 10 ms, an encoding that cannot tell of every event, a search_path with a schema in
which strangers make functions of any name. So each statement states what it relies on, in the same message:

    set transaction isolation level read committed; set local search_path = pg_catalog, pg_temp; …; <statement>

The message is one transaction, and its settings end with it. So they hold behind a pooler that gives every transaction
another server session, and are nobody else's there. Since no name is looked up in a schema that strangers can write to,
nothing of theirs runs with headrace's rights. The encoding is part of the connection's beginning, which poolers keep.

Not stated, since the answer is the operator's: whether the database may be written to (default_transaction_read_only),
and how durable a commit is. No statement depends on how dates, intervals, numbers or bytes are written: none is sent or
asked for in a form that a setting changes.

Statements over an application's connection run in a transaction whose settings are the application's. They therefore
call nothing but qualified names; see `headrace.sql_calls`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg.abc import Params, Query
from psycopg.pq import TransactionStatus

CONNECT_TIMEOUT_S: Final = 5.0

_TRANSACTION_TIMEOUT_SINCE: Final = 170000


class Session(psycopg.Connection[Any]):
    """A session in autocommit, whose statements run under the settings above. Owned by who opened it.

    A statement that must not be in a transaction (VACUUM) goes through `psycopg.Cursor(session)`; several in one
    transaction go into a `block`.
    """

    stated: bytes = b""
    stated_count: int = 0


def connect(
    url: str,
    application: str,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    limit_s: float = 0.0,
    lasting: bool = False,
) -> Session:
    """Open a session whose name says which part of which process holds it. Yields.

    The server is given up after timeout_s. limit_s bounds each statement by the server's clock; 0 is for no bound. A
    lasting one is not ended for being idle: it MUST lead to PostgreSQL itself, since its setting stays. Raises
    psycopg.OperationalError, and psycopg.ProgrammingError for what is no URL.
    """
    session = Session.connect(
        url,
        autocommit=True,
        application_name=application,
        client_encoding="UTF8",
        connect_timeout=max(2, round(timeout_s)),
        keepalives_idle=2,
        keepalives_interval=1,
        keepalives_count=3,
        # A pooler in transaction mode gives every statement another server connection.
        prepare_threshold=None,
        cursor_factory=_Cursor,
    )
    session.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    statements = ["set transaction isolation level read committed", *_settings(session, limit_s)]
    session.stated = "".join(f"{statement}; " for statement in statements).encode()
    session.stated_count = len(statements)
    if lasting:
        psycopg.Cursor(session).execute("set idle_session_timeout = 0")
    return session


@contextmanager
def block(connection: psycopg.Connection[Any], *settings: str, limit_s: float = 0.0) -> Iterator[None]:
    """One transaction of several statements, under the settings above and further `set local` statements. Yields.

    The connection MUST begin transactions as READ COMMITTED, as sessions of `connect` do. limit_s as there. Raises
    psycopg.Error.
    """
    idle = "set local idle_in_transaction_session_timeout = 0"
    with connection.transaction():
        statements = [*_settings(connection, limit_s), idle, *settings]
        psycopg.ClientCursor(connection).execute("; ".join(statements).encode())
        yield


class _Cursor(psycopg.ClientCursor[Any]):
    """Sends the settings before each statement that is a transaction of its own, and passes over their results.

    The parameters are put in here, since several statements are one message only without any.
    """

    def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        session = self.connection
        assert isinstance(session, Session) and isinstance(query, str | bytes)
        if session.info.transaction_status != TransactionStatus.IDLE:
            return super().execute(query, params)
        text = query.encode() if isinstance(query, str) else query
        super().execute(session.stated + text, params)
        return self.set_result(session.stated_count)


def _settings(connection: psycopg.Connection[Any], limit_s: float) -> list[str]:
    """The settings, for one transaction. Each is safe in any transaction, also after its first statement."""
    return [
        # With the temporary schema last, which would otherwise be searched first for tables and types.
        "set local search_path = pg_catalog, pg_temp",
        f"set local statement_timeout = {round(limit_s * 1000)}",
        "set local lock_timeout = 0",
        # A NULL in an array is the word otherwise.
        "set local array_nulls = on",
        *(
            ["set local transaction_timeout = 0"]
            if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE
            else []
        ),
    ]
