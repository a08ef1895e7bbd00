-- Pruning, one session at a time, by a lock that nobody but the owner of the schema can take: the row of headrace.fence.
--
-- It is no advisory lock, which any role that may connect can take, and so keep everybody from pruning.

-- Removes one batch of at most `batch` events that no rule keeps. Returns how many; 0 means that nothing is left to
-- remove now; -1 that another session is pruning. The theory is in headrace/sql/0004_retention.sql.
create or replace function headrace.prune(batch int) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    -- A slice that deletes nothing costs little, so small batches do not make small slices.
    slice constant int := greatest(batch, 1000);
    began constant timestamptz := clock_timestamp();
    fence timestamptz;
    rule record;
    cutoff timestamptz;
    walked_to timestamptz;
    reached timestamptz;
    stream_ids int[];
    up_to bigint[];
    removed bigint;
begin
    if batch is null or batch < 1 then
        raise exception 'a batch must have at least 1 event, not %', batch using errcode = '22023';
    end if;
    perform from headrace.fence f for update skip locked;
    if not found then
        return -1;
    end if;
    insert into headrace.retention (pattern, like_pattern, keep) select '*', '%', interval '5 minutes'
        where not exists (select from headrace.retention r where r.pattern = '*');
    fence := headrace.move_fence();  -- before the first walk, whose snapshots then show all events up to the fence
    for rule in
        select r.*, c.by_count from headrace.retention r
            cross join unnest(array[false, true]) as c (by_count)
            where not c.by_count or r.keep_count is not null
            order by r.pattern, c.by_count
    loop
        cutoff := began - case when rule.by_count then interval '0' else rule.keep end;
        walked_to := least(case when rule.by_count then rule.counted_to else rule.scanned_to end, cutoff);
        loop
            removed := 0;
            with slice as materialized (
                select e.stream_id, e.id, e.created_at from headrace.event e
                    where e.created_at > walked_to and e.created_at <= cutoff
                    order by e.created_at fetch first (slice) rows with ties
            ), touched as materialized (
                select s.stream_id, max(s.id) as newest from slice s group by s.stream_id
            ), ruled as materialized (
                select t.stream_id, t.newest, n.last_id from touched t
                    join headrace.stream n on n.stream_id = t.stream_id
                    where n.name like rule.like_pattern and not exists (
                        select from headrace.retention o
                            where (length(o.pattern), o.pattern) > (length(rule.pattern), rule.pattern)
                                and n.name like o.like_pattern
                    )
            ), target as (
                select r.stream_id, r.newest as up_to from ruled r where not rule.by_count
                union all
                -- A stream that has had no more events than allowed since its mark needs no counting.
                select r.stream_id, x.id from ruled r
                    left join headrace.trimmed m on m.stream_id = r.stream_id
                    cross join lateral (
                        select e.id from headrace.event e where e.stream_id = r.stream_id
                            order by e.id desc offset rule.keep_count limit 1
                    ) x
                    where rule.by_count and r.last_id - coalesce(m.trimmed_to, 0) > rule.keep_count
            )
            select (select max(s.created_at) from slice s),
                    array_agg(t.stream_id order by t.stream_id), array_agg(t.up_to order by t.stream_id)
                into reached, stream_ids, up_to from target t;
            if stream_ids is not null then
                removed := headrace.cut(stream_ids, up_to, batch);
            end if;
            if removed < batch then  -- else some of this slice may be left
                walked_to := coalesce(reached, cutoff);
            end if;
            exit when removed > 0 or reached is null;
        end loop;
        update headrace.retention r
            set scanned_to = case when rule.by_count then r.scanned_to else least(walked_to, fence) end,
                counted_to = case when rule.by_count then least(walked_to, fence) else r.counted_to end
            where r.pattern = rule.pattern and r.revision = rule.revision;
        if removed > 0 then
            return removed;
        end if;
    end loop;
    return 0;
end $$;
