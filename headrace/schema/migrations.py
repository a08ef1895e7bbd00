"""The SQL schema: bringing a database up to this version's, and refusing to work with one that will not do.

The migrations are the numbered files of `headrace/sql/`. `headrace/sql/schema.sql`, which is no migration, shows and
explains the schema that they make. Their record:

    headrace.migration(version int primary key, applied_at timestamptz, oldest int)    one row per applied file

An upgrade migrates first and replaces processes afterwards, so programs of the version before work on a schema that is
newer than they are, with clients connected. Rules for a migration, which runs beside publishers and shards:

    It only adds: tables, columns with a constant default, functions, arguments with defaults behind the others. A
    function that releases call keeps its name, its arguments and what it returns; `create or replace` holds up nobody.
    It removes only what the release before does not use. Then the file's first line is `-- oldest: N`: programs that
    know fewer than N migrations refuse this schema from then on, and those that run already no longer work. It is
    short, since it holds its locks to the end: a rewrite, or an index of events, holds up all publishers. It locks
    tables in the order in which publishing and numbering do: payload, turn, stream, event. A released file never
    changes.

A lock on a table waits for all open transactions that have used the table, and other transactions wait behind it. So a
migration waits for a lock no longer than LOCK_TIMEOUT_S; then all is rolled back, publishers go on, and the migration
is tried again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from headrace.errors import (
    DatabaseUnavailableError,
    MigrationBlockedError,
    SchemaError,
    UsageError,
)
from headrace.node import session
from headrace.schema import versions
from headrace.schema.inventory import Inventory
from headrace.schema.ownership import require_owned
from headrace.schema.versions import Migration, RacedError, migrations
from headrace.schema_upgrade import (
    LOCK_TIMEOUT_S,
    NEEDS,
    PATIENCE_S,
    PAUSE_S,
    require_encoding,
    require_server_version,
)

__all__ = [
    "LOCK_TIMEOUT_S",
    "Migration",
    "check",
    "migrate",
    "migrations",
    "require_current",
    "require_server",
    "require_server_version",
    "require_whole",
]

LAST_WORDS = (psycopg.errors.AdminShutdown, psycopg.errors.CrashShutdown, psycopg.errors.CannotConnectNow)
CONNECT_TIMEOUT_S = 10
_UNSEEN = "it has just ended, or it is creating a schema or role of the same name"


def migrate(
    database_url: str, *, patience_s: float = PATIENCE_S, say: Callable[[str], None] = lambda line: None
) -> list[int]:
    """Create the schema, or bring it up to this version; return the versions that were applied, in order.

    Idempotent, and safe when run twice at once: the second call waits for the first and finds nothing to do. All
    happens in one transaction, so a failure leaves the database as it was. On a schema that a newer headrace has made,
    and that this one can use, there is nothing to do. Publishers and shards may work meanwhile; say is called with a
    sentence when their open transactions hold up a lock.

    Raises DatabaseUnavailableError when the server cannot be reached; DatabaseVersionError when it is too old;
    MigrationBlockedError when a lock could not be taken for patience_s seconds; SchemaError when a newer headrace has
    migrated the database beyond what this one can use, or parts of the schema are missing; OwnershipError when
    something in the schema belongs to a stranger; UsageError when the database's encoding is not UTF8, when it is
    read-only, or when the user may not create what is needed.
    """
    give_up = time.monotonic() + patience_s
    with _connected(database_url) as connection:
        require_server(connection)
        while True:
            try:
                return _migrate(connection, say)
            except RacedError:
                continue
            except psycopg.errors.InsufficientPrivilege as error:
                hint = error.diag.message_hint or NEEDS.format(connection.info.user)
                raise UsageError(f"{error.diag.message_primary}; {hint}") from error
            except psycopg.errors.ReadOnlySqlTransaction as error:
                raise UsageError(
                    "the database cannot be written to; migrate on the primary, with default_transaction_read_only off"
                ) from error
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                holder = _holder(connection)
                if time.monotonic() >= give_up:
                    raise MigrationBlockedError(f"{MigrationBlockedError.sentence} ({holder})") from error
                say(f"an open transaction holds up the migration, trying again: {holder}")
                time.sleep(PAUSE_S)
            except (psycopg.ProgrammingError, psycopg.InternalError, psycopg.NotSupportedError) as error:
                # As of an event trigger that forbids to create, alter or grant.
                raise SchemaError(
                    f"the migration failed, and nothing was changed: {error.diag.message_primary}"
                ) from error


def check(database_url: str) -> None:
    """Raise the errors that `migrate` and `require_current` would raise, without changing anything."""
    with _connected(database_url) as connection:
        require_server(connection)
        require_current(connection)


def require_server(connection: psycopg.Connection[Any]) -> None:
    """Raise DatabaseVersionError or UsageError if headrace cannot work on the server of the connection."""
    require_server_version(connection.info.server_version)
    require_encoding(connection.info.parameter_status("server_encoding"))


def require_current(connection: psycopg.Connection[Any]) -> None:
    """Raise SchemaError unless the database has this version's schema, or a newer one that this version can use.

    Raises OwnershipError, which is one, before anything in the schema is touched, if strangers' code may be there.

    Leaves the connection as it is: it begins a transaction if the connection is not in autocommit, and never
    makes one fail.
    """
    versions.require_current(connection, {migration.version for migration in migrations()})


def require_whole(connection: psycopg.Connection[Any]) -> bool:
    """Raise SchemaError unless the schema is its owner's alone and has all parts; return whether rights are right."""
    require_owned(connection)
    known = migrations()
    if not versions.require_parts(connection, known):
        raise SchemaError("the database has no schema of headrace; run `headrace migrate`")
    return Inventory.of(migration.sql for migration in known).has_rights(connection)


def _holder(connection: psycopg.Connection[Any]) -> str:
    """Describe the transaction that has held locks on the schema's tables for the longest."""
    row = connection.execute(
        "select a.pid, extract(epoch from clock_timestamp() - a.xact_start)::int, a.state, left(a.query, 80)"
        " from pg_catalog.pg_locks l"
        " join pg_catalog.pg_class c on c.oid = l.relation and (c.relnamespace = to_regnamespace('headrace')"
        " or c.oid = 'pg_catalog.pg_namespace'::regclass and l.mode = 'RowExclusiveLock')"
        " join pg_catalog.pg_stat_activity a on a.pid = l.pid and a.datname = current_database()"
        " where a.pid <> pg_backend_pid() order by a.xact_start limit 1"
    ).fetchone()
    return "pid {}, open for {} s, {}, last query {!r}".format(*row) if row else _UNSEEN


def _migrate(connection: psycopg.Connection[Any], say: Callable[[str], None]) -> list[int]:
    # READ COMMITTED: what follows the lock must see what the last holder did.
    with session.block(connection, f"set local lock_timeout = '{LOCK_TIMEOUT_S * 1000:.0f}ms'"):
        return versions.bring_up(connection, migrations(), say)


@contextmanager
def _connected(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit that may go through a pooler; its errors become headrace's."""
    try:
        connection = session.connect(database_url, "headrace migrate", timeout_s=CONNECT_TIMEOUT_S)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(f"{DatabaseUnavailableError.sentence} ({error})") from error
    except psycopg.ProgrammingError as error:
        raise UsageError(f"HEADRACE_DATABASE_URL is no PostgreSQL URL: {error}") from error
    with connection:
        try:
            yield connection
        except psycopg.OperationalError as error:
            # What a server says before it hangs up may come before libpq has noticed that.
            if not connection.broken and not isinstance(error, LAST_WORDS):
                raise DatabaseUnavailableError(
                    f"PostgreSQL could not do it, and nothing was changed: {error}"
                ) from error
            raise DatabaseUnavailableError(f"the connection to PostgreSQL was lost: {error}") from error
