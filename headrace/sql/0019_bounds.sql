-- Reading within bounds: a read of many streams has no more bytes than it is asked for; and a client that missed nothing
-- by what retention removed is not told of a gap.

-- Which audience the removed events had. Only for streams of which events with an audience were removed: as long as a
-- stream has no row here, all its removed events were for everybody, or it is not known.
create table headrace.removed (
    stream_id int not null,
    visible_to text collate "C" not null,
    removed_to bigint not null,
    primary key (stream_id, visible_to)
) with (fillfactor = 50);
comment on table headrace.removed is
    'The newest removed event of each audience, for streams that have had audiences; written by headrace.cut alone.';
comment on column headrace.removed.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.removed.visible_to is
    'As in headrace.event, and '''' for events that everybody may see; audiences beyond 64 count among these.';
comment on column headrace.removed.removed_to is 'The newest of the removed events that had this audience.';

-- Removes at most `batch` of the events up to the given id of each stream, lowest ids first, moves the marks, and notes
-- the audiences of the removed events. Events that were removed before a stream's first row count as visible to everybody,
-- and so do the audiences whose marks are oldest when there are many: then a client may be told of a gap where it missed
-- nothing, but no gap is kept from a client.
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
        select d.stream_id, d.id
            from unnest(stream_ids, cut.up_to) with ordinality as t (stream_id, up_to, place)
            cross join lateral (
                select e.stream_id, e.id from headrace.event e
                    where e.stream_id = t.stream_id and e.id <= t.up_to order by e.id limit batch
            ) d
            order by t.place, d.id limit batch
    ), gone as (
        delete from headrace.event e using doomed d where e.stream_id = d.stream_id and e.id = d.id
            returning e.stream_id, e.id, e.visible_to
    ), marked as (
        insert into headrace.trimmed as m (stream_id, trimmed_to)
            select g.stream_id, max(g.id) from gone g group by g.stream_id
            on conflict (stream_id) do update set trimmed_to = greatest(m.trimmed_to, excluded.trimmed_to)
    ), told as (
        -- Of each stream whose removed events have audiences, or had them before: one row per audience, and always one for
        -- the events that everybody may see.
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
    select (select count(*) from gone),
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

-- A removed stream takes its events, marks, notes of removed events, and jumps with it, and leaves the floor for a stream
-- of the same name.
create or replace function headrace.stream_removed() returns trigger
language plpgsql security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    update headrace.slot_floor f set floor = old.last_id where f.slot = old.slot and f.floor < old.last_id;
    delete from headrace.event e where e.stream_id = old.stream_id;
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
    update headrace.slot_floor f set floor = greatest(f.floor, s.last_id)
        from (select slot, max(last_id) as last_id from headrace.stream group by slot) s where s.slot = f.slot;
    truncate headrace.event, headrace.trimmed, headrace.removed, headrace.jump;
    return null;
end $$;

-- Reads the next events of each of many streams, in one snapshot. It has the arguments and columns of the function with
-- four arguments (headrace/sql/0003_read.sql), which shards of older releases call, and further
--
--   total_bytes  bounds all pages together, counting 256 bytes for each event beside its data; the first event of the
--                first page that has any is returned whatever it has
--   audiences,   with a trimmed_to above `after`: whose events above `after` were removed, '' for everybody's, and the
--   removed_to   newest of each; null if that is not known
--   unread       true in the one row of a stream that has events for which the bytes did not suffice; its id is null
create function headrace.read_after(
    streams text[], after bigint[], max_events int, max_bytes bigint, total_bytes bigint
)
returns table (
    ordinal int, head bigint, trimmed_to bigint, jumps bigint[], audiences text[], removed_to bigint[], unread boolean,
    id bigint, created_at timestamptz, type text, data text, visible_to text
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
            select 1, coalesce(s.last_id, 0), coalesce(t.trimmed_to, 0), j.bounds,
                    case when t.trimmed_to > c.after then (
                        select array_agg(m.visible_to order by m.visible_to) from headrace.removed m
                            where m.stream_id = s.stream_id and m.removed_to > c.after
                    ) end,
                    case when t.trimmed_to > c.after then (
                        select array_agg(m.removed_to order by m.visible_to) from headrace.removed m
                            where m.stream_id = s.stream_id and m.removed_to > c.after
                    ) end,
                    false, e.id, e.created_at, e.type, e.data, e.visible_to
                from unnest(streams, read_after.after) as c (name, after)
                left join headrace.stream s on s.name = c.name
                left join headrace.trimmed t on t.stream_id = s.stream_id
                left join lateral (
                    select case when s.last_id - 1 > c.after then (
                        select array_agg(b.bound order by q.to_id, b.bound)
                            from headrace.jump q
                            cross join lateral (values (q.from_id), (q.to_id)) as b (bound)
                            where q.stream_id = s.stream_id and q.to_id > c.after
                    ) end as bounds
                ) j on true
                left join lateral (
                    (select n.id, n.created_at, n.type, n.data, n.visible_to
                        from headrace.event n
                        where s.last_id - 1 = c.after and n.stream_id = s.stream_id and n.id = s.last_id
                            and n.id > coalesce(t.trimmed_to, 0)
                        limit max_events)
                    union all
                    select m.id, m.created_at, m.type, m.data, m.visible_to
                        from (
                            select p.*,
                                    sum(256 + octet_length(p.data)) over ordered as total,
                                    sum(octet_length(p.data)) over ordered as bytes,
                                    row_number() over ordered as number
                                from (
                                    select v.* from headrace.event v
                                        where v.stream_id = s.stream_id
                                            and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                        order by v.id limit max_events
                                ) p
                                window ordered as (order by p.id rows unbounded preceding)
                        ) m
                        where s.last_id - 1 > c.after
                            and (m.bytes <= max_bytes and m.total <= total_bytes or m.number = 1)
                ) e on true
                order by e.id;
        return;
    end if;
    return query
        select f.place, f.head, f.trimmed_to, f.jumps,
                case when f.first and f.trimmed_to > f.after then (
                    select array_agg(m.visible_to order by m.visible_to) from headrace.removed m
                        where m.stream_id = f.stream_id and m.removed_to > f.after
                ) end,
                case when f.first and f.trimmed_to > f.after then (
                    select array_agg(m.removed_to order by m.visible_to) from headrace.removed m
                        where m.stream_id = f.stream_id and m.removed_to > f.after
                ) end,
                f.id is not null and not f.fits,
                case when f.fits then f.id end, case when f.fits then f.created_at end,
                case when f.fits then f.type end, case when f.fits then f.data end,
                case when f.fits then f.visible_to end
            from (
                select r.*, r.total <= total_bytes or r.total = r.size as fits
                    from (
                        select c.place::int as place, coalesce(s.last_id, 0) as head,
                                coalesce(t.trimmed_to, 0) as trimmed_to, j.bounds as jumps, s.stream_id, c.after, e.*,
                                sum(e.size) over ordered as total,
                                lag(c.place) over ordered is distinct from c.place as first
                            from unnest(streams, read_after.after) with ordinality as c (name, after, place)
                            left join headrace.stream s on s.name = c.name
                            left join headrace.trimmed t on t.stream_id = s.stream_id
                            left join lateral (
                                select case when s.last_id - 1 > c.after then (
                                    select array_agg(b.bound order by q.to_id, b.bound)
                                        from headrace.jump q
                                        cross join lateral (values (q.from_id), (q.to_id)) as b (bound)
                                        where q.stream_id = s.stream_id and q.to_id > c.after
                                ) end as bounds
                            ) j on true
                            left join lateral (
                                (select n.id, n.created_at, n.type, n.data, n.visible_to,
                                        256 + octet_length(n.data) as size
                                    from headrace.event n
                                    where s.last_id - 1 = c.after and n.stream_id = s.stream_id and n.id = s.last_id
                                        and n.id > coalesce(t.trimmed_to, 0)
                                    limit max_events)
                                union all
                                select m.id, m.created_at, m.type, m.data, m.visible_to, 256 + m.length
                                    from (
                                        select p.*, octet_length(p.data) as length,
                                                sum(octet_length(p.data)) over inner_ordered as bytes,
                                                row_number() over inner_ordered as number
                                            from (
                                                select v.* from headrace.event v
                                                    where v.stream_id = s.stream_id
                                                        and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                                    order by v.id limit max_events
                                            ) p
                                            window inner_ordered as (order by p.id rows unbounded preceding)
                                    ) m
                                    where s.last_id - 1 > c.after and (m.bytes <= max_bytes or m.number = 1)
                            ) e on true
                            window ordered as (order by c.place, e.id rows unbounded preceding)
                    ) r
            ) f
            -- A stream without events has no size, so `fits` is null there.
            where f.fits is not false or f.first
            order by f.place, f.id;
end $$;
comment on function headrace.read_after(text[], bigint[], int, bigint, bigint) is
    'Pages of many streams within a number of bytes, in one snapshot; for shards.';
