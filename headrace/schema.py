"""The SQL schema: bringing a database up to this version's, and refusing to work with any other.

The migrations are the numbered files of `headrace/sql/`; what they create is described there. Their record:

    headrace.migration(version int primary key, applied_at timestamptz)    one row per applied file
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg

from headrace.errors import DatabaseUnavailableError, DatabaseVersionError, SchemaError, UsageError

OLDEST_SERVER = 140000
CONNECT_TIMEOUT_S = 10

# Any constant will do that no other program uses in the same database; this spells "headrac" and "m" for
# migrate.
MIGRATION_LOCK = 0x686561647261636D


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `headrace/sql/`, named `<version, four digits>_<what>.sql`."""

    version: int
    sql: bytes


def migrations() -> list[Migration]:
    """Every migration of this version of headrace, in order."""
    found = [
        Migration(int(file.name[:4]), file.read_bytes())
        for file in files("headrace").joinpath("sql").iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.version)


def migrate(database_url: str) -> list[int]:
    """Create the schema, or bring it up to this version; return the versions that were applied, in order.

    Idempotent, and safe when run twice at once: the second waits for the first and finds nothing to do. All
    happens in one transaction, so a failure leaves the database as it was.

    Raises DatabaseUnavailableError when the server cannot be reached, DatabaseVersionError when it is too
    old, SchemaError when a newer headrace has migrated it, and UsageError when its encoding is not UTF8 or
    the user may not create what is needed.
    """
    with _connected(database_url) as connection:
        require_server(connection)
        try:
            return _migrate(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            hint = error.diag.message_hint or (
                "migrate as a user that may create a schema in this database, or that owns the schema headrace"
            )
            raise UsageError(f"{error.diag.message_primary}; {hint}") from error


def check(database_url: str) -> None:
    """Raise what `migrate` and `require_current` would, without changing anything."""
    with _connected(database_url) as connection:
        require_server(connection)
        require_current(connection)


def require_server(connection: psycopg.Connection[Any]) -> None:
    """Raise DatabaseVersionError or UsageError if headrace cannot work on the server of the connection."""
    require_server_version(connection.info.server_version)
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UsageError(
            f"the database's encoding is {encoding!r}; create one with `CREATE DATABASE … ENCODING 'UTF8' "
            "TEMPLATE template0`"
        )


def require_server_version(number: int) -> None:
    """Raise DatabaseVersionError if the server's version number (140005 means 14.5) is too old."""
    if number < OLDEST_SERVER:
        raise DatabaseVersionError(
            f"PostgreSQL is version {number // 10000}.{number % 10000}; headrace needs PostgreSQL "
            f"{OLDEST_SERVER // 10000} or newer"
        )


def require_current(connection: psycopg.Connection[Any]) -> None:
    """Raise SchemaError unless the database has exactly this version's schema.

    Leaves the connection as it is: it begins a transaction if the connection is not in autocommit, and never
    makes one fail.
    """
    applied = _applied(connection)
    known = {migration.version for migration in migrations()}
    if not applied:
        raise SchemaError("the database has no schema of headrace; run `headrace migrate`")
    if newer := applied - known:
        raise SchemaError(_newer(newer, known))
    if missing := known - applied:
        raise SchemaError(
            f"the database's schema has version {max(applied)} and lacks version {min(missing)}; run `headrace migrate`"
        )


def _newer(newer: set[int], known: set[int]) -> str:
    return (
        f"the database's schema has version {max(newer)}, newer than this headrace's {max(known)}; "
        "install the headrace that migrated it"
    )


def _applied(connection: psycopg.Connection[Any]) -> set[int]:
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("select to_regclass('headrace.migration') is not null")
        if cursor.fetchone() != (True,):
            return set()
        cursor.execute("select version from headrace.migration")
        return {version for (version,) in cursor}


def _migrate(connection: psycopg.Connection[Any]) -> list[int]:
    with connection.transaction():
        # READ COMMITTED whatever the database's default: what follows the lock must see what the last
        # holder did.
        connection.execute("set transaction isolation level read committed")
        connection.execute("select pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        connection.execute("create schema if not exists headrace")
        connection.execute(
            "create table if not exists headrace.migration"
            " (version int primary key, applied_at timestamptz not null default clock_timestamp())"
        )
        applied = _applied(connection)
        known = migrations()
        versions = {migration.version for migration in known}
        if newer := applied - versions:
            raise SchemaError(_newer(newer, versions))
        pending = [migration for migration in known if migration.version not in applied]
        for migration in pending:
            connection.execute(migration.sql)
            connection.execute("insert into headrace.migration (version) values (%s)", [migration.version])
    return [migration.version for migration in pending]


@contextmanager
def _connected(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit that may go through a pooler; its errors become headrace's."""
    try:
        connection = psycopg.connect(
            database_url, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_TIMEOUT_S
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(f"{DatabaseUnavailableError.__doc__} ({error})") from error
    except psycopg.ProgrammingError as error:
        raise UsageError(f"HEADRACE_DATABASE_URL is no PostgreSQL URL: {error}") from error
    with connection:
        try:
            yield connection
        except psycopg.OperationalError as error:
            if not connection.broken:
                raise
            raise DatabaseUnavailableError(f"the connection to PostgreSQL was lost: {error}") from error
