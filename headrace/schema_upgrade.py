"""The schema in an application's own migrations: bringing it up, and publishing the changes of tables.

Every function runs in the transaction of the connection that it is given, and never commits. A connection is any that
`headrace.publish` takes; in a revision of Alembic it is `op.get_bind()`. `headrace migrate` does the same for a
database's URL: either may run first, and the other then finds nothing to do.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from headrace import sql_calls
from headrace.driver_errors import hint, message, sqlstate
from headrace.errors import (
    DatabaseVersionError,
    HeadraceError,
    MigrationBlockedError,
    OwnershipError,
    SchemaError,
    UsageError,
)
from headrace.schema import versions
from headrace.schema.inventory import Inventory
from headrace.schema.ownership import require_owned
from headrace.schema.versions import RacedError
from headrace.sql_calls import Call
from headrace.sql_execution import execute, fetch, fetch_all

OLDEST_SERVER: Final = 140000
LOCK_TIMEOUT_S: Final = 0.5
"""Below PostgreSQL's deadlock_timeout of 1 s: a migration gives way before a deadlock ends another transaction."""
PATIENCE_S: Final = 60.0
"""How many seconds a migration tries to get its locks."""
PAUSE_S: Final = 1.0
"""The pause between two tries, in seconds, in which the transactions that had to wait go on."""
NEEDS: Final = (
    "migrate as the owner of the schema headrace; or have a superuser run `CREATE SCHEMA headrace AUTHORIZATION {0}` "
    "and, where the role is missing, `CREATE ROLE headrace_publisher NOLOGIN`, then migrate as {0} again"
)

_SETTINGS: Final = {
    # The temporary schema stands last; if it were not named, it would be searched first for tables and types.
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": f"{LOCK_TIMEOUT_S * 1000:.0f}ms",
    "array_nulls": "on",
}
_BLOCKED: Final = {"55P03", "40P01"}
"""SQLSTATEs of a lock that was not available in time, and of a deadlock."""


def upgrade_schema(connection: Any, *, patience_s: float = PATIENCE_S) -> list[int]:
    """Create the schema `headrace`, or bring it up to this version, in the connection's open transaction.

    The schema is there when the transaction commits. A schema of this version is left as it is, and so is one that a
    newer headrace has made and that this one can use. Publishers and shards may work meanwhile: a lock that their open
    transactions hold is tried for patience_s seconds, and held from then on until the transaction ends. So give this a
    transaction of its own. The role of the connection owns the schema afterwards. A schema that belongs to another role
    already is never changed: if it has all the parts of this version, nothing is done, else that role has to migrate.

    Returns the versions that were applied, in order; they are those of `headrace migrate`. Raises SchemaError when a
    newer headrace has migrated the database beyond what this one can use, or parts of the schema are missing;
    OwnershipError when something in the schema belongs to a stranger, or another role's schema lacks parts;
    MigrationBlockedError when a lock could not be taken; DatabaseVersionError when PostgreSQL is older than version 14;
    UsageError for a connection that is in autocommit, or above READ COMMITTED, for an object that is no connection, and
    when the role may not create what is needed.
    """
    give_up = time.monotonic() + patience_s
    _require_server(connection)
    while True:
        try:
            with _savepoint(connection), _in_settings(connection):
                if (owner := _other_owner(connection)) is not None:
                    _require_parts_of(owner, connection)
                    return []
                return versions.bring_up(connection, versions.migrations(), lambda line: None)
        except RacedError:
            continue
        except HeadraceError:
            raise
        except Exception as error:
            if sqlstate(error) in _BLOCKED and time.monotonic() < give_up:
                time.sleep(PAUSE_S)
                continue
            translated = _translated(connection, error)
            if translated is None:
                raise
            raise translated from error


def schema_state(connection: Any) -> str:
    """Whether the schema is `missing`, `older` than this version or `current`, in the connection's open transaction.

    Of a schema that belongs to another role, the catalogs are read alone, which tell what parts it has. Raises
    SchemaError when a newer headrace has migrated the database beyond what this one can use; OwnershipError when
    something in the schema belongs to a stranger, or another role's schema lacks parts.
    """
    with _in_settings(connection):
        if (owner := _other_owner(connection)) is not None:
            _require_parts_of(owner, connection)
            return "current"
        require_owned(connection)
        known = {migration.version for migration in versions.migrations()}
        applied = versions.applied(connection)
        versions.require_usable(applied, known)
        if known <= applied.keys():
            return "current"
        return "older" if applied else "missing"


def publish_changes(
    connection: Any,
    table: str,
    stream: str,
    *,
    columns: Sequence[str] | None = None,
    old: bool = False,
    visible_to: str | None = None,
) -> None:
    """Publish every change of the table's rows, from now on, with the transaction that makes the change.

    Makes triggers; the connection's role needs TRIGGER on the table, and roles that write the table need
    headrace_publisher. A second call with the same stream replaces the options; another stream adds events to others.

    table is the name as SQL takes it, such as `orders` or `shop."Order"`. stream is a template in which `{column}`
    stands for that column of the row, `{{` and `}}` for a brace. columns are the columns that events show; None means
    all. old says whether the event of an update has the old row, too. visible_to is the label of the audience that sees
    the events. Raises UsageError for arguments of another kind; the database's errors are the driver's own.
    """
    execute(connection, sql_calls.publish_changes(table, stream, columns, old, visible_to))


def unpublish_changes(connection: Any, table: str, stream: str | None = None) -> None:
    """End what `publish_changes` began for the table: for the stream's template, or for all templates if it is None.

    Without a trigger of that kind nothing happens. Raises like `publish_changes`.
    """
    execute(connection, sql_calls.unpublish_changes(table, stream))


def require_server_version(number: int) -> None:
    """Raise DatabaseVersionError if the server's version number (140005 means 14.5) is too old."""
    if number < OLDEST_SERVER:
        raise DatabaseVersionError(
            f"PostgreSQL is version {number // 10000}.{number % 10000}; headrace needs PostgreSQL "
            f"{OLDEST_SERVER // 10000} or newer"
        )


def require_encoding(encoding: str | None) -> None:
    """Raise UsageError if the database's encoding does not have every character of an event."""
    if encoding != "UTF8":
        raise UsageError(
            f"the database's encoding is {encoding!r}; create one with `CREATE DATABASE … ENCODING 'UTF8' "
            "TEMPLATE template0`"
        )


@contextmanager
def _in_settings(connection: Any) -> Iterator[None]:
    """Run statements of headrace's own within an application's transaction, whose settings are as before afterwards.

    No name is then looked up in a schema that strangers can write to. Where the block raises, the caller MUST roll the
    transaction, or its savepoint, back, which also brings back the settings.
    """
    names = list(_SETTINGS)
    asked = ", ".join(f"pg_catalog.current_setting('{name}')" for name in names)
    (before,) = fetch_all(connection, Call(f"select {asked}", ()))
    _set(connection, list(_SETTINGS.items()))
    yield
    _set(connection, list(zip(names, before, strict=True)))


def _set(connection: Any, settings: Sequence[tuple[str, str]]) -> None:
    calls = ", ".join("pg_catalog.set_config(%s, %s, true)" for _ in settings)
    fetch_all(connection, Call(f"select {calls}", tuple(value for setting in settings for value in setting)))


@contextmanager
def _savepoint(connection: Any) -> Iterator[None]:
    """Undo what the block has done, and give back its locks, if it raises; the transaction then goes on."""
    _run(connection, "savepoint headrace_upgrade")
    try:
        yield
    except Exception:
        _run(connection, "rollback to savepoint headrace_upgrade")
        raise
    _run(connection, "release savepoint headrace_upgrade")


def _run(connection: Any, sql: str) -> None:
    execute(connection, Call(sql, ()))


def _other_owner(connection: Any) -> str | None:
    """The owner of the schema, if the connection's role may not act for it; None without a schema, too.

    Raises OwnershipError if the connection's role has no right to use the schema.
    """
    # A superuser has the rights of every role, and trusts superusers alone.
    query = (
        "select n.nspowner::regrole::text, has_schema_privilege(n.oid, 'USAGE') from pg_namespace n"
        " join pg_roles o on o.oid = n.nspowner join pg_roles me on me.rolname = current_user"
        " where n.nspname = 'headrace' and o.oid <> me.oid"
        " and case when me.rolsuper then not o.rolsuper else not pg_has_role(o.oid, 'USAGE') end"
    )
    for owner, usable in fetch_all(connection, Call(query, ())):
        if not usable:
            raise OwnershipError(
                f"the schema headrace belongs to {owner}; if that is no stranger, run `headrace migrate` as {owner}, "
                "and grant headrace_publisher to this role, else have a superuser drop the schema"
            )
        return str(owner)
    return None


def _require_parts_of(owner: str, connection: Any) -> None:
    """Raise OwnershipError if the schema of another role lacks parts. Nothing of that role's is executed."""
    missing = Inventory.of(migration.sql for migration in versions.migrations()).missing(connection)
    if missing:
        raise OwnershipError(
            f"the schema headrace belongs to {owner}, and lacks the {missing[0]} of this version; "
            f"run `headrace migrate` as {owner}"
        )


def _require_server(connection: Any) -> None:
    """Raise the errors of `upgrade_schema` for what the server, the database and the transaction are."""
    ((number, encoding, isolation),) = fetch_all(
        connection,
        Call(
            "select pg_catalog.current_setting('server_version_num')::pg_catalog.int4,"
            " pg_catalog.current_setting('server_encoding'), pg_catalog.current_setting('transaction_isolation')",
            (),
        ),
    )
    require_server_version(number)
    require_encoding(encoding)
    if isolation != "read committed":
        raise UsageError(f"the transaction is {isolation}; bring up the schema in a READ COMMITTED transaction")
    # In autocommit each statement is a transaction of its own, in which a setting does not last.
    mark = str(time.monotonic_ns())
    execute(connection, Call("select pg_catalog.set_config('headrace.open', %s, true) as id", (mark,)))
    if fetch(connection, Call("select pg_catalog.current_setting('headrace.open', true) as id", ())) != mark:
        raise UsageError(f"{connection!r} is in autocommit; bring up the schema in a transaction, as in `begin`")


def _translated(connection: Any, error: Exception) -> HeadraceError | None:
    """The error of headrace for one that the database has raised; None for one that no advice is known for."""
    state = sqlstate(error)
    if state in _BLOCKED:
        return MigrationBlockedError()
    if state == "42501":
        role = str(fetch(connection, Call("select current_user::pg_catalog.text as id", ())))
        return UsageError(f"{message(error)}; {hint(error) or NEEDS.format(role)}")
    if state == "25006":
        return UsageError("the database cannot be written to; migrate on the primary")
    if state is None or state.startswith("08"):
        return None
    return SchemaError(f"the migration failed, and nothing was changed: {message(error)}")
