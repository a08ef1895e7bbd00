-- Reading: the head for applications, and the batched read for shards.

-- The newest id of a stream, 0 if nothing was ever published to it. STABLE: it reads the snapshot of the calling
-- statement, so the head and the page's data read in one statement (or one REPEATABLE READ transaction) meet exactly.
create function headrace.head(stream text) returns bigint
language sql stable strict security definer
set search_path to pg_catalog, pg_temp
as $$
    select coalesce((select s.last_id from headrace.stream s where s.name = stream), 0)
$$;
comment on function headrace.head(text) is
    'The newest id of a stream in the snapshot of this statement; 0 if there is none.';

-- What the streams have after the given ids, all in one snapshot. For shards.
--
-- Arguments: streams and after belong together by position. A null in after asks for the head alone. max_events and
-- max_bytes (of data) bound the answer per stream; the first event is returned even if it alone has more bytes.
--
-- Rows: for each position at least one, whose event columns are null if there is no event; in order of (ordinal, id).
--   ordinal     position in streams, from 1
--   head        newest id of the stream; 0 for a stream that does not exist
--   trimmed_to  events up to this id are no longer kept; 0 if all are
--   jumps       {from, to, from, to, …}: recorded jumps that end above after, in order; null if there are none
--   id, created_at, type, data, visible_to   the event
--
-- The settings force the one plan that is right for any number of streams: a probe per stream and table.
create function headrace.read_after(streams text[], after bigint[], max_events int, max_bytes bigint)
returns table (
    ordinal int, head bigint, trimmed_to bigint, jumps bigint[],
    id bigint, created_at timestamptz, type text, data text, visible_to text
)
language plpgsql stable security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set enable_bitmapscan to off
set enable_material to off
set enable_memoize to off
set jit to off
as $$
begin
    return query
        select c.place::int, coalesce(s.last_id, 0), coalesce(t.trimmed_to, 0), j.bounds,
                e.id, e.created_at, e.type, e.data, e.visible_to
            from unnest(streams, read_after.after) with ordinality as c (name, after, place)
            left join headrace.stream s on s.name = c.name
            left join headrace.trimmed t on t.stream_id = s.stream_id
            left join lateral (
                select array_agg(b.bound order by r.to_id, b.bound) as bounds
                    from headrace.jump r
                    cross join lateral (values (r.from_id), (r.to_id)) as b (bound)
                    where r.stream_id = s.stream_id and r.to_id > c.after
            ) j on true
            left join lateral (
                select p.*,
                        sum(octet_length(p.data)) over (order by p.id rows unbounded preceding) as bytes,
                        row_number() over (order by p.id rows unbounded preceding) as number
                    from (
                        select v.* from headrace.event v
                            where v.stream_id = s.stream_id and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                            order by v.id limit max_events
                    ) p
            ) e on e.bytes <= max_bytes or e.number = 1
            order by c.place, e.id;
end $$;
comment on function headrace.read_after(text[], bigint[], int, bigint) is
    'Heads, marks, jumps and the next events of many streams in one snapshot; for shards.';

revoke all on all functions in schema headrace from public;
grant execute on function headrace.head(text) to headrace_publisher;
