"""Who owns the schema: whether code of strangers would run with the rights of the user who works on it.

Every user who migrates, serves or examines the schema `headrace` runs what is in it: a trigger on one of its tables, a
view in place of a table, a function. So all of it MUST belong to roles that this user trusts with its own rights
anyway: itself, superusers, and, unless it is a superuser, roles whose rights it has. And no other role may add to it:
by CREATE on the schema, by TRIGGER on a table, or by an event trigger of the database whose function belongs to another
role.
"""

from typing import Any, Final

from headrace.errors import OwnershipError
from headrace.sql_calls import Call
from headrace.sql_execution import fetch_all

# Reads nothing but catalogs. Each finding has the parts of a sentence, and what to do about it; see require_owned.
_FINDINGS: Final = """
    with me as (select r.oid, r.rolname, r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user),
    trusted as (
        select r.oid from pg_catalog.pg_roles r cross join me
         where r.oid = me.oid or r.rolsuper or not me.rolsuper and pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE')
    ),
    home as (select n.oid, n.nspowner, n.nspacl from pg_catalog.pg_namespace n where n.nspname = 'headrace'),
    owned (what, owner) as (
        select case c.relkind when 'v' then 'the view ' when 'S' then 'the sequence ' else 'the table ' end
                || 'headrace.' || pg_catalog.quote_ident(c.relname), c.relowner
          from pg_catalog.pg_class c join home h on h.oid = c.relnamespace where c.relkind not in ('i', 'I', 't')
        union all
        select 'the function headrace.' || pg_catalog.quote_ident(p.proname), p.proowner
          from pg_catalog.pg_proc p join home h on h.oid = p.pronamespace
        union all
        select 'the type headrace.' || pg_catalog.quote_ident(t.typname), t.typowner
          from pg_catalog.pg_type t join home h on h.oid = t.typnamespace
         where t.typrelid = 0 and t.typcategory <> 'A'
        union all
        select 'the operator ' || o.oprname || ' of the schema headrace', o.oprowner
          from pg_catalog.pg_operator o join home h on h.oid = o.oprnamespace
    ),
    tables as (
        select c.oid, 'headrace.' || pg_catalog.quote_ident(c.relname) as name, c.relacl
          from pg_catalog.pg_class c join home h on h.oid = c.relnamespace
    ),
    found (rank, what, who, way, remedy) as (
        select 0, 'the schema headrace', h.nspowner, 'belongs to',
                'connect as its owner; or, if a stranger has made it, have a superuser drop it'
          from home h
        union all
        select 1, o.what, o.owner, 'belongs to',
                'have a superuser drop it, or give it to the owner of the schema if it is no stranger''s'
          from owned o
        union all
        select 2, 'the trigger ' || pg_catalog.quote_ident(t.tgname) || ' on ' || r.name, p.proowner,
                'runs a function of', 'drop trigger ' || pg_catalog.quote_ident(t.tgname) || ' on ' || r.name
          from pg_catalog.pg_trigger t join tables r on r.oid = t.tgrelid join pg_catalog.pg_proc p on p.oid = t.tgfoid
         where not t.tgisinternal
        union all
        select 3, 'the event trigger ' || pg_catalog.quote_ident(e.evtname), p.proowner, 'runs a function of',
                'drop event trigger ' || pg_catalog.quote_ident(e.evtname)
          from pg_catalog.pg_event_trigger e join pg_catalog.pg_proc p on p.oid = e.evtfoid where e.evtenabled <> 'D'
        union all
        select 4, 'CREATE on the schema headrace', a.grantee, 'was granted to',
                'revoke create on schema headrace from '
                || case a.grantee when 0 then 'public' else pg_catalog.quote_ident(a.grantee::pg_catalog.regrole::text)
                    end
          from home h cross join pg_catalog.aclexplode(h.nspacl) a where a.privilege_type = 'CREATE'
        union all
        select 5, 'TRIGGER on ' || r.name, a.grantee, 'was granted to',
                'revoke trigger on all tables in schema headrace from '
                || case a.grantee when 0 then 'public' else pg_catalog.quote_ident(a.grantee::pg_catalog.regrole::text)
                    end
          from tables r cross join pg_catalog.aclexplode(r.relacl) a where a.privilege_type = 'TRIGGER'
    )
    select f.what, f.way, coalesce(w.rolname, 'public'), me.rolname, f.remedy
      from found f cross join me left join pg_catalog.pg_roles w on w.oid = f.who
     where f.who not in (select t.oid from trusted t)
     order by f.rank, f.what limit 1"""


def require_owned(connection: Any) -> None:
    """Raise OwnershipError if a stranger's code would run with this user's rights, or could be made to.

    Where there is no schema, only event triggers can be found. MUST be called before anything in the schema is used.
    """
    for what, way, who, me, remedy in fetch_all(connection, Call(_FINDINGS, ())):
        raise OwnershipError(f"{what} {way} {who}, whose code would run with the rights of {me}; {remedy}")
