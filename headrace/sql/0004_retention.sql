-- Retention: which events are kept, and the batches that remove the others.
--
-- Theory. Each rule walks the events in the order of created_at, in slices, up to its cutoff (the clock minus `keep`),
-- and remembers how far it got. In each stream of the slice for which it is the longest matching rule, everything up to
-- the slice's newest event goes: a prefix of the ids, so a clock that was set back does no harm. A rule with keep_count
-- walks a second time, up to now, and trims each stream it meets to that many events. An event is thus examined once or
-- twice per rule, whatever the number of streams.
--
-- An event becomes visible when its transaction commits, maybe long after its created_at, when a walk has passed it. So
-- no walk is remembered beyond the fence: the latest time of which it is known that every transaction that could have
-- made an event before it has ended. Usually that is the previous call; while some transaction that writes stays open,
-- the kept events since its begin are examined again by each call.
--
-- Pruning reads and deletes events and writes its own tables; it locks no row that publishing uses.

create table headrace.retention (
    pattern text collate "C" primary key,
    like_pattern text collate "C" not null,
    keep interval not null,
    keep_count bigint,
    scanned_to timestamptz not null default '-infinity',
    counted_to timestamptz not null default '-infinity',
    revision bigint not null default 0
);
comment on table headrace.retention is
    'Rules of retention; of those that match a stream''s name, the longest pattern applies.';
comment on column headrace.retention.pattern is 'A glob: * is any text, ? any one character, all else is literal.';
comment on column headrace.retention.like_pattern is 'The same for LIKE.';
comment on column headrace.retention.keep is 'Events older than this are removed.';
comment on column headrace.retention.keep_count is
    'Of each stream only so many of the newest events are kept; null: any number.';
comment on column headrace.retention.scanned_to is 'How far the rule has walked to remove by age.';
comment on column headrace.retention.counted_to is 'How far the rule has walked to remove by count.';
comment on column headrace.retention.revision is
    'Raised when any rule changes, so that a walk under the old rules is not recorded.';

insert into headrace.retention (pattern, like_pattern, keep) values ('*', '%', interval '5 minutes');

create table headrace.fence (
    single boolean primary key default true check (single),
    passed timestamptz not null,
    next_at timestamptz not null,
    next_xid xid8 not null
);
comment on table headrace.fence is 'Up to when all events are visible; one row, written by headrace.prune alone.';
comment on column headrace.fence.single is 'Always true: there is one row.';
comment on column headrace.fence.passed is 'Every event created before this is visible or will never be.';
comment on column headrace.fence.next_at is
    'The next value of passed, once every transaction older than next_xid has ended.';
comment on column headrace.fence.next_xid is 'A transaction id given out after next_at.';
insert into headrace.fence (passed, next_at, next_xid) values ('-infinity', '-infinity', '0');

-- Keep the events of all streams whose name matches the pattern for the given time, and if keep_count is given, no more
-- than that many of each. A null keep removes the rule; without it `*` keeps for 5 minutes.
create function headrace.set_retention(pattern text, keep interval, keep_count bigint default null) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if pattern is null or octet_length(pattern) not between 1 and 512 then
        raise exception 'a retention pattern must have 1 to 512 bytes' using errcode = '22023';
    end if;
    if keep <= interval '0' or keep > interval '100 years' then
        raise exception 'events must be kept for more than nothing and at most 100 years, not for %', keep
            using errcode = '22023';
    end if;
    if keep_count < 1 then
        raise exception 'keep_count must be at least 1 event or null, not %', keep_count using errcode = '22023';
    end if;
    if keep is null and keep_count is not null then
        raise exception 'a rule with a keep_count needs a keep, too' using errcode = '22023';
    end if;
    -- Changes of two rules wait for each other here; on the rows below they could deadlock.
    lock table headrace.retention in share row exclusive mode;
    if keep is null then
        delete from headrace.retention r where r.pattern = set_retention.pattern;
    else
        insert into headrace.retention (pattern, like_pattern, keep, keep_count)
            values (
                set_retention.pattern,
                translate(regexp_replace(set_retention.pattern, '([\\%_])', '\\\1', 'g'), '*?', '%_'),
                set_retention.keep,
                set_retention.keep_count
            )
            on conflict on constraint retention_pkey
            do update set keep = excluded.keep, keep_count = excluded.keep_count;
    end if;
    -- Any rule may now apply to events that it has passed.
    update headrace.retention r
        set scanned_to = '-infinity', counted_to = '-infinity', revision = r.revision + 1;
end $$;
comment on function headrace.set_retention(text, interval, bigint) is
    'Sets, or with a null keep removes, the rule for the streams that match a glob; applied when pruning.';

-- Moves the fence forward if it can be, and returns where it is.
create function headrace.move_fence() returns timestamptz
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    -- The clock comes first: a transaction that made an event before this moment got its id before ours.
    began constant timestamptz := clock_timestamp();
    xid constant xid8 := pg_current_xact_id();
    oldest constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
    fence headrace.fence;
begin
    select f.* into strict fence from headrace.fence f;
    if fence.next_xid <= oldest then
        fence.passed := fence.next_at;
    elsif fence.next_xid < xid then
        return fence.passed;
    end if;  -- else next_xid comes from another server, as in a restored dump: begin again
    update headrace.fence f set passed = fence.passed, next_at = began, next_xid = xid;
    return fence.passed;
end $$;
comment on function headrace.move_fence() is 'The time up to which no event can still become visible.';

-- Removes at most `batch` of the events up to the given id of each stream, lowest ids first, and moves the marks.
-- Ids become visible in order, so what is deleted and marked is always a prefix.
create function headrace.cut(stream_ids int[], up_to bigint[], batch int) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    removed bigint;
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
            returning e.stream_id, e.id
    ), marked as (
        insert into headrace.trimmed as m (stream_id, trimmed_to)
            select g.stream_id, max(g.id) from gone g group by g.stream_id
            on conflict (stream_id) do update set trimmed_to = greatest(m.trimmed_to, excluded.trimmed_to)
    )
    select count(*) into removed from gone;
    return removed;
end $$;
comment on function headrace.cut(int[], bigint[], int) is
    'Deletes a bounded prefix of each stream and raises its mark.';

-- Removes one batch of at most `batch` events that no rule keeps. Returns how many; 0 means that nothing is left to
-- remove now; -1 that another session is pruning. Call it in a loop, each call in a transaction of its own.
create function headrace.prune(batch int) returns bigint
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
    if not pg_try_advisory_xact_lock(x'6865616472616365'::bigint) then  -- "headrace"
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
                -- A stream that ever had no more events than allowed since its mark needs no counting.
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
comment on function headrace.prune(int) is
    'Removes at most batch events that are no longer to be kept; 0: none left, -1: another session is at it.';

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
