-- Presence: who is on a stream, as the shards report it, and what is published of it.
--
--     shard ── presence_report(session, serial, here, gone) ──► holders ──► members ──► join, leave on presence:<stream>
--
-- Rules.
--   A user is a member of a stream as long as at least one session holds the pair; a session is a shard's process, which
--   counts the user's connections by itself. So one row per shard and pair, however many tabs.
--   Whatever changes the members of a stream first locks the stream's row in headrace.presence, in the order of names,
--   and keeps it until it commits. So a join here and a leave there never overlook each other, the count is exact, and
--   the events are numbered in the order in which the members changed: for each user a join, a leave, a join …
--   Members, count and events change in one transaction. In any snapshot the members of a stream are those that its
--   companion stream's events up to the head add up to (as far back as they are kept).
--   No clock decides anything: a session is given up by another that has seen its serial unchanged for long.
--
-- Nobody but the owner of these tables has any right on them; everything goes through SECURITY DEFINER functions.

create table headrace.presence_session (
    session uuid primary key,
    shard text not null,
    serial bigint not null
) with (fillfactor = 50, autovacuum_vacuum_cost_delay = 0);
comment on table headrace.presence_session is
    'The processes that hold members; a few, each with a row while it has any.';
comment on column headrace.presence_session.session is
    'Made up by the process, and anew whenever it has to tell everything again.';
comment on column headrace.presence_session.shard is 'The id of the shard, for people.';
comment on column headrace.presence_session.serial is
    'The number of its last report. It grows every few seconds: who sees it stand still knows that the process is gone.';

create table headrace.presence_holder (
    stream text collate "C" not null,
    member text collate "C" not null,
    session uuid not null,
    primary key (stream, member, session)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
comment on table headrace.presence_holder is 'Which sessions have at least one connection of a user on a stream.';
comment on column headrace.presence_holder.stream is 'Name of the stream.';
comment on column headrace.presence_holder.member is 'The user.';
comment on column headrace.presence_holder.session is 'As in headrace.presence_session.';
create index presence_holder_session on headrace.presence_holder (session);

create table headrace.presence_member (
    stream text collate "C" not null,
    member text collate "C" not null,
    since timestamptz not null,
    primary key (stream, member)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
comment on table headrace.presence_member is 'Who is on a stream: the pairs that somebody holds.';
comment on column headrace.presence_member.stream is 'Name of the stream.';
comment on column headrace.presence_member.member is 'The user.';
comment on column headrace.presence_member.since is 'When the user joined.';

create table headrace.presence (
    stream text collate "C" primary key,
    members bigint not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
comment on table headrace.presence is 'How many members a stream has; no row where there are none.';
comment on column headrace.presence.stream is 'Name of the stream. Its row is the lock on all that is said of the stream.';
comment on column headrace.presence.members is 'How many rows of headrace.presence_member the stream has.';

-- Takes the locks of these streams, making the rows that are missing.
create function headrace.presence_lock(streams text[]) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot would be older than the lock, and not show what the last holder of the lock has done.
        raise exception 'presence can be changed in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    insert into headrace.presence as p (stream, members)
        select distinct s.stream collate "C", 0 from unnest(streams) s (stream) order by 1
        on conflict (stream) do update set members = p.members;
end $$;
comment on function headrace.presence_lock(text[]) is
    'Locks what is said of these streams until the transaction ends.';

-- The settings here and below force a probe per pair: statistics of tables that are empty at times mislead, and a scan per
-- pair would make the cost of a crowd its square.

-- After holders have changed: makes members of the `here`, and ends those of the `gone` whom nobody holds. Tells it.
-- The locks of all these streams MUST be held; the pairs are given by position.
create function headrace.presence_settle(
    here_streams text[], here_members text[], gone_streams text[], gone_members text[]
) returns int
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    companions text[];
    payloads text[];
    types text[];
begin
    with joined as (
        insert into headrace.presence_member (stream, member, since)
            select h.stream, h.member, clock_timestamp() from unnest(here_streams, here_members) h (stream, member)
            on conflict do nothing
            returning stream, member
    ), gone as (
        delete from headrace.presence_member m using unnest(gone_streams, gone_members) g (stream, member)
            where m.stream = g.stream and m.member = g.member and not exists (
                select from headrace.presence_holder h where h.stream = m.stream and h.member = m.member
            )
            returning m.stream, m.member
    ), change as (
        select stream, member, 1 as step from joined
        union all
        select stream, member, -1 from gone
    ), counted as (
        select c.*, p.members + sum(c.step) over (
                    partition by c.stream order by c.step, c.member rows unbounded preceding
                ) as members
            from change c join headrace.presence p on p.stream = c.stream
    ), told as (
        update headrace.presence p set members = p.members + t.steps
            from (select stream, sum(step) as steps from change group by stream) t where p.stream = t.stream
    )
    select array_agg('presence:' || c.stream order by c.stream, c.step, c.member),
            array_agg(
                jsonb_build_object('user', c.member, 'count', c.members)::text order by c.stream, c.step, c.member
            ),
            array_agg(case c.step when 1 then 'join' else 'leave' end order by c.stream, c.step, c.member)
        into companions, payloads, types from counted c;
    delete from headrace.presence p where p.stream = any (here_streams || gone_streams) and p.members = 0;
    if companions is null then
        return 0;
    end if;
    perform headrace.publish_many(companions, payloads, types);
    return cardinality(companions);
end $$;
comment on function headrace.presence_settle(text[], text[], text[], text[]) is
    'Brings the members in line with the holders and publishes joins and leaves; returns how many.';

-- One report of a shard's process: which pairs it holds now and which no longer, and that it lives.
--
-- Arguments: session and shard as in headrace.presence_session. serial is above that of any earlier report. after is the
-- newest serial that the process knows to be committed: if the session's is lower, what was told is lost (as by a
-- fail-over), and the report is not taken. opens tells that the session is new, and makes it if it is not there. The
-- pairs are given by position; no pair is in both.
--
-- A report whose outcome its sender could not learn may be repeated with a higher serial. If the first one is still
-- under way, whichever comes first holds the session's row, and the older, coming second, does nothing.
--
-- Returns all sessions with their serials, to be watched. Where the own is missing, the report was not taken.
create function headrace.presence_report(
    session uuid, shard text, serial bigint, after bigint, opens boolean,
    here_streams text[], here_members text[], gone_streams text[], gone_members text[]
) returns table (known uuid, reached bigint)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    taken boolean;
begin
    update headrace.presence_session p set serial = presence_report.serial
        where p.session = presence_report.session
            and p.serial < presence_report.serial and p.serial >= presence_report.after;
    taken := found;
    if not taken and opens then
        insert into headrace.presence_session (session, shard, serial) values (session, shard, serial)
            on conflict do nothing;
        taken := found;
    end if;
    if taken and cardinality(here_streams || gone_streams) > 0 then
        perform headrace.presence_lock(here_streams || gone_streams);
        insert into headrace.presence_holder (stream, member, session)
            select h.stream, h.member, presence_report.session
                from unnest(here_streams, here_members) h (stream, member)
            on conflict do nothing;
        delete from headrace.presence_holder o using unnest(gone_streams, gone_members) g (stream, member)
            where o.stream = g.stream and o.member = g.member and o.session = presence_report.session;
        perform headrace.presence_settle(here_streams, here_members, gone_streams, gone_members);
    end if;
    return query select p.session, p.serial from headrace.presence_session p
        where p.session <> presence_report.session or taken;
end $$;
comment on function headrace.presence_report(uuid, text, bigint, bigint, boolean, text[], text[], text[], text[]) is
    'A shard tells who has come and who is gone, and that it lives; returns the sessions to watch.';

-- The sessions with their serials, for a shard that has nothing to report.
create function headrace.presence_sessions() returns table (known uuid, reached bigint)
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select p.session, p.serial from headrace.presence_session p
$$;
comment on function headrace.presence_sessions() is 'All sessions and the number of the last report of each.';

-- Gives up a session that was seen to stand at this serial for long: whoever only it held, leaves. Of several that
-- notice, the first does it; a session that has reported meanwhile stays. Returns how many have left, null if nothing
-- was done.
create function headrace.presence_expire(session uuid, serial bigint) returns int
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
as $$
declare
    streams text[];
    members text[];
begin
    delete from headrace.presence_session p
        where p.session = presence_expire.session and p.serial = presence_expire.serial;
    if not found then
        return null;
    end if;
    -- Nobody else adds holders of this session: a report of it waits for this transaction, and finds the session gone.
    select coalesce(array_agg(h.stream), '{}'), coalesce(array_agg(h.member), '{}') into streams, members
        from headrace.presence_holder h where h.session = presence_expire.session;
    perform headrace.presence_lock(streams);
    delete from headrace.presence_holder h where h.session = presence_expire.session;
    return headrace.presence_settle('{}', '{}', streams, members);
end $$;
comment on function headrace.presence_expire(uuid, bigint) is
    'Ends a session that has fallen silent, once; returns how many users have left.';

-- Who is on a stream.
create function headrace.members(stream text) returns table (member text, since timestamptz)
language sql stable strict security definer
set search_path to pg_catalog, pg_temp
as $$
    select m.member, m.since from headrace.presence_member m where m.stream = members.stream order by m.since, m.member
$$;
comment on function headrace.members(text) is
    'The users on a stream in the snapshot of this statement, with the time when each joined.';

create function headrace.member_count(stream text) returns bigint
language sql stable strict security definer
set search_path to pg_catalog, pg_temp
as $$
    select coalesce((select p.members from headrace.presence p where p.stream = member_count.stream), 0)
$$;
comment on function headrace.member_count(text) is
    'How many users are on a stream, from one row, in the snapshot of this statement.';

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
grant execute on function headrace.members(text), headrace.member_count(text) to headrace_publisher;
