-- Removes every stream and event of a test's database, in one transaction.
--
-- A stream that is made again begins above its last id, as everywhere else. Where no process of headrace is connected,
-- nobody can have seen an id: then each stream begins at 1 again. That is looked at when the locks are held, with which
-- no process can have read what is removed and gone on afterwards.
do $$
declare
    patience constant text := current_setting('lock_timeout');
    wrote xid;
begin
    perform pg_catalog.set_config('lock_timeout', '5s', true);
    begin
        lock table headrace.payload, headrace.turn, headrace.stream, headrace.event in share row exclusive mode;
    exception when lock_not_available then
        raise exception 'another transaction has published in this database and is still open' using
            errcode = '55P03', hint = 'end it, or close its connection, before the reset';
    end;
    perform pg_catalog.set_config('lock_timeout', patience, true);
    perform headrace.identity();
    delete from headrace.turn;
    delete from headrace.behind;
    delete from headrace.stream;
    delete from headrace.payload;
    delete from headrace.publication;
    if not exists (
        select from pg_catalog.pg_stat_activity a
         where a.datname = current_database() and a.application_name ~ '^headrace ' and a.pid <> pg_backend_pid()
    ) then
        delete from headrace.revocation;
        delete from headrace.presence_holder;
        delete from headrace.presence_member;
        delete from headrace.presence;
        update headrace.slot_floor set floor = 0 where floor > 0;
        update headrace.deployment d set start = 0 returning d.xmin into wrote;
        update headrace.deployment d set writer = wrote;
    end if;
end $$;
