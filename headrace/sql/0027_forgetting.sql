-- Idle streams are forgotten: a stream that has had no event and no subscriber for long loses its row, its marks and
-- its jumps. What is left is one number for each slot, so that no id ever comes back, and no gap is kept from a client.
-- The theory is in headrace/sql/schema.sql, chapter 7.
--
-- slot_floor and trimmed are altered in the order in which streams are made. Neither is rewritten.

alter table headrace.slot_floor add column forgotten bigint not null default 0;
comment on column headrace.slot_floor.forgotten is
    'The highest head that any forgotten stream of this slot had; 0 if none was forgotten.';
comment on column headrace.slot_floor.floor is
    'New streams of this slot begin above this id, because of streams that were removed by hand.';
comment on table headrace.slot_floor is
    'Per slot the highest id of any removed and of any forgotten stream: a stream made again begins above both.';

alter table headrace.trimmed
    add column used_at timestamptz not null default now(),
    add column begins_after bigint not null default 0;
alter table headrace.trimmed set (autovacuum_vacuum_scale_factor = 0.02);
comment on table headrace.trimmed is
    'The mark of retention per stream that has lost events, or that was made in a slot with forgotten streams.';
comment on column headrace.trimmed.used_at is
    'When the stream last lost an event, or a shard last noted that it has a subscriber.';
comment on column headrace.trimmed.begins_after is
    'Ids up to this one are of forgotten streams: the stream was made above them. 0 if there were none.';
comment on table headrace.stream is
    'Every stream that was published to and is not forgotten, with the head of its log.';

create table headrace.forgetting (
    single boolean primary key default true check (single),
    walked_to int not null default 0,
    next_at timestamptz not null default '-infinity'
);
comment on table headrace.forgetting is
    'How far the search for idle streams has got; one row, whose lock lets one session forget at a time.';
comment on column headrace.forgetting.single is 'Always true: there is one row.';
comment on column headrace.forgetting.walked_to is
    'The streams up to this stream_id have been looked at; 0 while no search is under way.';
comment on column headrace.forgetting.next_at is 'When the next search begins.';
insert into headrace.forgetting default values;

-- For a forgotten stream the slot's number `forgotten` was raised before. A stream that is removed by hand leaves its
-- floor above that number, so that a shard does not take it for a forgotten one, of which its clients have missed nothing.
create or replace function headrace.stream_removed() returns trigger
language plpgsql security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('headrace.forgetting', true) is distinct from 'on' then
        update headrace.slot_floor f set floor = greatest(old.last_id, nullif(f.forgotten, 0) + 1)
            where f.slot = old.slot and f.floor < greatest(old.last_id, nullif(f.forgotten, 0) + 1);
    end if;
    with gone as (
        delete from headrace.event e where e.stream_id = old.stream_id returning e.xid, e.seq
    )
    delete from headrace.payload p using gone g where p.xid = g.xid and p.seq = g.seq;
    delete from headrace.trimmed t where t.stream_id = old.stream_id;
    delete from headrace.removed r where r.stream_id = old.stream_id;
    delete from headrace.jump j where j.stream_id = old.stream_id;
    return null;
end $$;

create or replace function headrace.streams_truncated() returns trigger
language plpgsql security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot may be older than the lock, and would show lower heads than clients have seen.
        raise exception 'headrace.stream can be truncated in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    update headrace.slot_floor f set floor = greatest(f.floor, s.last_id, nullif(f.forgotten, 0) + 1)
        from (select slot, max(last_id) as last_id from headrace.stream group by slot) s where s.slot = f.slot;
    delete from headrace.payload p using headrace.event e where p.xid = e.xid and p.seq = e.seq;
    truncate headrace.event, headrace.trimmed, headrace.removed, headrace.jump;
    return null;
end $$;

-- In a slot with forgotten streams a new stream may be one of them, made again. So it begins above all of them, with
-- the mark that what came before is no longer kept.
create or replace function headrace.make_stream(name text, now_on bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    home constant smallint := headrace.slot(name);
    known headrace.slot_floor;
    start bigint;
    made int;
begin
    -- The lock on the row keeps a removal of this stream out until we have committed, and shows the newest numbers.
    select f.* into strict known from headrace.slot_floor f where f.slot = home for share;
    select greatest(known.floor, known.forgotten, d.start) into strict start from headrace.deployment d;
    insert into headrace.stream as s (name, slot, last_id, timeline) values (make_stream.name, home, start, now_on)
        on conflict do nothing returning s.stream_id into made;
    if not found then
        return;
    end if;
    if known.forgotten > 0 then
        insert into headrace.trimmed (stream_id, trimmed_to, used_at, begins_after)
            values (made, start, clock_timestamp(), known.forgotten);
    elsif start > 0 then
        insert into headrace.jump (stream_id, from_id, to_id) values (made, 1, start);
    end if;
end $$;

-- The statements below look up each name or number by itself, whatever PostgreSQL believes of the table's size: soon
-- after nearly all streams were forgotten it takes the table for empty, and a join would go through all of it for each
-- name. A subquery for a single value is never turned into a join, nor is `= any`; width_bucket finds a number's place
-- in a sorted array by halving.

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
    missing text[];
    ids int[];
    heads bigint[];
begin
    loop
        begin
            if (select count(*) from headrace.stream s where s.name = any (names)) < wanted then
                missing := array(
                    select n.name from unnest(names) with ordinality as n (name, place)
                        where (select s.stream_id from headrace.stream s where s.name = n.name) is null
                        order by n.place
                );
                perform headrace.make_stream(m.name, now_on) from unnest(missing) as m (name);
            end if;
            select array_agg(l.stream_id), array_agg(l.last_id), array_agg(l.timeline)
                into stream_ids, befores, timelines
                from (
                    select s.stream_id, s.last_id, s.timeline from headrace.stream s
                        where s.name = any (names) order by s.name for no key update
                ) l;
            exit when cardinality(stream_ids) = wanted;
            raise exception using errcode = '22HR3';
        exception when sqlstate '22HR3' then
            -- A stream was forgotten, or removed, between the two statements. Making it now would be out of the order
            -- of names, and two transactions could wait for each other. So all streams that were made and locked are
            -- given back, and taken anew.
            null;
        end;
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
    select array_agg(u.stream_id order by u.stream_id), array_agg(u.before + u.count order by u.stream_id)
        into ids, heads from unnest(stream_ids, befores, counts) as u (stream_id, before, count);
    update headrace.stream s set last_id = heads[width_bucket(s.stream_id, ids)], timeline = now_on
        where s.stream_id = any (ids);
end $$;

create or replace function headrace.number_waiting(streams text[], stream_ids int[], befores bigint[]) returns bigint[]
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_mergejoin to off
set jit to off
as $$
declare
    names text[];
    xids xid8[];
    turns bigint[];
    froms bigint[];
    alones boolean[];
    counts bigint[];
    raised int[];
    mores bigint[];
begin
    select array_agg(w.stream), array_agg(w.xid), array_agg(w.turn), array_agg(w.from_seq), array_agg(w.alone)
        into names, xids, turns, froms, alones from headrace.waiting(streams) w;
    if names is null then
        return befores;
    end if;
    with due as materialized (
        select u.* from unnest(names, xids, turns, froms, alones) as u (stream, xid, turn, from_seq, alone)
    ), fresh as materialized (
        select p.stream, p.xid, p.seq, row_number() over (partition by p.stream order by d.turn, p.seq) as k
            from (select distinct d.xid from due d) x
            cross join lateral (
                select p.stream, p.xid, p.seq from headrace.payload p where p.xid = x.xid offset 0
            ) p
            join due d on d.xid = p.xid and d.stream = p.stream
            where case when d.alone then p.seq = d.from_seq else p.seq >= d.from_seq end
    ), placed as (
        insert into headrace.event (stream_id, id, created_at, xid, seq)
            select s.stream_id, s.before + f.k, clock_timestamp(), f.xid, f.seq
                from fresh f
                join unnest(number_waiting.streams, stream_ids, befores) as s (stream, stream_id, before)
                    on s.stream = f.stream
    ), gone as (
        delete from headrace.turn t using due d where t.stream = d.stream and t.xid = d.xid
    )
    select array_agg(coalesce(f.k, 0) order by s.place) into counts
        from unnest(number_waiting.streams) with ordinality as s (stream, place)
        left join (select f.stream, max(f.k) as k from fresh f group by f.stream) f on f.stream = s.stream;
    select array_agg(u.stream_id order by u.stream_id), array_agg(u.more order by u.stream_id) into raised, mores
        from unnest(stream_ids, counts) as u (stream_id, more) where u.more > 0;
    update headrace.stream s set last_id = s.last_id + mores[width_bucket(s.stream_id, raised)]
        where s.stream_id = any (raised);
    return array(
        select u.before + u.more from unnest(befores, counts) with ordinality as u (before, more, place) order by u.place
    );
end $$;

create or replace function headrace.make_streams(names text[], now_on bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set lock_timeout to '3ms'
as $$
declare
    missing constant text[] := array(
        select n.name from unnest(names) as n (name)
            where (select s.stream_id from headrace.stream s where s.name = n.name) is null order by n.name collate "C"
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

create or replace function headrace.sequence(out transactions bigint, out skipped bigint, out seen pg_snapshot)
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
    ), sorted as materialized (
        select array_agg(h.stream_id order by h.stream_id) as stream_ids,
                array_agg(h.start + h.count order by h.stream_id) as heads
            from heads h
    ), jumped as (
        insert into headrace.jump (stream_id, from_id, to_id)
            select h.stream_id, h.last_id + 1, h.start from heads h where not h.current
    ), placed as (
        insert into headrace.event (stream_id, id, created_at, xid, seq)
            select h.stream_id, h.start + f.k, clock_timestamp(), f.xid, f.seq
                from fresh f join heads h on h.stream = f.stream
    ), raised as (
        update headrace.stream s
            set last_id = (select o.heads from sorted o)[
                    width_bucket(s.stream_id, (select o.stream_ids from sorted o))
                ],
                timeline = now_on
            where s.stream_id = any ((select o.stream_ids from sorted o)::int[])
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

-- The head of a stream that does not exist.
create function headrace.missing_head(stream text) returns bigint
language sql stable strict security definer
set search_path to pg_catalog, pg_temp
as $$
    select coalesce((
        select greatest(f.forgotten, f.floor, d.start) from headrace.slot_floor f cross join headrace.deployment d
            where f.slot = headrace.slot(missing_head.stream)::smallint and f.forgotten > 0
    ), 0)
$$;
comment on function headrace.missing_head(text) is
'The head of a stream that does not exist: 0, or where it would begin in a slot of which streams were forgotten.

It may have been one of these. A client that begins there misses nothing of what is published later, whether the stream
is new or made again.';

create or replace function headrace.head(stream text) returns bigint
language sql stable strict security definer
set search_path to pg_catalog, pg_temp
as $$
    select coalesce(
        (select s.last_id from headrace.stream s where s.name = head.stream), headrace.missing_head(head.stream)
    )
$$;
comment on function headrace.head(text) is
'The head of a stream: its last id. That of a stream without a row is 0, or where it would begin, if streams of its slot
were forgotten.

It is read in the snapshot of the calling statement. The head MUST be read before a page''s data, or in one REPEATABLE
READ transaction with them: then no event is lost, and one that commits at that time may be delivered although the page
shows it already. headrace.watermark is exact.';

create or replace function headrace.watermark(stream text) returns text
language plpgsql stable strict security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_nestloop to on
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    most constant int := 500;
    head bigint;
    seqs bigint[];
begin
    with bound as materialized (
        select coalesce(
            (select b.seen from headrace.behind b where b.stream = watermark.stream),
            (select k.seen from headrace.tick k order by k.n desc limit 1)
        ) as seen
    ), pending as (
        select p.seq
            from bound b
            cross join lateral (
                select t.* from headrace.turn t where t.stream = watermark.stream and t.xid >= pg_snapshot_xmax(b.seen)
                union all
                select t.* from pg_snapshot_xip(b.seen) as x (open)
                    join headrace.turn t on t.stream = watermark.stream and t.xid = x.open
            ) t
            join headrace.payload p on p.xid = t.xid and p.stream = t.stream
                and case when t.alone then p.seq = t.from_seq else p.seq >= t.from_seq end
            where t.xid is distinct from pg_current_xact_id_if_assigned()
            limit most + 1
    )
    select coalesce(
                (select s.last_id from headrace.stream s where s.name = watermark.stream),
                headrace.missing_head(watermark.stream)
            ),
            (select array_agg(p.seq order by p.seq) from pending p)
        into head, seqs;
    if seqs is null or cardinality(seqs) > most then
        return head;
    end if;
    return head || (
        select string_agg('-' || u.seq - u.before, '' order by u.seq)
            from (select n.seq, coalesce(lag(n.seq) over (order by n.seq), 0) as before from unnest(seqs) as n (seq)) u
    );
end $$;

-- What headrace.read_events did, with begins_after.
create function headrace.read_log(
    streams text[],
    after bigint[],
    max_events int,
    max_bytes bigint,
    total_bytes bigint
)
returns table (
    ordinal int,
    head bigint,
    trimmed_to bigint,
    begins_after bigint,
    jumps bigint[],
    audiences text[],
    removed_to bigint[],
    unread boolean,
    id bigint,
    seq bigint,
    created_at timestamptz,
    type text,
    data text,
    visible_to text
)
language plpgsql stable security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_nestloop to on
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set enable_bitmapscan to off
set enable_material to off
set enable_memoize to off
set jit to off
as $$
begin
    if cardinality(streams) = 1 then
        -- Most reads are of one stream with one new event; they are spared the sums over all pages.
        return query
            select 1, coalesce(s.last_id, g.head, 0), coalesce(t.trimmed_to, g.head, 0),
                    coalesce(t.begins_after, g.begins_after, 0), j.bounds,
                    case when t.trimmed_to > c.after then (
                        select array_agg(m.visible_to order by m.visible_to) from headrace.removed m
                            where m.stream_id = s.stream_id and m.removed_to > c.after
                    ) end,
                    case when t.trimmed_to > c.after then (
                        select array_agg(m.removed_to order by m.visible_to) from headrace.removed m
                            where m.stream_id = s.stream_id and m.removed_to > c.after
                    ) end,
                    false, e.id, e.seq, e.created_at, e.type, e.data, e.visible_to
                from unnest(streams, read_log.after) as c (name, after)
                left join lateral (
                    select n.stream_id, n.last_id from headrace.stream n where n.name = c.name offset 0
                ) s on true
                left join lateral (
                    select m.trimmed_to, m.begins_after from headrace.trimmed m
                        where m.stream_id = s.stream_id offset 0
                ) t on true
                left join lateral (
                    select greatest(f.forgotten, f.floor, d.start) as head, f.forgotten as begins_after
                        from headrace.slot_floor f cross join headrace.deployment d
                        where s.stream_id is null and f.slot = headrace.slot(c.name)::smallint
                            and f.forgotten > 0 and d.single
                        offset 0
                ) g on true
                left join lateral (
                    select case when s.last_id - 1 > c.after then (
                        select array_agg(b.bound order by q.to_id, b.bound)
                            from headrace.jump q
                            cross join lateral (values (q.from_id), (q.to_id)) as b (bound)
                            where q.stream_id = s.stream_id and q.to_id > c.after
                    ) end as bounds
                ) j on true
                left join lateral (
                    (select n.id, n.seq, n.created_at, coalesce(p.type, n.type) as type,
                            coalesce(p.data, n.data) as data, coalesce(p.visible_to, n.visible_to) as visible_to
                        from headrace.event n left join headrace.payload p on p.xid = n.xid and p.seq = n.seq
                        where s.last_id - 1 = c.after and n.stream_id = s.stream_id and n.id = s.last_id
                            and n.id > coalesce(t.trimmed_to, 0)
                        limit max_events)
                    union all
                    select m.id, m.seq, m.created_at, m.type, m.data, m.visible_to
                        from (
                            select p.*,
                                    sum(256 + octet_length(p.data)) over ordered as total,
                                    sum(octet_length(p.data)) over ordered as bytes,
                                    row_number() over ordered as number
                                from (
                                    select v.id, v.seq, v.created_at, coalesce(l.type, v.type) as type,
                                            coalesce(l.data, v.data) as data,
                                            coalesce(l.visible_to, v.visible_to) as visible_to
                                        from headrace.event v
                                        left join headrace.payload l on l.xid = v.xid and l.seq = v.seq
                                        where v.stream_id = s.stream_id
                                            and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                        order by v.id limit max_events
                                ) p
                                window ordered as (order by p.id rows unbounded preceding)
                        ) m
                        where s.last_id - 1 > c.after
                            and (m.bytes <= max_bytes and m.total <= total_bytes or m.number = 1)
                ) e on e.data is not null
                order by e.id;
        return;
    end if;
    return query
        select f.place, f.head, f.trimmed_to, f.begins_after, f.jumps,
                case when f.first and f.trimmed_to > f.after then (
                    select array_agg(m.visible_to order by m.visible_to) from headrace.removed m
                        where m.stream_id = f.stream_id and m.removed_to > f.after
                ) end,
                case when f.first and f.trimmed_to > f.after then (
                    select array_agg(m.removed_to order by m.visible_to) from headrace.removed m
                        where m.stream_id = f.stream_id and m.removed_to > f.after
                ) end,
                f.id is not null and not f.fits,
                case when f.fits then f.id end, case when f.fits then f.seq end,
                case when f.fits then f.created_at end, case when f.fits then f.type end,
                case when f.fits then f.data end, case when f.fits then f.visible_to end
            from (
                select r.*, r.total <= total_bytes or r.total = r.size as fits
                    from (
                        select c.place::int as place, coalesce(s.last_id, g.head, 0) as head,
                                coalesce(t.trimmed_to, g.head, 0) as trimmed_to,
                                coalesce(t.begins_after, g.begins_after, 0) as begins_after,
                                j.bounds as jumps, s.stream_id, c.after, e.*,
                                sum(e.size) over ordered as total,
                                lag(c.place) over ordered is distinct from c.place as first
                            from unnest(streams, read_log.after) with ordinality as c (name, after, place)
                            left join lateral (
                                select n.stream_id, n.last_id from headrace.stream n where n.name = c.name offset 0
                            ) s on true
                            left join lateral (
                                select m.trimmed_to, m.begins_after from headrace.trimmed m
                                    where m.stream_id = s.stream_id offset 0
                            ) t on true
                            left join lateral (
                                select greatest(f.forgotten, f.floor, d.start) as head, f.forgotten as begins_after
                                    from headrace.slot_floor f cross join headrace.deployment d
                                    where s.stream_id is null and f.slot = headrace.slot(c.name)::smallint
                                        and f.forgotten > 0 and d.single
                                    offset 0
                            ) g on true
                            left join lateral (
                                select case when s.last_id - 1 > c.after then (
                                    select array_agg(b.bound order by q.to_id, b.bound)
                                        from headrace.jump q
                                        cross join lateral (values (q.from_id), (q.to_id)) as b (bound)
                                        where q.stream_id = s.stream_id and q.to_id > c.after
                                ) end as bounds
                            ) j on true
                            left join lateral (
                                (select n.id, n.seq, n.created_at, coalesce(p.type, n.type) as type,
                                        coalesce(p.data, n.data) as data,
                                        coalesce(p.visible_to, n.visible_to) as visible_to,
                                        256 + octet_length(coalesce(p.data, n.data)) as size
                                    from headrace.event n
                                    left join headrace.payload p on p.xid = n.xid and p.seq = n.seq
                                    where s.last_id - 1 = c.after and n.stream_id = s.stream_id and n.id = s.last_id
                                        and n.id > coalesce(t.trimmed_to, 0)
                                    limit max_events)
                                union all
                                select m.id, m.seq, m.created_at, m.type, m.data, m.visible_to, 256 + m.length
                                    from (
                                        select p.*, octet_length(p.data) as length,
                                                sum(octet_length(p.data)) over inner_ordered as bytes,
                                                row_number() over inner_ordered as number
                                            from (
                                                select v.id, v.seq, v.created_at, coalesce(l.type, v.type) as type,
                                                        coalesce(l.data, v.data) as data,
                                                        coalesce(l.visible_to, v.visible_to) as visible_to
                                                    from headrace.event v
                                                    left join headrace.payload l on l.xid = v.xid and l.seq = v.seq
                                                    where v.stream_id = s.stream_id
                                                        and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                                    order by v.id limit max_events
                                            ) p
                                            window inner_ordered as (order by p.id rows unbounded preceding)
                                    ) m
                                    where s.last_id - 1 > c.after and (m.bytes <= max_bytes or m.number = 1)
                            ) e on e.data is not null
                            window ordered as (order by c.place, e.id rows unbounded preceding)
                    ) r
            ) f
            -- A stream without events has no size, so `fits` is null there.
            where f.fits is not false or f.first
            order by f.place, f.id;
end $$;
comment on function headrace.read_log(text[], bigint[], int, bigint, bigint) is
'What the streams have after the given ids, all in one snapshot and within a number of bytes. For shards.

streams, after: belong together by position; a null in after asks for the head alone.
max_events, max_bytes (of data): bound the page of each stream; its first event is returned even if it has more bytes.
total_bytes: bounds all pages together, counting 256 bytes for each event beside its data; the first event of the
first page that has any is returned whatever it has.
Returns, for each position, at least one row, whose event columns are null if there is no event; in the order of
ordinal and id:
ordinal: position in streams, from 1.
head: the last id of the stream; that of headrace.missing_head for a stream that does not exist.
trimmed_to: events up to this id are no longer kept; 0 if all are; the head of a stream that does not exist.
begins_after: ids up to this one are of forgotten streams; 0 if there are none in the stream''s slot, or were none when
the stream was made.
jumps: {from, to, from, to, …}, the recorded jumps that end above after, in order; null if there are none.
audiences, removed_to: with a trimmed_to above after, the audiences whose events above after were removed, '''' for
events that everybody may see, and the newest of each; null if that is not known.
unread: true in the one row of a stream that has events for which the bytes did not suffice; its id is null.
id, created_at: the event''s place, as in headrace.event.
seq: as in headrace.payload, by which a watermark names an event without an id; null for an event that never was one.
type, data, visible_to: what was published.';

create or replace function headrace.read_events(
    streams text[],
    after bigint[],
    max_events int,
    max_bytes bigint,
    total_bytes bigint
)
returns table (
    ordinal int,
    head bigint,
    trimmed_to bigint,
    jumps bigint[],
    audiences text[],
    removed_to bigint[],
    unread boolean,
    id bigint,
    seq bigint,
    created_at timestamptz,
    type text,
    data text,
    visible_to text
)
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select e.ordinal, e.head, e.trimmed_to, e.jumps, e.audiences, e.removed_to, e.unread,
            e.id, e.seq, e.created_at, e.type, e.data, e.visible_to
        from headrace.read_log(streams, after, max_events, max_bytes, total_bytes) e
$$;
comment on function headrace.read_events(text[], bigint[], int, bigint, bigint) is
    'headrace.read_log without begins_after, for shards of older versions.';

-- As before, and notes that the stream was in use.
create or replace function headrace.cut(stream_ids int[], up_to bigint[], batch int) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    most constant int := 64;
    removed bigint;
    labelled int[];
begin
    with doomed as materialized (
        select d.stream_id, d.id, d.xid, d.seq
            from unnest(stream_ids, cut.up_to) with ordinality as t (stream_id, up_to, place)
            cross join lateral (
                select e.stream_id, e.id, e.xid, e.seq from headrace.event e
                    where e.stream_id = t.stream_id and e.id <= t.up_to order by e.id limit batch
            ) d
            order by t.place, d.id limit batch
    ), emptied as (
        delete from headrace.payload p using doomed d where p.xid = d.xid and p.seq = d.seq
            returning d.stream_id, d.id, p.visible_to
    ), deleted as (
        delete from headrace.event e using doomed d where e.stream_id = d.stream_id and e.id = d.id
            returning e.stream_id, e.id, e.visible_to, e.seq
    ), gone as materialized (
        select e.stream_id, e.id, e.visible_to from emptied e
        union all
        select d.stream_id, d.id, d.visible_to from deleted d where d.seq is null
    ), marked as (
        insert into headrace.trimmed as m (stream_id, trimmed_to, used_at)
            select d.stream_id, max(d.id), clock_timestamp() from deleted d group by d.stream_id
            on conflict (stream_id) do update
                set trimmed_to = greatest(m.trimmed_to, excluded.trimmed_to), used_at = excluded.used_at
    ), told as (
        -- Of each stream whose removed events have audiences, or had them before: one row per audience, and always one
        -- for the events that everybody may see.
        select g.stream_id, coalesce(g.visible_to, '') as visible_to, max(g.id) as removed_to
            from gone g
            where exists (select from headrace.removed r where r.stream_id = g.stream_id)
                or g.stream_id in (select o.stream_id from gone o where o.visible_to is not null)
            group by g.stream_id, coalesce(g.visible_to, '')
    ), noted as (
        insert into headrace.removed as m (stream_id, visible_to, removed_to)
            select n.stream_id, n.visible_to, max(n.removed_to)
                from (
                    select t.* from told t
                    union all
                    select distinct t.stream_id, '', b.trimmed_to from told t
                        join headrace.trimmed b on b.stream_id = t.stream_id
                        where not exists (select from headrace.removed r where r.stream_id = t.stream_id)
                ) n
                group by n.stream_id, n.visible_to
            on conflict (stream_id, visible_to) do update set removed_to = greatest(m.removed_to, excluded.removed_to)
            returning m.stream_id, m.visible_to
    )
    select (select count(*) from deleted),
            (select array_agg(distinct n.stream_id) from noted n where n.visible_to <> '')
        into removed, labelled;
    if labelled is not null then
        with old as (
            delete from headrace.removed r
                using (
                    select o.stream_id, o.visible_to,
                            row_number() over (partition by o.stream_id order by o.removed_to desc) as place
                        from headrace.removed o where o.stream_id = any (labelled) and o.visible_to <> ''
                ) o
                where r.stream_id = o.stream_id and r.visible_to = o.visible_to and o.place > most
                returning r.stream_id, r.removed_to
        )
        insert into headrace.removed as m (stream_id, visible_to, removed_to)
            select o.stream_id, '', max(o.removed_to) from old o group by o.stream_id
            on conflict (stream_id, visible_to) do update set removed_to = greatest(m.removed_to, excluded.removed_to);
    end if;
    return removed;
end $$;

create function headrace.note_used(streams text[], keep interval) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set enable_bitmapscan to off
set jit to off
as $$
declare
    stale constant timestamptz := clock_timestamp() - keep / 8;
    idle int[];
    noted bigint;
begin
    idle := array(
        select t.stream_id from unnest(streams) as u (name)
            cross join lateral (select n.stream_id from headrace.stream n where n.name = u.name offset 0) s
            cross join lateral (
                select m.stream_id from headrace.trimmed m
                    where m.stream_id = s.stream_id and m.used_at < stale offset 0
            ) t
    );
    idle := array(
        select m.stream_id from headrace.trimmed m where m.stream_id = any (idle) for no key update skip locked
    );
    update headrace.trimmed m set used_at = clock_timestamp() where m.stream_id = any (idle);
    get diagnostics noted = row_count;
    return noted;
end $$;
comment on function headrace.note_used(text[], interval) is
'Notes that these streams have subscribers, so that headrace.forget_streams passes them over. For shards.

A shard MUST call it at least every eighth of keep, with all streams that have had a subscriber since its last call. It
writes only where the last note is older than an eighth of keep.
Returns how many notes were written.';

create function headrace.forget_streams(keep interval, batch int, out forgotten int, out more boolean)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_mergejoin to off
set enable_bitmapscan to off
set jit to off
as $$
declare
    looks constant int := 10;
    cutoff constant timestamptz := clock_timestamp() - keep - keep / 4;
    reached int;
    looked int[];
    up_to int;
    idle int[];
    ready int[];
    slots smallint[];
begin
    if batch is null or batch not between 1 and 100000 then
        raise exception 'a batch must have 1 to 100,000 streams, not %', batch using errcode = '22023';
    end if;
    if keep is null or keep < interval '1 hour' then
        raise exception 'idle streams must be kept for 1 hour or longer, not for %', keep using errcode = '22023';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot would be older than the locks, and not show what was published before they were got.
        raise exception 'streams can be forgotten in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    forgotten := 0;
    more := false;
    select w.walked_to into reached from headrace.forgetting w
        where w.walked_to > 0 or w.next_at <= clock_timestamp() for update skip locked;
    if not found then
        return;
    end if;
    looked := array(
        select t.stream_id from headrace.trimmed t where t.stream_id > reached order by t.stream_id limit looks * batch
    );
    up_to := looked[cardinality(looked)];
    idle := array(
        select t.stream_id from headrace.trimmed t
            where t.stream_id > reached and t.stream_id <= up_to and t.used_at < cutoff
                and t.trimmed_to >= (select s.last_id from headrace.stream s where s.stream_id = t.stream_id)
            order by t.stream_id limit batch
    );
    more := cardinality(looked) = looks * batch;
    if cardinality(idle) = batch then
        more := true;
        up_to := idle[batch];
    end if;
    idle := array(select s.stream_id from headrace.stream s where s.stream_id = any (idle) for update skip locked);
    idle := array(
        select t.stream_id from headrace.trimmed t
            where t.stream_id = any (idle) and t.used_at < cutoff for update skip locked
    );
    -- From here on nobody numbers in these streams, and each statement sees all that was numbered in them before.
    idle := array(
        select s.stream_id from headrace.stream s
            where s.stream_id = any (idle)
                and s.last_id <= (select t.trimmed_to from headrace.trimmed t where t.stream_id = s.stream_id)
                -- No index has ctid, so it is not the index of times alone that is gone through.
                and (select e.ctid from headrace.event e where e.stream_id = s.stream_id limit 1) is null
                and (select w.turn from headrace.turn w where w.stream = s.name limit 1) is null
                and (select b.stream from headrace.behind b where b.stream = s.name) is null
    );
    ready := array(
        select s.stream_id from headrace.stream s
            where s.stream_id = any (idle)
                and s.last_id <= (select f.forgotten from headrace.slot_floor f where f.slot = s.slot)
    );
    perform set_config('headrace.forgetting', 'on', true);
    delete from headrace.stream s where s.stream_id = any (ready);
    get diagnostics forgotten = row_count;
    perform set_config('headrace.forgetting', '', true);
    -- Last of all, since whoever makes a stream of the slot waits for these locks. The others of these streams are
    -- forgotten by the next call: who makes one of them again then has the new number for certain.
    slots := array(
        select f.slot from headrace.slot_floor f
            where f.slot = any (array(
                select s.slot from headrace.stream s where s.stream_id = any (idle) and s.stream_id <> all (ready)
            ))
            for no key update skip locked
    );
    with heads as materialized (
        select s.slot, max(s.last_id) as head from headrace.stream s where s.stream_id = any (idle) group by s.slot
    )
    update headrace.slot_floor f set forgotten = h.head from heads h where f.slot = h.slot and f.slot = any (slots);
    if cardinality(slots) > 0 then
        more := true;
        up_to := reached;
    end if;
    update headrace.forgetting w
        set walked_to = case when more then up_to else 0 end,
            next_at = case when more then w.next_at else clock_timestamp() + least(keep / 8, interval '1 hour') end;
end $$;
comment on function headrace.forget_streams(interval, int) is
'Forgets at most batch streams that have had no event and no subscriber for keep. Call it in a loop, each call in a
transaction of its own; shards do.

A call looks at the next streams of the search that is under way, or begins a search if one is due. It waits for no
lock, and passes over a stream in which somebody numbers, or of which events wait for their ids.
keep: at least 1 hour. A stream is kept for that time and a quarter of it, since its use is noted to a quarter.
Returns forgotten, how many streams; more, whether to call it again now.
Raises 22023 for an argument that is not allowed; 25001 in a transaction that is not READ COMMITTED.';

create function headrace.count_missing(streams text[]) returns bigint
language sql stable security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
as $$
    select count(*) from (select distinct u.name from unnest(streams) as u (name)) n
        where (select s.stream_id from headrace.stream s where s.name = n.name) is null
$$;
comment on function headrace.count_missing(text[]) is
    'How many of the streams do not exist. For the router, which limits how many a publisher token makes.';

create function headrace.estimate_streams() returns bigint
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select case
            when c.reltuples >= 0 then c.reltuples::bigint
            else (select count(*) from (select from headrace.stream limit 100000) s)
        end
        from pg_class c where c.oid = 'headrace.stream'::regclass
$$;
comment on function headrace.estimate_streams() is
'About how many streams there are: as many as the last VACUUM or ANALYZE of headrace.stream has found, which autovacuum
does often. Before the first they are counted, up to 100,000.';

revoke all on headrace.forgetting from public;
revoke all on function
    headrace.missing_head(text),
    headrace.read_log(text[], bigint[], int, bigint, bigint),
    headrace.note_used(text[], interval),
    headrace.forget_streams(interval, int),
    headrace.count_missing(text[]),
    headrace.estimate_streams()
    from public;
grant execute on function headrace.count_missing(text[]) to headrace_publisher;
