"""The rights in the schema: its owner, what it lacks, the roles that may use it, and strangers at headrace's locks."""

import time
from typing import Any, Final

import psycopg

from headrace.doctor.finding import Finding, fail, ok, warn
from headrace.errors import UsageError
from headrace.schema import locks, migrations
from headrace.schema.ownership import require_owned

LOOKS_APART_S: Final = 0.2
"""Between two looks at the locks, of which publishing transactions take one for microseconds."""
PRUNED_WARN_S: Final = 600.0

Connection = psycopg.Connection[Any]

_PUBLISHERS: Final = """
    select string_agg(r.rolname, ', ' order by r.rolname) from pg_roles r
     where r.rolcanlogin and not r.rolsuper and pg_has_role(r.oid, 'headrace_publisher', 'MEMBER')
       and has_database_privilege(r.oid, current_database(), 'CONNECT')"""
_RIGHTS: Final = """
    select coalesce(w.rolname, 'public'), string_agg(distinct a.privilege_type, ', '), c.relname
      from pg_class c
     cross join aclexplode(c.relacl) a
      left join pg_roles w on w.oid = a.grantee
     where c.relnamespace = to_regnamespace('headrace') and c.relkind in ('r', 'v') and a.grantee <> c.relowner
       and a.privilege_type <> 'SELECT'
     group by 1, c.relname order by 1, c.relname limit 1"""
_PRUNED: Final = """
    select extract(epoch from clock_timestamp() - nullif(f.next_at, '-infinity'))::float8 from headrace.fence f"""


def parts(connection: Connection) -> Finding:
    """Whether the schema is its owner's alone, and has all that the migrations make, as a part of a dump has not."""
    try:
        found = migrations.require_whole(connection)
    except UsageError as error:
        return fail("schema parts", "not whole, or a stranger's", str(error))
    if not found:
        return fail(
            "schema parts",
            "headrace_publisher lacks rights, or everybody has some",
            "run `headrace migrate`, once more",
        )
    return ok("schema parts", "all there, its owner's alone")


def publishers(connection: Connection) -> Finding:
    """The roles that may publish here, and a role that may write to the tables, which it should not.

    A role is the whole server's, not the database's.
    """
    row = connection.execute(_RIGHTS).fetchone()
    if row is not None:
        role, rights, table = row
        return warn(
            "publishers",
            f"{role} has {rights} on headrace.{table}",
            f"revoke all on headrace.{table} from {role}: grant it headrace_publisher instead, to publish",
        )
    names = connection.execute(_PUBLISHERS).fetchone()
    return ok(
        "publishers", f"may publish here: {names[0]}" if names and names[0] else "only the owner may publish here"
    )


def strangers(connection: Connection) -> Finding:
    """Sessions of strangers that hold a lock by which publishing transactions decide who numbers their events."""
    before = set(locks.strangers(connection))
    if before:
        time.sleep(LOOKS_APART_S)
    found = [who for who in locks.strangers(connection) if who in before]
    if not found:
        return ok("locks", "nobody is at headrace's who should not be")
    who = found[0]
    how = "" if who.exclusive else " in share"
    advice = "revoke connect on this database from that role, or end the transaction; shards go on without the lock"
    if who.pid:
        advice = f"select pg_terminate_backend({who.pid}); {advice}"
    return warn("locks", f"role {who.role} (pid {who.pid}) is at the {who.lock} lock{how}", advice)


def pruning(connection: Connection) -> Finding:
    """Whether some shard removes events that are no longer kept."""
    require_owned(connection)
    row = connection.execute(_PRUNED).fetchone()
    if row is None or row[0] is None:
        return ok("pruning", "not begun")
    found = f"{row[0]:.0f} s ago"
    if row[0] < PRUNED_WARN_S:
        return ok("pruning", found)
    return warn(
        "pruning", found, "start a shard; where one runs, see its log, and end the transaction that is open for longest"
    )
