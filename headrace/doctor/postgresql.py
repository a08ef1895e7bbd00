"""PostgreSQL as a shard and a publisher need it: version, schema, room for connections, and what stands in the way."""

import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from headrace.doctor.finding import Finding, fail, ok, warn
from headrace.errors import UsageError
from headrace.schema import migrations

HELD_WARN_S: Final = 1.0
HELD_FAIL_S: Final = 10.0
SNAPSHOT_WARN_S: Final = 60.0
SKEW_WARN_S: Final = 1.0
SKEW_FAIL_S: Final = 5.0
QUEUE_WARN: Final = 0.1
QUEUE_FAIL: Final = 0.5
CONNECTIONS_BESIDE_READERS: Final = 8
"""Of each shard: for LISTEN, pruning, presence, revocations, its canary and numbering, and two for history."""

Connection = psycopg.Connection[Any]

_HOLDING: Final = """
    select a.pid, extract(epoch from clock_timestamp() - a.xact_start), a.state, a.application_name, a.query,
           (select count(*) from pg_stat_activity w where a.pid = any (pg_blocking_pids(w.pid)))
      from pg_stat_activity a
     where a.pid <> pg_backend_pid() and a.xact_start is not null and exists (
           select from pg_locks l where l.pid = a.pid and l.granted and l.mode = 'RowExclusiveLock'
              and l.relation = to_regclass('headrace.stream') and l.database = (
                  select d.oid from pg_database d where d.datname = current_database()))
     order by a.xact_start limit 1"""
_OLDEST: Final = """
    select pid, extract(epoch from clock_timestamp() - xact_start), state, application_name, query
      from pg_stat_activity
     where pid <> pg_backend_pid() and backend_xmin is not null and xact_start is not null
       and datname = current_database()
     order by xact_start limit 1"""
_LIMITS: Final = """
    with session as (
        select datname = current_database() as of_database, usename = current_user as of_role,
               application_name like 'headrace % %' as of_shard
          from pg_stat_activity where backend_type = 'client backend'
    )
    select 'max_connections', current_setting('max_connections')::int
           - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0),
           count(*)::int, (count(*) filter (where not of_shard))::int
      from session
    union all
    select format('the connection limit of role %I', rolname), rolconnlimit,
           (count(*) filter (where of_role))::int, (count(*) filter (where of_role and not of_shard))::int
      from pg_roles left join session on true
     where rolname = current_user and rolconnlimit >= 0 and not rolsuper group by 1, 2
    union all
    select format('the connection limit of database %I', d.datname), datconnlimit,
           (count(*) filter (where of_database))::int, (count(*) filter (where of_database and not of_shard))::int
      from pg_database d left join session on true
     where d.datname = current_database() and datconnlimit >= 0 group by 1, 2"""
_LISTENING_IN_TRANSACTION: Final = """
    select pid, application_name from pg_stat_activity
     where state like 'idle in transaction%' and pid <> pg_backend_pid() order by xact_start limit 1"""


def version(connection: Connection) -> Finding:
    """Whether headrace works on this server at all: its version, and the database's encoding."""
    number = connection.info.server_version
    try:
        migrations.require_server(connection)
    except UsageError as error:
        return fail("postgresql version", f"{number // 10000}.{number % 10000}", str(error))
    return ok("postgresql version", f"{number // 10000}.{number % 10000}")


def schema_version(connection: Connection) -> Finding:
    """Whether the database has the schema that this headrace needs."""
    try:
        migrations.require_current(connection)
    except UsageError as error:
        return fail("schema", "not this version's, or a stranger's", str(error))
    return ok("schema", f"version {max(migration.version for migration in migrations.migrations())}")


def room(connection: Connection, shards: int, readers: int) -> Finding:
    """Whether PostgreSQL lets the shards that are registered, and everybody else, have their connections.

    Three limits count: max_connections, without what is reserved; the CONNECTION LIMIT of the shards' role; and that of
    the database. The one with the least room left is told. Routers count with the sessions that they have open now.
    """
    each = readers + CONNECTIONS_BESIDE_READERS
    # One shard of all feeds the operations page.
    need = shards * each + 1
    limits = [_Limit(*row) for row in connection.execute(_LIMITS).fetchall()]
    tightest = min(limits, key=lambda limit: limit.most - limit.others)
    left = tightest.most - tightest.others
    found = f"{tightest.used} of {tightest.most} in use, {tightest.others} not by shards; {shards} shards need {need}"
    if tightest.name != "max_connections":
        found = f"{tightest.name}: {found}"
    if need > left:
        wanted = need + 2 * tightest.others + each + 10
        return fail("max_connections", found, f"raise {tightest.name} by {max(1, wanted - tightest.most)} or more")
    if need + each > left or need + tightest.others > 0.9 * tightest.most:
        advice = (
            f"raise {tightest.name} before the next shard or publisher needs a connection: while a shard is replaced, "
            f"its successor has up to {each} as well"
        )
        return warn("max_connections", found, advice)
    return ok("max_connections", found)


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit of sessions: how it is called, how many it allows, how many there are, and how many are not shards'."""

    name: str
    most: int
    used: int
    others: int


def notification_queue(connection: Connection) -> Finding:
    """Whether some session keeps PostgreSQL from forgetting notifications: at 100 % publishing fails."""
    row = connection.execute("select pg_notification_queue_usage()").fetchone()
    assert row is not None
    usage = float(row[0])
    found = f"{usage:.1%} full"
    if usage < QUEUE_WARN:
        return ok("notification queue", found)
    guilty = connection.execute(_LISTENING_IN_TRANSACTION).fetchone()
    who = f"end it: pid {guilty[0]} ({guilty[1] or 'no name'}), with pg_terminate_backend" if guilty else "end it"
    advice = f"a session that listens has a transaction open and hears nothing; {who}"
    return (fail if usage >= QUEUE_FAIL else warn)("notification queue", found, advice)


def open_transactions(connection: Connection) -> Finding:
    """The oldest transaction that holds a stream, since it has numbered events and not ended; or an old snapshot."""
    holding = connection.execute(_HOLDING).fetchone()
    if holding is not None and holding[1] >= HELD_WARN_S:
        pid, age_s, state, name, query, waiting = holding
        found = (
            f"pid {pid} ({name or 'no name'}, {state}) holds streams for {age_s:.0f} s, {waiting} wait: {_short(query)}"
        )
        advice = (
            f"commit sooner, or use publish instead of publish_now; to end it now: select pg_terminate_backend({pid})"
        )
        return (fail if age_s >= HELD_FAIL_S or waiting else warn)("open transactions", found, advice)
    oldest = connection.execute(_OLDEST).fetchone()
    if oldest is not None and oldest[1] >= SNAPSHOT_WARN_S:
        pid, age_s, state, name, query = oldest
        found = f"pid {pid} ({name or 'no name'}, {state}) has a snapshot of {age_s:.0f} s ago: {_short(query)}"
        return warn("open transactions", found, "end it: while it lasts, numbering in busy streams becomes slow")
    return ok("open transactions", "none holds up a stream")


def clock(connection: Connection) -> Finding:
    """How far this machine's clock and PostgreSQL's are apart."""
    before = time.time()
    row = connection.execute("select extract(epoch from clock_timestamp())").fetchone()
    assert row is not None
    skew_s = float(row[0]) - (before + time.time()) / 2
    found = f"PostgreSQL's is {abs(skew_s):.2f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) < SKEW_WARN_S:
        return ok("clocks", found)
    advice = "run an NTP client on both machines: tokens expire, and are revoked, by these clocks"
    return (fail if abs(skew_s) >= SKEW_FAIL_S else warn)("clocks", found, advice)


def _short(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= 60 else f"{text[:59]}…"
