-- Reading: events with their payloads, and the exact watermark of a page.

-- The head of the stream in the caller's snapshot, and what it shows of events that have no id yet.
create function headrace.watermark(stream text) returns text
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
    select coalesce((select s.last_id from headrace.stream s where s.name = watermark.stream), 0),
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
comment on function headrace.watermark(text) is
'Where a page that shows a stream ends, for its client to begin: exact in the snapshot of the calling statement.

It is the head, as of headrace.head, and the events that the snapshot shows although they have no id yet, since a shard
gives them theirs a moment later. The client is not sent these again. So a watermark and a page''s data that are read in
one statement, or in one REPEATABLE READ transaction, meet exactly. Under READ COMMITTED the watermark MUST be read
before the page''s data, as with headrace.head.

Returns the text that a stream''s URL takes as `since`: "17", or "17-81-3" with the events whose headrace.payload.seq are
81 and 84. Where more than 500 events wait for their ids it is the head alone, and the client may be sent events that
the page shows already.';
revoke all on function headrace.watermark(text) from public;
grant execute on function headrace.watermark(text) to headrace_publisher;

-- What headrace.read_after with five arguments did, with payloads in tables of their own.
create function headrace.read_events(
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
                    false, e.id, e.seq, e.created_at, e.type, e.data, e.visible_to
                from unnest(streams, read_events.after) as c (name, after)
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
                case when f.fits then f.id end, case when f.fits then f.seq end,
                case when f.fits then f.created_at end, case when f.fits then f.type end,
                case when f.fits then f.data end, case when f.fits then f.visible_to end
            from (
                select r.*, r.total <= total_bytes or r.total = r.size as fits
                    from (
                        select c.place::int as place, coalesce(s.last_id, 0) as head,
                                coalesce(t.trimmed_to, 0) as trimmed_to, j.bounds as jumps, s.stream_id, c.after, e.*,
                                sum(e.size) over ordered as total,
                                lag(c.place) over ordered is distinct from c.place as first
                            from unnest(streams, read_events.after) with ordinality as c (name, after, place)
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

-- For people, who want to see what the log has.
create function headrace.kept_events()
returns table (
    stream text,
    stream_id int,
    id bigint,
    created_at timestamptz,
    type text,
    data text,
    visible_to text
)
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select s.name, e.stream_id, e.id, e.created_at, coalesce(p.type, e.type), coalesce(p.data, e.data),
            coalesce(p.visible_to, e.visible_to)
        from headrace.event e
        join headrace.stream s on s.stream_id = e.stream_id
        left join headrace.payload p on p.xid = e.xid and p.seq = e.seq
$$;

create or replace function headrace.read_after(
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
    created_at timestamptz,
    type text,
    data text,
    visible_to text
)
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select e.ordinal, e.head, e.trimmed_to, e.jumps, e.audiences, e.removed_to, e.unread,
            e.id, e.created_at, e.type, e.data, e.visible_to
        from headrace.read_events(streams, after, max_events, max_bytes, total_bytes) e
$$;

create or replace function headrace.read_after(streams text[], after bigint[], max_events int, max_bytes bigint)
returns table (
    ordinal int,
    head bigint,
    trimmed_to bigint,
    jumps bigint[],
    id bigint,
    created_at timestamptz,
    type text,
    data text,
    visible_to text
)
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select e.ordinal, e.head, e.trimmed_to, e.jumps, e.id, e.created_at, e.type, e.data, e.visible_to
        from headrace.read_events(streams, after, max_events, max_bytes, 9223372036854775807) e
$$;

revoke all on function
    headrace.adopt_turns(),
    headrace.pass_old_numbers(),
    headrace.raise_numbers(bigint),
    headrace.check_many(text[], text[], text[], text[]),
    headrace.waiting(text[]),
    headrace.number_waiting(text[], int[], bigint[]),
    headrace.take_turn(),
    headrace.turns_since(),
    headrace.leave_turns(xid8, bigint),
    headrace.number_own(xid8, bigint),
    headrace.require_read_committed(text),
    headrace.make_streams(text[], bigint),
    headrace.sequence(),
    headrace.forget_turns(xid8),
    headrace.kept_events(),
    headrace.read_events(text[], bigint[], int, bigint, bigint)
    from public;
