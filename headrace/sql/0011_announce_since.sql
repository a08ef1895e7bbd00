-- Announcing what transactions of one event have left: the staged event itself, instead of a row of its own.
--
-- Most transactions publish one event. With an announcer in office such a transaction used to delete what it had staged
-- and to leave a row in headrace.unannounced. Now it does neither: its staged row, which names the stream, stays, and
-- the announcer takes it away with many others. Transactions of more events, and publish_now, leave a row as before.
-- What headrace/sql/0009_announce.sql says of rows that are left holds of both kinds: when one may be left, who takes
-- it, and that a crash of the server forgets them.
--
-- No row is overlooked. Between two rings the announcer remembers what the first one's snapshot said: which transactions
-- had ended by then. The next ring looks only at staged rows of the others, by the index: those that were open (few) and
-- all later ones. A committed row of a transaction that had ended was visible to the first ring, which has taken it
--
--     if it took its snapshot of the rows after the one that is remembered, as the statements below do, and
--     if it committed: the caller remembers nothing of a ring that failed, and nothing in a new session
--
-- except where another session had locked the row, being about to take it away, and then did not. So callers look back
-- now and then, when they have taken office, and in their last ring: from what was seen longer ago than a ring may take.
--
-- An old snapshot, or an old transaction, anywhere in the database keeps removed rows in the table. A ring comes across
-- those of the time that it looks back to, not across all. A look at all rows, by a null, is for the first seconds of a
-- session, and takes about half a second for a million removed rows.
--
-- A transaction finds what it has staged by its id and by a sequence, which a dump carries along with the rows. So rows
-- of a database that was restored from a dump are nobody's, and the next ring takes them away.

comment on table headrace.stage is
    'Events published in open transactions; and in committed ones of one event each, until a shard has notified of it.';

-- Whether this transaction may leave it to an announcer to notify; then none leaves office for good before it has ended.
-- Each look gives back at once what it gets, within one expression, which nothing can interrupt half-way. Not SECURITY
-- DEFINER and without settings of its own, so that PostgreSQL can inline it; its callers have fixed the search path.
create function headrace.defers() returns boolean
language sql volatile
as $$
    select not case when pg_try_advisory_lock_shared(x'6865616472616361'::bigint)
            then pg_advisory_unlock_shared(x'6865616472616361'::bigint) else false end
        and pg_try_advisory_xact_lock_shared(x'6865616472616364'::bigint)
        and not case when pg_try_advisory_lock_shared(x'6865616472616361'::bigint)
            then pg_advisory_unlock_shared(x'6865616472616361'::bigint) else false end
$$;
comment on function headrace.defers() is
    'Takes the lock `deferring` in share; true if an announcer was in office before and after.';

-- As before, but for the expression that is a function now.
create or replace function headrace.announce(stream_ids int[]) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if headrace.defers() then
        insert into headrace.unannounced (stream_ids) values (announce.stream_ids);
        return;
    end if;
    perform pg_notify('headrace_slot_' || s.slot, s.last_id || ' ' || s.name)
        from headrace.stream s where s.stream_id = any (announce.stream_ids);
    -- Not by random(), whose sequence belongs to the caller's session.
    if hashint8(pg_current_xact_id()::text::bigint) & 15 = 0 then
        perform pg_notify('headrace_rate', '');
    end if;
end $$;

-- As before, but that one event alone stays staged if there is an announcer.
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
    if new.xid <> pg_current_xact_id() then  -- a row that is being restored from a dump
        return null;
    end if;
    perform set_config('headrace.ringing', '', true);
    select array_agg(g.stream order by g.stream), array_agg(g.events order by g.stream) into names, counts
        from (
            select g.stream, count(*)::int as events from headrace.stage g
                where g.xid = new.xid and g.seq >= new.seq group by g.stream
        ) g;
    if names is null then  -- numbered by an earlier row's trigger: RESET ALL makes a transaction ring twice
        return null;
    end if;
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
    if cardinality(counts) = 1 and counts[1] = 1 and headrace.defers() then
        return null;
    end if;
    delete from headrace.stage g where g.xid = new.xid and g.seq >= new.seq;
    perform headrace.announce(stream_ids);
    return null;
end $$;

-- Notifies of all that is waiting for it and committed. `since` is what an earlier ring of this session has `seen`, if it
-- committed, and never of a transaction that itself publishes; null looks at all rows. Returns of how many numberings
-- (most transactions have one), and how large headrace.unannounced is: an old snapshot anywhere in the database keeps
-- taken rows in it, and a ring comes across all of them.
-- The settings force the plans that are right whatever the statistics of these tables say.
create function headrace.announce_since(
    since pg_snapshot default null, out transactions bigint, out bytes bigint, out seen pg_snapshot
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
    later_than constant xid8 := coalesce(pg_snapshot_xmax(since), '0');
    were_open constant xid8[] := array(select pg_snapshot_xip(since));
    own constant xid8 := coalesce(pg_current_xact_id_if_assigned(), '0');
begin
    seen := pg_current_snapshot();  -- no younger than that of the next statement
    -- A row that another session is taking away is its to announce. What this transaction has staged is not numbered yet.
    with taken as materialized (
        delete from headrace.unannounced u
            where u.ctid = any (array(select w.ctid from headrace.unannounced w for update skip locked))
            returning u.stream_ids
    ), unstaged as materialized (
        delete from headrace.stage g
            where g.ctid = any (
                array(select w.ctid from headrace.stage w
                    where w.xid >= later_than and w.xid <> own for update skip locked)
                || array(select w.ctid from headrace.stage w
                    where w.xid = any (were_open) and w.xid <> own for update skip locked)
            )
            returning g.stream
    ), waiting as (
        select s.slot, s.last_id, s.name from headrace.stream s
            where s.stream_id = any (array(select unnest(t.stream_ids) from taken t))
        union all
        select s.slot, s.last_id, s.name from headrace.stream s
            where s.name = any (array(select u.stream from unstaged u))
    ), told as (
        -- Twice for a stream that is here twice: PostgreSQL notifies once.
        select count(pg_notify('headrace_slot_' || w.slot, w.last_id || ' ' || w.name)) from waiting w
    )
    select (select count(*) from taken) + (select count(*) from unstaged) into transactions from told;
    bytes := pg_relation_size('headrace.unannounced');
end $$;
comment on function headrace.announce_since(pg_snapshot) is
    'For the announcer and those who stand by: notifies of the heads of all streams with unannounced events.';

-- As before, for shards of the release before.
create or replace function headrace.announce_waiting(out transactions bigint, out bytes bigint)
language sql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
    select a.transactions, a.bytes from headrace.announce_since() a
$$;

revoke all on function headrace.defers(), headrace.announce_since(pg_snapshot) from public;
