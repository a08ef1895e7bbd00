-- Run by the superuser in the database `headrace` of a release that knew no owner of its own: what the superuser has made
-- there becomes headrace_owner's, but for extensions, and for what follows a table (its sequences and row type).
do $$
declare
    made record;
begin
    for made in
        select format('alter schema %I owner to headrace_owner', n.nspname) as statement from pg_namespace n
            where n.nspowner = 10 and n.oid >= 16384
        union all
        select format('alter table %s owner to headrace_owner', c.oid::regclass) from pg_class c
            where c.relowner = 10 and c.oid >= 16384 and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                and not exists (
                    select from pg_depend d
                        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'e', 'i')
                )
        union all
        select format('alter routine %s owner to headrace_owner', p.oid::regprocedure) from pg_proc p
            where p.proowner = 10 and p.oid >= 16384 and not exists (
                select from pg_depend d
                    where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype in ('e', 'i')
            )
        union all
        select format('alter type %s owner to headrace_owner', t.oid::regtype) from pg_type t
            left join pg_class c on c.oid = t.typrelid
            where t.typowner = 10 and t.oid >= 16384 and (t.typtype in ('d', 'e', 'r') or c.relkind = 'c')
                and not exists (
                    select from pg_depend d
                        where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
                )
    loop
        execute made.statement;
    end loop;
end $$
