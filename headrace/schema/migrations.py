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

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg

from headrace.errors import (
    DatabaseUnavailableError,
    DatabaseVersionError,
    MigrationBlockedError,
    SchemaError,
    UsageError,
)
from headrace.node import session
from headrace.schema.inventory import PUBLISHER, Inventory
from headrace.schema.ownership import require_owned

LAST_WORDS = (psycopg.errors.AdminShutdown, psycopg.errors.CrashShutdown, psycopg.errors.CannotConnectNow)
OLDEST_SERVER = 140000
CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 0.5
"""Below PostgreSQL's deadlock_timeout of 1 s: a migration gives way before a deadlock ends another transaction."""
PATIENCE_S = 60.0
"""How many seconds a migration tries to get its locks."""
PAUSE_S = 1.0
"""The pause between two tries, in seconds, in which the transactions that had to wait go on."""

_NAME = re.compile(r"\d{4}_\w+\.sql")
_NEEDS = (
    "migrate as the owner of the schema headrace; or have a superuser run `CREATE SCHEMA headrace AUTHORIZATION {0}` "
    "and, where the role is missing, `CREATE ROLE headrace_publisher NOLOGIN`, then migrate as {0} again"
)
_UNSEEN = "it has just ended, or it is creating a schema or role of the same name"
_REMAINS = """
    select case c.relkind when 'r' then 'the table ' else 'the object ' end || c.relname from pg_catalog.pg_class c
     where c.relnamespace = pg_catalog.to_regnamespace('headrace') and c.relname not in ('migration', 'migration_pkey')
     order by c.relkind <> 'r', c.relname limit 1"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `headrace/sql/`, named `<version, four digits>_<what>.sql`.

    Programs that know fewer than `oldest` migrations do not work any more when this one is applied.
    """

    version: int
    sql: bytes

    @property
    def oldest(self) -> int:
        """The number in its first line, `-- oldest: N`, else 0."""
        found = re.match(rb"-- oldest: (\d+)\n", self.sql)
        return int(found.group(1)) if found else 0


def migrations() -> list[Migration]:
    """Every migration of this version of headrace, in order."""
    found = [
        Migration(int(file.name[:4]), file.read_bytes())
        for file in files("headrace").joinpath("sql").iterdir()
        if _NAME.fullmatch(file.name)
    ]
    return sorted(found, key=lambda migration: migration.version)


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
            except _RacedError:
                continue
            except psycopg.errors.InsufficientPrivilege as error:
                hint = error.diag.message_hint or _NEEDS.format(connection.info.user)
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
    """Raise SchemaError unless the database has this version's schema, or a newer one that this version can use.

    Raises OwnershipError, which is one, before anything in the schema is touched, if strangers' code may be there.

    Leaves the connection as it is: it begins a transaction if the connection is not in autocommit, and never
    makes one fail.
    """
    require_owned(connection)
    applied = _applied(connection)
    known = {migration.version for migration in migrations()}
    if not applied:
        raise SchemaError("the database has no schema of headrace; run `headrace migrate`")
    _require_usable(applied, known)
    if missing := known - applied.keys():
        raise SchemaError(
            f"the database's schema has version {max(applied)} and lacks version {min(missing)}; run `headrace migrate`"
        )


def require_whole(connection: psycopg.Connection[Any]) -> bool:
    """Raise SchemaError unless the schema is its owner's alone and has all parts; return whether rights are right."""
    require_owned(connection)
    known = migrations()
    if not _require_whole(connection, known):
        raise SchemaError("the database has no schema of headrace; run `headrace migrate`")
    return Inventory.of(migration.sql for migration in known).has_rights(connection)


def _require_usable(applied: dict[int, int], known: set[int]) -> None:
    """Raise SchemaError if a newer headrace has applied a migration with which one that knows these cannot work."""
    if max(applied.values(), default=0) > max(known):
        raise SchemaError(
            f"the database's schema has version {max(applied)}, newer than this headrace's {max(known)}, "
            "which it does not work with; install the headrace that migrated it"
        )


def _applied(connection: psycopg.Connection[Any]) -> dict[int, int]:
    """The applied versions, each with the oldest version of a program that works on it; empty without a schema."""
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("select to_regclass('headrace.migration') is not null")
        if cursor.fetchone() != (True,):
            return {}
        # As JSON, since version 0.1 made the table without the column; its own migrations broke nothing.
        cursor.execute("select version, coalesce((to_jsonb(m) ->> 'oldest')::int, 0) from headrace.migration m")
        return dict(cursor)


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
        require_owned(connection)
        known = migrations()
        parts = Inventory.of(migration.sql for migration in known)
        applied = _require_whole(connection, known)
        if _lacking(applied, known) or not parts.has_rights(connection):
            # Otherwise nothing is written or locked: the user may have no right to, or the database may be read-only.
            _make_record(connection)
            # Nobody but the owner has a right on it, so nobody else can keep a migration waiting by a lock.
            connection.execute("lock table headrace.migration in share row exclusive mode")
            pending = _lacking(_require_whole(connection, known), known)
            for migration in pending:
                connection.execute(migration.sql)
                connection.execute(
                    "insert into headrace.migration (version, oldest) values (%s, %s)",
                    [migration.version, migration.oldest],
                )
            if not parts.has_rights(connection):
                parts.restore_rights(connection)
                say(f"gave the role {PUBLISHER} its rights again, as after a dump without them was restored")
            return [migration.version for migration in pending]
    return []


def _require_whole(connection: psycopg.Connection[Any], known: list[Migration]) -> dict[int, int]:
    """The applied versions. Raises SchemaError if they are too new, or if parts of what they have made are missing."""
    applied = _applied(connection)
    _require_usable(applied, {migration.version for migration in known})
    if not applied:
        found = connection.execute(_REMAINS).fetchone()
        if found is not None:
            raise SchemaError(
                f"the schema headrace has {found[0]} but no record of its version, as after a dump without data was "
                "restored; run `drop schema headrace cascade`, then `headrace migrate`"
            )
    elif max(applied) <= known[-1].version:
        Inventory.of(migration.sql for migration in known if migration.version in applied).require(connection)
    return applied


def _lacking(applied: dict[int, int], known: list[Migration]) -> list[Migration]:
    return [migration for migration in known if migration.version not in applied]


def _make_record(connection: psycopg.Connection[Any]) -> None:
    """Create the schema and the record of migrations where they are missing; raises _RacedError if another just did."""
    try:
        row = connection.execute("select pg_catalog.to_regnamespace('headrace') is null").fetchone()
        if row == (True,):  # IF NOT EXISTS would ask for CREATE on the database all the same
            connection.execute("create schema headrace")
        connection.execute(
            "create table if not exists headrace.migration"
            " (version int primary key, applied_at timestamptz not null default clock_timestamp())"
        )
    except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateTable) as error:
        raise _RacedError from error
    # Version 0.1 made the table without it.
    connection.execute("alter table headrace.migration add column if not exists oldest int not null default 0")


class _RacedError(Exception):
    """Another migration has created the schema at the same time."""


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
