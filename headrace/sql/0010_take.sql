-- Numbering all streams of a transaction at once, and announcing them together.
--
-- The order of locks, which keeps numberings from deadlocking with each other: first the streams that do not exist yet
-- are made, in the order of their names; then the rows of all are locked, in the order of their names. A transaction in
-- the first phase waits for makers only, in that order, and holds no row that others could be waiting for in the
-- second; one in the second phase waits for rows that are committed, in that order. UPDATE promises no order, so the rows
-- are locked before it by a SELECT that does. Under READ COMMITTED that SELECT returns what the rows are once it has
-- them, and the UPDATE, which begins then, changes exactly those.
--
-- headrace.take, which also notifies, stays for numberings that are under way when this file is applied.

-- Makes a stream unless it exists. Who makes several MUST do so in the order of their names.
create function headrace.make_stream(name text, now_on bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    home constant smallint := headrace.slot(name);
    start bigint;
    made int;
begin
    -- The lock on the floor keeps a removal of this stream out until we have committed.
    select greatest(f.floor, e.block << 40) into strict start
        from headrace.slot_floor f, headrace.epoch e where f.slot = home for share of f;
    insert into headrace.stream as s (name, slot, last_id, timeline) values (make_stream.name, home, start, now_on)
        on conflict do nothing returning s.stream_id into made;
    if found and start > 0 then
        insert into headrace.jump (stream_id, from_id, to_id) values (made, 1, start);
    end if;
end $$;
comment on function headrace.make_stream(text, bigint) is
    'Creates a stream that has no row; waits for whoever else is creating it.';

-- Gives out the next `count` ids of a stream, from before + 1 on. The lock on the stream's row is held until the
-- transaction ends. The caller announces the new head, and takes no second stream this way: see headrace.take_all.
-- `now_on` is from headrace.begin_numbering.
create function headrace.take_one(
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
            start := ((found_row.last_id >> 40) + greatest(now_on - found_row.timeline, 1)) << 40;
            insert into headrace.jump (stream_id, from_id, to_id)
                values (found_row.stream_id, found_row.last_id + 1, start);
            update headrace.stream s set last_id = start, timeline = now_on where s.stream_id = found_row.stream_id;
        end if;
    end loop;
    before := head - count;
end $$;
comment on function headrace.take_one(text, int, bigint) is
    'Gives out ids before + 1 .. before + count of a stream, creating it if needed.';

-- Gives out ids of many streams: of each as many as counts says, from before + 1 on. names MUST be sorted (collation
-- "C"), each once. The rows' locks are held until the transaction ends; the caller announces the new heads.
-- The settings force the one plan that is right for any number of streams: a probe per stream.
create function headrace.take_all(
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
        -- Else a stream was removed between the two; making it now is out of order, but who removes one is alone.
        exit when cardinality(stream_ids) = wanted;
    end loop;
    if now_on <> any (timelines) then
        insert into headrace.jump (stream_id, from_id, to_id)
            select u.stream_id, u.last_id + 1, ((u.last_id >> 40) + greatest(now_on - u.timeline, 1)) << 40
                from unnest(stream_ids, befores, timelines) as u (stream_id, last_id, timeline)
                where u.timeline <> now_on;
        befores := array(
            select case when u.timeline = now_on then u.last_id
                    else ((u.last_id >> 40) + greatest(now_on - u.timeline, 1)) << 40 end
                from unnest(befores, timelines) with ordinality as u (last_id, timeline, place) order by u.place
        );
    end if;
    update headrace.stream s set last_id = u.before + u.count, timeline = now_on
        from unnest(stream_ids, befores, counts) as u (stream_id, before, count) where s.stream_id = u.stream_id;
end $$;
comment on function headrace.take_all(text[], int[], bigint) is
    'Gives out ids of many streams in one statement, creating those that are missing.';

-- The plan of every statement is forced: the statistics of a table that is empty between transactions are useless, and
-- a nested loop or a sequential scan would make the cost of a transaction the square of its events.
create or replace function headrace.number_staged() returns trigger
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_nestloop to off
set jit to off
as $$
declare
    names text[];
    counts int[];
    stream_ids int[];
    befores bigint[];
begin
    perform set_config('headrace.ringing', '', true);
    select array_agg(g.stream order by g.stream), array_agg(g.events order by g.stream) into names, counts
        from (
            select g.stream, count(*)::int as events from headrace.stage g
                where g.xid = new.xid and g.seq >= new.seq group by g.stream
        ) g;
    if cardinality(names) = 1 then  -- as most have, which are spared the statements for many
        select array[t.stream_id], array[t.before] into stream_ids, befores
            from headrace.take_one(names[1], counts[1], headrace.begin_numbering()) t;
    else
        select t.stream_ids, t.befores into stream_ids, befores
            from headrace.take_all(names, counts, headrace.begin_numbering()) t;
    end if;
    insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
        select t.stream_id, t.before + row_number() over (partition by g.stream order by g.seq), clock_timestamp(),
                g.type, g.data, g.visible_to
            from headrace.stage g
            join unnest(names, stream_ids, befores) as t (stream, stream_id, before) on t.stream = g.stream
            where g.xid = new.xid and g.seq >= new.seq;
    delete from headrace.stage g where g.xid = new.xid and g.seq >= new.seq;
    perform headrace.announce(stream_ids);
    return null;
end $$;

-- As before, but that it announces what it has taken.
create or replace function headrace.publish_now(
    stream text, data text, event text default 'message', visible_to text default null
) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
as $$
declare
    refusal constant text := headrace.fault(stream, data, event, visible_to);
    taken record;
begin
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
    taken := headrace.take_one(stream, 1, headrace.begin_numbering());
    insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
        values (taken.stream_id, taken.before + 1, clock_timestamp(), nullif(event, 'message'), data, visible_to);
    perform headrace.announce(array[taken.stream_id]);
    return taken.before + 1;
end $$;

revoke all on all functions in schema headrace from public;
