"""The versions of the SQL schema: which a database has, and the statements that bring it up to this program's.

The migrations are the numbered files of `headrace/sql/`; `headrace.schema.migrations` says what each may do. What is
here works over any connection that applications publish over, so no driver is imported. Callers hold a READ COMMITTED
transaction, with the search path `pg_catalog, pg_temp`, around each function.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from headrace.driver_errors import sqlstate
from headrace.errors import SchemaError
from headrace.schema.inventory import PUBLISHER, Inventory
from headrace.schema.ownership import require_owned
from headrace.sql_calls import Call
from headrace.sql_execution import execute, execute_script, fetch, fetch_all

_NAME = re.compile(r"\d{4}_\w+\.sql")
_REMAINS = """
    select case c.relkind when 'r' then 'the table ' else 'the object ' end || c.relname from pg_catalog.pg_class c
     where c.relnamespace = pg_catalog.to_regnamespace('headrace') and c.relname not in ('migration', 'migration_pkey')
     order by c.relkind <> 'r', c.relname limit 1"""
_RACED = {"23505", "42P06", "42P07"}
"""SQLSTATEs of a unique violation, a duplicate schema and a duplicate table."""


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


class RacedError(Exception):
    """Another migration has created the schema at the same time; the transaction, or its savepoint, has failed."""


def migrations() -> list[Migration]:
    """Every migration of this version of headrace, in order."""
    found = [
        Migration(int(file.name[:4]), file.read_bytes())
        for file in files("headrace").joinpath("sql").iterdir()
        if _NAME.fullmatch(file.name)
    ]
    return sorted(found, key=lambda migration: migration.version)


def applied(connection: Any) -> dict[int, int]:
    """The applied versions, each with the oldest version of a program that works on it; empty without a schema."""
    if not fetch(connection, Call("select to_regclass('headrace.migration') is not null as id", ())):
        return {}
    # As JSON, since version 0.1 made the table without the column; its own migrations broke nothing.
    query = "select version, coalesce((to_jsonb(m) ->> 'oldest')::int, 0) from headrace.migration m"
    return dict(fetch_all(connection, Call(query, ())))


def require_usable(versions: dict[int, int], known: set[int]) -> None:
    """Raise SchemaError if a newer headrace has applied a migration with which one that knows these cannot work."""
    if max(versions.values(), default=0) > max(known):
        raise SchemaError(
            f"the database's schema has version {max(versions)}, newer than this headrace's {max(known)}, "
            "which it does not work with; install the headrace that migrated it"
        )


def require_current(connection: Any, known: set[int]) -> None:
    """Raise SchemaError unless the database has the known versions, or a newer one that this program can use.

    Raises OwnershipError, which is one, before anything in the schema is touched, if strangers' code may be there.
    """
    require_owned(connection)
    versions = applied(connection)
    if not versions:
        raise SchemaError("the database has no schema of headrace; run `headrace migrate`")
    require_usable(versions, known)
    if missing := known - versions.keys():
        raise SchemaError(
            f"the database's schema has version {max(versions)} and lacks version {min(missing)}; "
            "run `headrace migrate`"
        )


def require_parts(connection: Any, known: list[Migration]) -> dict[int, int]:
    """The applied versions. Raises SchemaError if they are too new, or if parts of what they have made are missing."""
    versions = applied(connection)
    require_usable(versions, {migration.version for migration in known})
    if not versions:
        remains = fetch_all(connection, Call(_REMAINS, ()))
        if remains:
            raise SchemaError(
                f"the schema headrace has {remains[0][0]} but no record of its version, as after a dump without data "
                "was restored; run `drop schema headrace cascade`, then `headrace migrate`"
            )
    elif max(versions) <= known[-1].version:
        Inventory.of(migration.sql for migration in known if migration.version in versions).require(connection)
    return versions


def bring_up(connection: Any, known: list[Migration], say: Callable[[str], None]) -> list[int]:
    """Apply the known migrations that the database lacks, and give rights that are missing; return their versions.

    Writes and locks nothing where nothing is to do: the user may have no right to, or the database may be read-only.
    say is called with a sentence when rights were given again. Raises SchemaError, OwnershipError, RacedError, and the
    driver's own errors; after each of them the transaction, or its savepoint, MUST be rolled back.
    """
    require_owned(connection)
    parts = Inventory.of(migration.sql for migration in known)
    if not _lacking(require_parts(connection, known), known) and parts.has_rights(connection):
        return []
    _make_record(connection)
    # Nobody but the owner has a right on it, so nobody else can keep a migration waiting by a lock.
    execute_script(connection, "lock table headrace.migration in share row exclusive mode")
    pending = _lacking(require_parts(connection, known), known)
    for migration in pending:
        execute_script(connection, migration.sql.decode())
        execute(
            connection,
            Call(
                "insert into headrace.migration (version, oldest) values (%s, %s)",
                (migration.version, migration.oldest),
            ),
        )
    if not parts.has_rights(connection):
        parts.restore_rights(connection)
        say(f"gave the role {PUBLISHER} its rights again, as after a dump without them was restored")
    return [migration.version for migration in pending]


def _lacking(versions: dict[int, int], known: list[Migration]) -> list[Migration]:
    return [migration for migration in known if migration.version not in versions]


def _make_record(connection: Any) -> None:
    """Create the schema and the record of migrations where they are missing; raises RacedError if another just did."""
    try:
        # IF NOT EXISTS would ask for CREATE on the database all the same.
        if fetch(connection, Call("select pg_catalog.to_regnamespace('headrace') is null as id", ())):
            execute_script(connection, "create schema headrace")
        execute_script(
            connection,
            "create table if not exists headrace.migration"
            " (version int primary key, applied_at timestamptz not null default clock_timestamp())",
        )
    except Exception as error:
        if sqlstate(error) in _RACED:
            raise RacedError from error
        raise
    # Version 0.1 made the table without it.
    execute_script(connection, "alter table headrace.migration add column if not exists oldest int not null default 0")
