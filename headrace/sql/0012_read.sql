-- Reading: what most reads of shards come upon, one new event of a stream, costs no more than finding it.

-- As before (headrace/sql/0003_read.sql), but that a stream whose head is the first id wanted is spared what many events
-- need: the sums of their bytes, since the first is returned whatever it has, and the jumps, since a jump above `after`
-- has an event behind it, so that the head would be further away.
create or replace function headrace.read_after(streams text[], after bigint[], max_events int, max_bytes bigint)
returns table (
    ordinal int, head bigint, trimmed_to bigint, jumps bigint[],
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
    -- Not after + 1, which the greatest id that a client can claim does not have.
    return query
        select c.place::int, coalesce(s.last_id, 0), coalesce(t.trimmed_to, 0), j.bounds,
                e.id, e.created_at, e.type, e.data, e.visible_to
            from unnest(streams, read_after.after) with ordinality as c (name, after, place)
            left join headrace.stream s on s.name = c.name
            left join headrace.trimmed t on t.stream_id = s.stream_id
            left join lateral (
                select case when s.last_id - 1 > c.after then (
                    select array_agg(b.bound order by r.to_id, b.bound)
                        from headrace.jump r
                        cross join lateral (values (r.from_id), (r.to_id)) as b (bound)
                        where r.stream_id = s.stream_id and r.to_id > c.after
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
                                sum(octet_length(p.data)) over (order by p.id rows unbounded preceding) as bytes,
                                row_number() over (order by p.id rows unbounded preceding) as number
                            from (
                                select v.* from headrace.event v
                                    where v.stream_id = s.stream_id
                                        and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                    order by v.id limit max_events
                            ) p
                    ) m
                    where s.last_id - 1 > c.after and (m.bytes <= max_bytes or m.number = 1)
            ) e on true
            order by c.place, e.id;
end $$;
