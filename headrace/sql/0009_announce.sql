-- Announcing: who tells the shards that streams have new heads, the publishing transaction itself or one for many.
--
-- Theory. PostgreSQL gives notifications their order by a lock that a transaction with notifications takes before it
-- commits and holds until its commit is flushed. One transaction at a time therefore flushes, on the whole server,
-- however many there are; without notifications they flush together. So:
--
--     few commits       the publishing transaction notifies: nothing is quicker, and no shard need run
--     many commits      one shard is the announcer. Publishing transactions only leave a row in headrace.unannounced;
--                       the announcer takes away all rows that it sees, every few milliseconds, and notifies once for
--                       all of them, with the newest heads. Its own transaction waits for no flush: it changes nothing
--                       that must survive a crash.
--
-- Two advisory locks decide which it is. They are not data: what a publisher learns from them is true at that moment,
-- whatever snapshot it has and however the announcer ended.
--
--     office     held exclusively, for its session, by the announcer. A publisher finds out by trying: what it gets in
--                passing, in one expression, which nothing can interrupt half-way, is given back at once
--     deferring  held in share, until its transaction has ended, by every publisher that leaves a row. The row is
--                left only if the office is found held after this lock was taken
--
-- No wake is lost. A publisher that leaves a row has found the office held while it held `deferring`. The announcer that
-- held the office rings on until it wants to leave; then it gives up the office first, rings on until it gets
-- `deferring` exclusively, for a moment, and rings a last time. When it got that lock, every transaction that has seen
-- it in office had ended, and locks are given back after a commit has become visible; so the last look sees every row.
-- One that comes later finds the office empty, or held by a successor. An announcer whose session ends otherwise leaves
-- the office with it, at once; rows that it has not taken away, or whose transactions were still open, are taken by its
-- successor, by the shards that stand by, who look about once a second, or by its own next session. If there is none of
-- these, the streams' heads are compared by each shard's sweep in a few seconds, as for any lost notification. Rows are
-- taken away and announced in one transaction: both or neither. Anybody may announce at any time, since a notification
-- is a hint: at worst a shard looks twice. A server that crashes forgets the rows, but also every LISTEN, and shards that
-- listen anew compare all heads.
--
-- No event is delivered before it is durable. A row is seen when its transaction is visible to others, and that is
-- after its commit was flushed: publishing raises synchronous_commit to at least `local`. The same goes for whom the
-- shards read, whoever has woken them.
--
-- An announcer that has stopped, or whose host is gone, would hold its office and ring for nobody: its session has an
-- idle_session_timeout, so that the server ends it. (Until then the shards that stand by ring.)
--
-- A publishing transaction that notifies also tells one time in 16 that it does, on the channel headrace_rate: shards
-- estimate from it how many commits there are in the database, also to streams that none of their clients follows. The
-- announcer says there that it is in office, so that all shards that have not heard the transactions stand by as well.
--
-- A transaction that left a row can be PREPAREd, which one that has notified cannot. It holds its streams, and the lock
-- `deferring`, until it is committed. The announcer that leaves does not wait for that for ever: then the sweep finds it.
--
-- The locks are the bigints x'6865616472616361' ("headraca", office) and x'6865616472616364' ("headracd", deferring).
-- Whoever else in this database uses advisory locks MUST NOT use these, nor the two of headrace.prune and the migration.

create unlogged table headrace.unannounced (
    stream_ids int[] not null
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table headrace.unannounced is
    'Streams that committed transactions have published to and nobody has notified of; one row a transaction.';
comment on column headrace.unannounced.stream_ids is 'As in headrace.stream.';

-- Tells the shards of the new heads of streams that this transaction has numbered, or lets the announcer do it.
create function headrace.announce(stream_ids int[]) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    office constant bigint := x'6865616472616361'::bigint;
    deferring constant bigint := x'6865616472616364'::bigint;
begin
    if not (case when pg_try_advisory_lock_shared(office) then pg_advisory_unlock_shared(office) else false end)
        and pg_try_advisory_xact_lock_shared(deferring)
        and not (case when pg_try_advisory_lock_shared(office) then pg_advisory_unlock_shared(office) else false end)
    then
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
comment on function headrace.announce(int[]) is
    'Notifies the slots of these streams of their heads, or leaves that to the announcer if there is one.';

-- Notifies of all that is waiting for it and committed. Returns of how many transactions, and how large the table is:
-- an old snapshot anywhere in the database keeps taken rows in it.
create function headrace.announce_waiting(out transactions bigint, out bytes bigint)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    -- A row that another session is taking away is its to announce.
    with taken as materialized (
        delete from headrace.unannounced u
            where u.ctid = any (array(select w.ctid from headrace.unannounced w for update skip locked))
            returning u.stream_ids
    ), told as (
        select count(pg_notify('headrace_slot_' || s.slot, s.last_id || ' ' || s.name)) as streams
            from headrace.stream s
            where s.stream_id = any (array(select distinct unnest(t.stream_ids) from taken t))
    )
    select (select count(*) from taken) into transactions from told;
    bytes := pg_relation_size('headrace.unannounced');
end $$;
comment on function headrace.announce_waiting() is
    'For the announcer and those who stand by: notifies of the heads of all streams with unannounced events.';

-- Whether this session is the announcer from now on, until it leaves office or ends.
create function headrace.take_office() returns boolean
language sql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
    select pg_try_advisory_lock(x'6865616472616361'::bigint)
$$;
comment on function headrace.take_office() is 'Makes this session the announcer if there is none; whether it is.';

create function headrace.leave_office() returns void
language sql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
    select pg_advisory_unlock(x'6865616472616361'::bigint)
$$;
comment on function headrace.leave_office() is 'Publishing transactions notify by themselves from now on.';

-- Whether no transaction is open that has left its announcement to others.
create function headrace.nobody_defers() returns boolean
language sql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
    select case when pg_try_advisory_lock(x'6865616472616364'::bigint)
        then pg_advisory_unlock(x'6865616472616364'::bigint) else false end
$$;
comment on function headrace.nobody_defers() is
    'True if every transaction that has seen an announcer in office has ended, if there is none now.';

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
