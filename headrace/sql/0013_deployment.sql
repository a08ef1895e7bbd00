-- The deployment: which one this database is, and which copy of its tables this is.
--
-- Theory. A database can be copied: a dump restored, in place of it or beside it; CREATE DATABASE … TEMPLATE; a standby
-- promoted; a disk restored. The copy's counters stand where they stood when it was made, below what clients have seen
-- since then. So each copy is an incarnation of its own: ids that it gives out begin above all that any other may have
-- given out, and the jump is recorded. One row says which incarnation wrote it, by what no copy has in common with it:
--
--     timeline    the server's: a promotion and a recovery to a point in time begin another
--     file        the path of the table's file in the data directory. CREATE DATABASE … TEMPLATE, and a table that is
--                 made anew or truncated, have another
--     writer      the transaction that wrote the row, which is the row's own xmin. A program that restores the row from
--                 a dump, or replicates it, is another transaction
--
-- Where these are not the server's own, the next numbering begins an incarnation. A VACUUM FULL of the table, another
-- tablespace, or pg_upgrade may do so too, which costs one jump a stream and nothing else. A disk, or a snapshot of
-- one, that comes back without a recovery cannot be told apart: an operator calls headrace.begin_block then.
--
-- Where ids begin. In microseconds since 1970, by the server's clock: two copies of the same rows never begin at the
-- same id, one that begins later begins above all ids of one that began earlier, as no stream has a million events a
-- second for long, and ids stay below 2^53, so that JavaScript's numbers hold them. In case the clock is behind, never
-- less than MARGIN = 2^20 ids above what a stream has; more than that a fail-over does not lose.
--
-- Where file and writer are null, nobody has published yet, or asked for the identity. The first transaction that does
-- writes them down in passing, and no other waits for that. A copy that was made before is as good as a new database,
-- and its ids begin at 1.
--
-- The identity tells deployments apart that share a Redis. A copy has another identity, except for a promoted standby
-- and a restored disk, which stand for their original. A copy that runs beside its original is given another identity
-- by headrace.begin_block(true).

create table headrace.deployment (
    single boolean primary key default true check (single),
    id uuid not null,
    incarnation bigint not null,
    start bigint not null,
    timeline bigint not null,
    file text,
    writer xid
);
comment on table headrace.deployment is
    'The identity of this deployment, and the incarnation of its tables; one row, written by headrace.begin_block.';
comment on column headrace.deployment.single is 'Always true: there is one row.';
comment on column headrace.deployment.id is 'The identity: no other deployment has it. Read it by headrace.identity().';
comment on column headrace.deployment.incarnation is
    'Number of the incarnation; streams with another in headrace.stream.timeline jump ahead when next published to.';
comment on column headrace.deployment.start is
    'In this incarnation new streams, and those that jump, begin above this id.';
comment on column headrace.deployment.timeline is 'The server''s timeline when the incarnation began.';
comment on column headrace.deployment.file is
    'The path of this table''s file when the row was written; null until somebody publishes.';
comment on column headrace.deployment.writer is
    'The transaction that wrote the row: its xmin, unless it is a copy; null until somebody publishes.';
comment on column headrace.stream.timeline is
    'Number of the incarnation in which last_id was given out. The first incarnations are numbered by timeline.';
comment on table headrace.epoch is
    'What headrace.deployment says now; for numberings that were under way when that was made.';

-- Begins an incarnation, and returns its number. Unless forced, only if the row was not written by the server's own.
create function headrace.begin_block(new_identity boolean default false, forced boolean default true) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    now_on constant bigint := headrace.server_timeline();
    known headrace.deployment;
    copied boolean;
    begun bigint;
    wrote xid;
begin
    select d.* into strict known from headrace.deployment d for update;
    select d.file is distinct from pg_relation_filepath('headrace.deployment') or d.writer is distinct from d.xmin
        into strict copied from headrace.deployment d;
    if not forced and known.timeline = now_on then
        if not copied then
            return known.incarnation;  -- another transaction has begun the incarnation a moment ago
        end if;
        if known.writer is null then
            begun := known.incarnation;
        end if;
    end if;
    if begun is null then
        begun := greatest(extract(epoch from clock_timestamp()) * 1000000, known.start + 1048576);
        known.start := begun;
    end if;
    update headrace.deployment d
        set id = case when copied or new_identity then gen_random_uuid() else d.id end,
            incarnation = begun, start = known.start, timeline = now_on,
            file = pg_relation_filepath('headrace.deployment')
        returning d.xmin into wrote;  -- of this subtransaction, if there is one
    update headrace.deployment d set writer = wrote;
    return begun;
end $$;
comment on function headrace.begin_block(boolean, boolean) is
    'After a disk was restored: ids go on above all that clients have seen. With true it is another deployment, too.';

-- The identity of this deployment. Where nothing can be written, as on a standby, that of the original, if it has one.
create function headrace.identity() returns uuid
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    known headrace.deployment;
    copied boolean;
begin
    select d.* into strict known from headrace.deployment d;
    select d.file is distinct from pg_relation_filepath('headrace.deployment') or d.writer is distinct from d.xmin
        into strict copied from headrace.deployment d;
    if known.writer is null and current_setting('transaction_read_only') = 'on' then
        raise exception 'this database has no identity yet, and cannot be written to' using
            errcode = '25006', hint = 'run `select headrace.identity()` on the primary';
    end if;
    if copied and current_setting('transaction_read_only') = 'off' then
        perform headrace.begin_block(false, false);
        select d.* into strict known from headrace.deployment d;
    end if;
    return known.id;
end $$;
comment on function headrace.identity() is 'The identity of this deployment, which no other has.';

-- What every numbering MUST call before it takes its first stream. It returns the incarnation to number in, and
--   makes the commit durable: an event that a client has seen must survive a crash, or its id would be given out again;
--   begins an incarnation if need be: locked later, between two streams, its row could deadlock with another numbering.
create or replace function headrace.begin_numbering() returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    now_in bigint;
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    select d.incarnation into now_in from headrace.deployment d
        where d.timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
            and d.file = pg_relation_filepath('headrace.deployment') and d.writer = d.xmin;
    if found then
        return now_in;
    end if;
    if not exists (
        select from headrace.deployment d where d.writer is null and d.timeline = headrace.server_timeline()
    ) then
        return headrace.begin_block(false, false);
    end if;
    perform from headrace.deployment d for update skip locked;
    if found then
        return headrace.begin_block(false, false);
    end if;
    -- Another transaction is writing the row for the first time, and keeps the incarnation as it is.
    return (select d.incarnation from headrace.deployment d);
end $$;
comment on function headrace.begin_numbering() is
    'Prepares the transaction for numbering; returns the incarnation for headrace.take_one and headrace.take_all.';

-- Makes a stream unless it exists. It begins above the start of the incarnation.
create or replace function headrace.make_stream(name text, now_on bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    home constant smallint := headrace.slot(name);
    start bigint;
    made int;
begin
    -- The lock on the floor keeps a removal of this stream out until we have committed.
    select greatest(f.floor, d.start) into strict start
        from headrace.slot_floor f, headrace.deployment d where f.slot = home for share of f;
    insert into headrace.stream as s (name, slot, last_id, timeline) values (make_stream.name, home, start, now_on)
        on conflict do nothing returning s.stream_id into made;
    if found and start > 0 then
        insert into headrace.jump (stream_id, from_id, to_id) values (made, 1, start);
    end if;
end $$;

-- Where a stream goes on that was last numbered in another incarnation.
create function headrace.jump_to(last_id bigint) returns bigint
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select greatest(d.start, jump_to.last_id + 1048576) from headrace.deployment d
$$;
comment on function headrace.jump_to(bigint) is
    'The last id of the jump of a stream whose last id is from another incarnation.';

create or replace function headrace.take_one(
    name text, count int, now_on bigint, out stream_id int, out before bigint
)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    found_row headrace.stream;
    head bigint;
    start bigint;
begin
    loop
        update headrace.stream s set last_id = s.last_id + count
            where s.name = take_one.name and s.timeline = now_on
            returning s.stream_id, s.last_id into stream_id, head;
        exit when found;

        select s.* into found_row from headrace.stream s where s.name = take_one.name for update;
        if not found then
            perform headrace.make_stream(take_one.name, now_on);
        elsif found_row.timeline <> now_on then
            start := headrace.jump_to(found_row.last_id);
            insert into headrace.jump (stream_id, from_id, to_id)
                values (found_row.stream_id, found_row.last_id + 1, start);
            update headrace.stream s set last_id = start, timeline = now_on where s.stream_id = found_row.stream_id;
        end if;
    end loop;
    before := head - count;
end $$;

create or replace function headrace.take_all(
    names text[], counts int[], now_on bigint, out stream_ids int[], out befores bigint[]
)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_nestloop to on
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set enable_bitmapscan to off
set enable_material to off
set jit to off
as $$
declare
    wanted constant int := cardinality(names);
    timelines bigint[];
begin
    loop
        if (select count(*) from headrace.stream s where s.name = any (names)) < wanted then
            perform headrace.make_stream(n.name, now_on) from unnest(names) with ordinality as n (name, place)
                where not exists (select from headrace.stream s where s.name = n.name)
                order by n.place;
        end if;
        select array_agg(l.stream_id), array_agg(l.last_id), array_agg(l.timeline)
            into stream_ids, befores, timelines
            from (
                select s.stream_id, s.last_id, s.timeline from headrace.stream s
                    where s.name = any (names) order by s.name for no key update
            ) l;
        -- Otherwise a stream was removed between the two statements. Making it now is out of the order of names; but
        -- only the owner of the schema removes streams, one transaction at a time.
        exit when cardinality(stream_ids) = wanted;
    end loop;
    if now_on <> any (timelines) then
        insert into headrace.jump (stream_id, from_id, to_id)
            select u.stream_id, u.last_id + 1, headrace.jump_to(u.last_id)
                from unnest(stream_ids, befores, timelines) as u (stream_id, last_id, timeline)
                where u.timeline <> now_on;
        befores := array(
            select case when u.timeline = now_on then u.last_id else headrace.jump_to(u.last_id) end
                from unnest(befores, timelines) with ordinality as u (last_id, timeline, place) order by u.place
        );
    end if;
    update headrace.stream s set last_id = u.before + u.count, timeline = now_on
        from unnest(stream_ids, befores, counts) as u (stream_id, before, count) where s.stream_id = u.stream_id;
end $$;

-- Up to this one, the numbers of incarnations are the server's timelines: the streams that exist have these in their
-- rows.
insert into headrace.deployment (id, incarnation, start, timeline, file, writer)
    select gen_random_uuid(), e.timeline, e.block << 40, e.timeline, pg_relation_filepath('headrace.deployment'), '0'
        from headrace.epoch e;
update headrace.deployment d set writer = case when exists (select from headrace.stream) then d.xmin end;

revoke all on headrace.deployment from public;
revoke all on function
    headrace.begin_block(boolean, boolean),
    headrace.identity(),
    headrace.jump_to(bigint)
    from public;
-- The identity is no secret, and the router, which may connect as a publisher, needs it.
grant execute on function headrace.identity() to headrace_publisher;
