-- Numbering at once, and numbering in rounds for all. headrace/sql/schema.sql, in its chapter on numbering, has the theory.

create or replace function headrace.announce(stream_ids int[]) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    perform pg_notify('headrace_slot_' || s.slot, s.last_id || ' ' || s.name)
        from headrace.stream s where s.stream_id = any (announce.stream_ids);
    -- Not by random(), whose sequence belongs to the caller's session.
    if hashint8(pg_current_xact_id()::text::bigint) & 15 = 0 then
        perform pg_notify('headrace_rate', '');
    end if;
end $$;

create function headrace.require_read_committed(what text) returns void
language plpgsql stable security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        -- The snapshot may be older than events that committed before and have to come first.
        raise exception '% numbers at once, which needs a READ COMMITTED transaction', what using
            errcode = '25001', hint = 'call headrace.publish, whose events get their ids after the commit';
    end if;
end $$;

create or replace function headrace.publish_now(
    stream text,
    data text,
    event text default 'message',
    visible_to text default null
)
returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
as $$
declare
    refusal constant text := headrace.fault(stream, data, event, visible_to);
    taken record;
    given bigint;
begin
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
    perform headrace.require_read_committed('headrace.publish_now');
    taken := headrace.take_one(stream, 1, headrace.begin_numbering());
    given := 1 + (headrace.number_waiting(array[stream], array[taken.stream_id], array[taken.before]))[1];
    insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
        values (taken.stream_id, given, clock_timestamp(), nullif(event, 'message'), data, visible_to);
    perform headrace.announce(array[taken.stream_id]);
    return given;
end $$;

create or replace function headrace.publish_many_now(
    streams text[],
    data text[],
    events text[] default null,
    visible_to text[] default null,
    out ids bigint[]
)
returns bigint[]
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
    perform headrace.check_many(streams, data, events, visible_to);
    ids := '{}';
    if cardinality(streams) = 0 then
        return;
    end if;
    perform headrace.require_read_committed('headrace.publish_many_now');
    select array_agg(g.stream order by g.stream), array_agg(g.events order by g.stream) into names, counts
        from (
            select u.stream collate "C" as stream, count(*)::int as events
                from unnest(publish_many_now.streams) as u (stream) group by 1
        ) g;
    select t.stream_ids, t.befores into stream_ids, befores
        from headrace.take_all(names, counts, headrace.begin_numbering()) t;
    befores := headrace.number_waiting(names, stream_ids, befores);
    with placed as materialized (
        select u.place, t.stream_id, u.type, u.data, u.visible_to,
                t.before + row_number() over (partition by u.stream order by u.place) as id
            from unnest(publish_many_now.streams, publish_many_now.data, events, publish_many_now.visible_to)
                with ordinality as u (stream, data, type, visible_to, place)
            join unnest(names, stream_ids, befores) as t (stream, stream_id, before) on t.stream = u.stream
    ), kept as (
        insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
            select p.stream_id, p.id, clock_timestamp(), nullif(p.type, 'message'), p.data, p.visible_to
                from placed p order by p.place
    )
    select array_agg(p.id order by p.place) into ids from placed p;
    perform headrace.announce(stream_ids);
end $$;

-- For transactions that had staged events when the migration ran: they go on as if they had published just now.
create or replace function headrace.number_staged() returns trigger
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_nestloop to off
set jit to off
as $$
declare
    bell boolean;
begin
    if new.xid <> pg_current_xact_id() then
        return null;
    end if;
    perform set_config('headrace.ringing', '', true);
    bell := headrace.rings(new.xid);
    with staged as (
        delete from headrace.stage g where g.xid = new.xid and g.seq >= new.seq returning g.*
    )
    insert into headrace.payload (xid, stream, type, data, visible_to, rings)
        select s.xid, s.stream, s.type, s.data, s.visible_to, bell and row_number() over (order by s.seq) = 1
            from staged s order by s.seq;
    return null;
end $$;

-- Makes those of the streams that do not exist, in passing: one that another transaction is making is left out.
create function headrace.make_streams(names text[], now_on bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set lock_timeout to '3ms'
as $$
declare
    missing constant text[] := array(
        select n.name from unnest(names) as n (name)
            where not exists (select from headrace.stream s where s.name = n.name) order by n.name collate "C"
    );
    give_up constant timestamptz := clock_timestamp() + interval '30 milliseconds';
    name text;
begin
    if cardinality(missing) = 0 then
        return;
    end if;
    begin
        perform headrace.make_stream(m.name, now_on) from unnest(missing) as m (name);
        return;
    exception when lock_not_available then
        null;  -- one of them is held: try each alone
    end;
    for name in select m.name from unnest(missing) as m (name) order by random() loop
        exit when clock_timestamp() > give_up;
        begin
            perform headrace.make_stream(name, now_on);
        exception when lock_not_available then
            null;
        end;
    end loop;
end $$;

-- A round. Of the turns, it numbers those that are visible in now_seen and that the bound of their stream does not cover.
create function headrace.sequence(out transactions bigint, out skipped bigint, out seen pg_snapshot)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_nestloop to on
set enable_hashjoin to on
set enable_seqscan to off
set enable_mergejoin to off
set enable_bitmapscan to off
set jit to off
as $$
declare
    before pg_snapshot;
    number bigint;
    now_on bigint;
    later xid8;
    were_open xid8[];
    wanted text[];
    held text[];
begin
    perform headrace.require_read_committed('headrace.sequence');
    transactions := 0;
    skipped := 0;
    select k.seen, k.n into before, number from headrace.tick k order by k.n desc limit 1;
    seen := before;
    if not exists (select from headrace.turn t where t.xid >= pg_snapshot_xmax(before))
        and not exists (
            select from pg_snapshot_xip(before) as x (open) join headrace.turn t on t.xid = x.open
        )
        and not exists (select from headrace.behind)
    then
        return;
    end if;
    perform from headrace.round r for no key update skip locked;
    if not found then
        transactions := -1;
        return;
    end if;
    now_on := headrace.begin_numbering();
    if exists (select from headrace.payload p where p.xid = pg_current_xact_id()) then
        return;  -- a snapshot takes its own transaction for ended, and would cover turns that it has not taken yet
    end if;
    -- Once more, as it is since the lock was got.
    select k.seen, k.n into before, number from headrace.tick k order by k.n desc limit 1;
    later := pg_snapshot_xmax(before);
    were_open := array(select pg_snapshot_xip(before));
    seen := pg_current_snapshot();
    wanted := array(
        select t.stream from headrace.turn t where t.xid >= later and pg_visible_in_snapshot(t.xid, seen)
        union
        select t.stream from headrace.turn t where t.xid = any (were_open) and pg_visible_in_snapshot(t.xid, seen)
        union
        select b.stream from headrace.behind b
    );
    perform headrace.make_streams(wanted, now_on);
    held := array(
        select s.name from headrace.stream s where s.name = any (wanted) for no key update skip locked
    );
    -- From here on each statement sees what those have done who had the streams before.
    with late as materialized (
        select b.* from headrace.behind b where b.stream = any (held)
    ), recent as materialized (
        select t.* from headrace.turn t where t.xid >= later and pg_visible_in_snapshot(t.xid, sequence.seen)
        union all
        select t.* from headrace.turn t where t.xid = any (were_open) and pg_visible_in_snapshot(t.xid, sequence.seen)
    ), due as materialized (
        select n.* from recent n
            join (select unnest(held) as stream except select l.stream from late l) h on h.stream = n.stream
        union all
        select w.* from late l
            cross join lateral (
                select t.* from headrace.turn t where t.stream = l.stream and t.xid >= pg_snapshot_xmax(l.seen)
                union all
                select t.* from pg_snapshot_xip(l.seen) as x (open)
                    join headrace.turn t on t.stream = l.stream and t.xid = x.open
            ) w
            where pg_visible_in_snapshot(w.xid, sequence.seen)
    ), fresh as materialized (
        select e.stream, e.xid, e.seq, row_number() over (partition by e.stream order by e.turn, e.seq) as k
            from (
                select d.stream, d.xid, d.from_seq as seq, d.turn from due d where d.alone
                union all
                select p.stream, p.xid, p.seq, d.turn
                    from (select distinct d.xid from due d where not d.alone) x
                    cross join lateral (
                        select p.stream, p.xid, p.seq from headrace.payload p where p.xid = x.xid offset 0
                    ) p
                    join due d on d.xid = p.xid and d.stream = p.stream
                    where not d.alone and p.seq >= d.from_seq
            ) e
    ), heads as materialized (
        select f.stream, s.stream_id, s.last_id, s.slot, f.count, s.timeline = now_on as current,
                case when s.timeline = now_on then s.last_id else headrace.jump_to(s.last_id) end as start
            from (select f.stream, max(f.k) as count from fresh f group by f.stream) f
            cross join lateral (select s.* from headrace.stream s where s.name = f.stream offset 0) s
    ), jumped as (
        insert into headrace.jump (stream_id, from_id, to_id)
            select h.stream_id, h.last_id + 1, h.start from heads h where not h.current
    ), placed as (
        insert into headrace.event (stream_id, id, created_at, xid, seq)
            select h.stream_id, h.start + f.k, clock_timestamp(), f.xid, f.seq
                from fresh f join heads h on h.stream = f.stream
    ), raised as (
        update headrace.stream s set last_id = h.start + h.count, timeline = now_on
            from heads h where s.stream_id = h.stream_id
    ), told as (
        select count(pg_notify('headrace_slot_' || h.slot, (h.start + h.count) || ' ' || h.stream)) from heads h
    )
    select (select count(*) from due) + 0 * told.count into transactions from told;
    delete from headrace.behind b where b.stream = any (held);
    skipped := cardinality(wanted) - cardinality(held);
    if skipped > 0 then
        insert into headrace.behind (stream, seen) select w.stream, before from unnest(wanted) as w (stream)
            where w.stream <> all (held) on conflict do nothing;
    end if;
    insert into headrace.tick (n, seen) values (number + 1, sequence.seen);
    delete from headrace.tick k where k.n = number - 20;
end $$;

-- Removes turns that rounds have numbered, of transactions from `since` on, which is what the last call of this session has
-- returned: so that no call comes across all rows that an old snapshot keeps.
create function headrace.forget_turns(since xid8 default '0') returns xid8
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set jit to off
as $$
declare
    covered constant xid8 := least(
        (select pg_snapshot_xmin(k.seen) from headrace.tick k order by k.n desc limit 1),
        (select min(pg_snapshot_xmin(b.seen)) from headrace.behind b)
    );
begin
    delete from headrace.turn t where t.xid >= since and t.xid < covered;
    return greatest(since, covered);
end $$;

-- For shards of older versions, which call it as the announcer.
create or replace function headrace.announce_since(
    since pg_snapshot default null,
    out transactions bigint,
    out bytes bigint,
    out seen pg_snapshot
)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    select greatest(q.transactions, 0), 0, q.seen into transactions, bytes, seen from headrace.sequence() q;
end $$;
