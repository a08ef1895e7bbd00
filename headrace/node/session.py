"""Sessions of headrace's own with PostgreSQL: how every process opens one, and under which settings its statements run.

A session inherits settings from its role, its database, a pooler and the environment. Any of them may be wrong for
headrace: a statement_timeout of 10 ms, an encoding that lacks characters of an event, a search_path with a schema in
which strangers can make functions of any name. So the settings that a statement relies on go before it, in the same
message:

    set transaction isolation level read committed; set local search_path = pg_catalog, pg_temp; …; <statement>

The message is one transaction, and the settings end with it. So they also hold behind a pooler that gives every
transaction another server session, and they reach no other client of the pooler. Only a session that is never shared,
for LISTEN or for many small statements, gets its settings once. No name is looked up in a schema that strangers can
write to, so that no function of theirs runs with headrace's rights. The encoding is part of the connection's beginning,
which poolers keep.

Two settings are left to the operator: whether the database may be written to (default_transaction_read_only), and how
durable a commit is. How dates, intervals, numbers and bytes are written needs no setting: no statement sends or asks
for them in a form that a setting changes.

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
    """A session in autocommit, whose statements run under the settings above. Owned by its opener.

    A statement that must not be in a transaction (VACUUM) is executed with `psycopg.Cursor(session)`. Several
    statements in one transaction are executed in a `block`.
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
    """Open a session. Yields.

    application is the session's name in PostgreSQL, which says what part of what process holds it. A server that does
    not answer is given up after timeout_s. limit_s bounds each statement by the server's clock; 0 is for no bound. A
    lasting session is not ended for being idle, and gets its settings once instead of with each statement: its URL MUST
    lead to PostgreSQL itself, or to a pooler in session mode, since these settings stay. Raises
    psycopg.OperationalError; psycopg.ProgrammingError for text that is no URL.
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
        prepare_threshold=5 if lasting else None,
        cursor_factory=_Cursor,
    )
    session.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    if lasting:
        settings = [statement.replace("set local ", "set ", 1) for statement in _settings(session, limit_s)]
        settings += ["set default_transaction_isolation = 'read committed'", "set idle_session_timeout = 0"]
        psycopg.Cursor(session).execute("; ".join(settings).encode())
        return session
    statements = ["set transaction isolation level read committed", *_settings(session, limit_s)]
    session.stated = "".join(f"{statement}; " for statement in statements).encode()
    session.stated_count = len(statements)
    return session


@contextmanager
def block(connection: psycopg.Connection[Any], *settings: str, limit_s: float = 0.0) -> Iterator[None]:
    """One transaction of several statements, under the settings above and further `set local` statements. Yields.

    The connection MUST begin transactions as READ COMMITTED, as sessions of `connect` do. limit_s bounds each
    statement, as for `connect`. Raises psycopg.Error.
    """
    idle = "set local idle_in_transaction_session_timeout = 0"
    with connection.transaction():
        statements = [*_settings(connection, limit_s), idle, *settings]
        psycopg.ClientCursor(connection).execute("; ".join(statements).encode())
        yield


class _Cursor(psycopg.ClientCursor[Any]):
    """Sends the settings before each statement that is a transaction of its own, and skips the settings' results.

    The client puts the parameters into the text, since a message of several statements can have none.
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
        # The temporary schema stands last; if it were not named, it would be searched first for tables and types.
        "set local search_path = pg_catalog, pg_temp",
        f"set local statement_timeout = {round(limit_s * 1000)}",
        "set local lock_timeout = 0",
        # Otherwise NULL in an array's text would be the word.
        "set local array_nulls = on",
        *(
            ["set local transaction_timeout = 0"]
            if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE
            else []
        ),
    ]
