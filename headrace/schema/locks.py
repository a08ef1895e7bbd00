"""The advisory locks of publishing, and strangers that hold them.

PostgreSQL lets every role that may connect take any advisory lock. Two decide whether a publishing transaction numbers
its events by itself (`headrace/sql/schema.sql`, chapter 5):

    office      The session that holds it exclusively is in office, and publishing transactions leave turns to it. A
                stranger that holds it exclusively numbers nothing; a stranger that holds it in share keeps shards
                from taking office.
    deferring   Publishing transactions that leave turns hold it in share. If a stranger holds it exclusively, all
                number by themselves, which is slower where commits are many.

A stranger is a role without the rights of the owner of the schema.
"""

from dataclasses import dataclass
from typing import Any, Final

import psycopg

OFFICE: Final = "office's"
DEFERRING: Final = "publishers'"

_STRANGERS: Final = """
    select coalesce(l.pid, 0),
           coalesce(a.usename::text, (
               select string_agg(distinct p.owner::text, ' or ') from pg_prepared_xacts p
                where p.database = current_database()), '?'),
           case l.objid::bigint when x'72616361'::int then 'office''s' else 'publishers''' end,
           l.mode = 'ExclusiveLock'
      from pg_locks l
      left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.objsubid = 1 and l.classid::bigint = x'68656164'::int
       and (l.objid::bigint = x'72616361'::int or l.objid::bigint = x'72616364'::int and l.mode = 'ExclusiveLock')
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
       and not exists (
           select from pg_roles r cross join pg_namespace n
            where r.rolname = a.usename and n.nspname = 'headrace'
              and pg_has_role(r.oid, n.nspowner, 'USAGE'))
     order by l.granted desc, l.pid"""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A session of a stranger that holds one of the locks, or waits for it.

    pid is 0 for a prepared transaction; role then names all roles that have one. A lock that is held in share may be a
    publishing transaction's, which holds it for microseconds.
    """

    pid: int
    role: str
    lock: str
    exclusive: bool


def strangers(connection: psycopg.Connection[Any]) -> list[Stranger]:
    """Return the strangers that hold the locks of publishing, or wait for them. Yields. Raises psycopg.Error."""
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        return [Stranger(*row) for row in cursor.execute(_STRANGERS.encode())]
