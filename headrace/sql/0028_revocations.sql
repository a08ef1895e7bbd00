-- A shard reads revocations twice a second, so the function keeps its plan: a function in SQL is planned at each call.

create or replace function headrace.read_revocations(since xid8)
returns table (
    floor xid8,
    revocation_id bigint,
    user_name text,
    stream text,
    reason text,
    issued_to_ms bigint,
    age_ms bigint
)
language plpgsql stable security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to 'force_generic_plan'
as $$
begin
    return query
        select pg_snapshot_xmin(pg_current_snapshot()), r.revocation_id, r.user_name, r.stream, r.reason,
                r.issued_to_ms, (extract(epoch from clock_timestamp()) * 1000)::bigint - r.issued_to_ms
            from (values (1)) v left join headrace.revocation r on r.xid >= since;
end $$;
