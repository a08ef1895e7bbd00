-- Revocation: whose tokens are refused from now on, and whose connections are closed.
--
-- Theory. headrace.disconnect adds a row with the caller's transaction. Every shard reads the new rows several times a
-- second and keeps them in memory, so that nothing in the path of a request asks PostgreSQL.
--
--   Which rows are new. Ids of an identity column do not become visible in their order. So each row has the id of its
--   transaction, and each reading returns a floor below which every transaction had ended when it read (the snapshot's
--   xmin): whatever was invisible then has an id at or above it, and the next reading asks from there. A row may be
--   read twice, never missed. While a transaction stays open, the rows since its begin are read again.
--
--   From when on. Tokens carry the time of their issue by the clock of the application's host, in whole milliseconds.
--   What is compared with it is this server's clock when the disconnecting transaction commits (a deferred trigger sets
--   it), not when the function was called: until the commit, others may still sign tokens for that user. It is rounded
--   down to the millisecond and tokens of that same millisecond are refused too; the trigger then waits for the
--   millisecond to end, so that a token that is signed after the commit, on a clock that agrees, is never refused. Of
--   a host whose clock is ahead by s, tokens of the last s before the disconnect escape, and so does a token signed just
--   after it by a request that began before it: `skew` refuses those as well, and whatever else is signed in that time.
--   Of a host whose clock is behind by s, tokens of the first s afterwards are refused.

create table headrace.revocation (
    revocation_id bigint generated always as identity primary key,
    xid xid8 not null,
    user_name text collate "C",
    stream text collate "C",
    reason text not null,
    skew interval not null,
    issued_to_ms bigint not null,
    check ((user_name is null) <> (stream is null))
);
comment on table headrace.revocation is 'Every headrace.disconnect that may still matter; read by shards.';
comment on column headrace.revocation.revocation_id is 'Tells rows apart; not the order in which they became visible.';
comment on column headrace.revocation.xid is 'The transaction that made the row.';
comment on column headrace.revocation.user_name is 'Whose tokens are refused and connections closed, or null.';
comment on column headrace.revocation.stream is 'The stream whose connections are closed, once, or null.';
comment on column headrace.revocation.reason is 'What the clients are told.';
comment on column headrace.revocation.skew is 'How far tokens issued after the commit are refused as well.';
comment on column headrace.revocation.issued_to_ms is
    'Tokens issued up to this, in milliseconds since 1970, are refused: the commit and the skew; 0 or -1 before.';

create index revocation_xid on headrace.revocation (xid);
create index revocation_user on headrace.revocation (user_name, issued_to_ms) where user_name is not null;

-- Twice at commit: what is changed by a deferred trigger fires another behind all that were waiting already. So the time
-- is taken when the streams that the transaction also publishes to have been waited for, and no token is signed between.
create function headrace.date_revocation() returns trigger
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if not exists (
        select from headrace.revocation r
            where r.revocation_id = new.revocation_id and r.issued_to_ms = new.issued_to_ms
    ) then
        return null;  -- another row's trigger has done all of the transaction, so that it waits once
    end if;
    if new.issued_to_ms = 0 then
        update headrace.revocation r set issued_to_ms = -1 where r.xid = new.xid and r.issued_to_ms = 0;
    else
        update headrace.revocation r
            set issued_to_ms = floor(extract(epoch from clock_timestamp() + r.skew) * 1000)
            where r.xid = new.xid and r.issued_to_ms = -1;
        perform pg_sleep(0.001);
    end if;
    return null;
end $$;
comment on function headrace.date_revocation() is 'Constraint trigger: dates a transaction''s revocations when it commits.';

create constraint trigger date_revocation after insert or update on headrace.revocation
    deferrable initially deferred
    for each row when (new.issued_to_ms <= 0) execute function headrace.date_revocation();
-- Also in a session of a logical replication worker, which fires no ordinary trigger.
alter table headrace.revocation enable always trigger date_revocation;

-- Closes connections on every node when, and only if, this transaction commits: those of a user, whose tokens issued
-- before the commit are refused from then on; or those that are subscribed to a stream, which may come back. Give one.
create function headrace.disconnect(
    user_name text default null, stream text default null, reason text default 'disconnected',
    skew interval default interval '0'
) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if (user_name is null) = (stream is null) then
        raise exception 'disconnect a user or a stream, one of the two' using errcode = '22023';
    end if;
    if octet_length(user_name) > 16384 then
        raise exception 'a user has at most 16384 bytes, this one has %', octet_length(user_name)
            using errcode = '22023';
    end if;
    if octet_length(stream) not between 1 and 512 then
        raise exception 'a stream name must have 1 to 512 bytes, this one has %', octet_length(stream)
            using errcode = '22023';
    end if;
    if reason is null or octet_length(reason) not between 1 and 512 then
        raise exception 'a reason must have 1 to 512 bytes' using errcode = '22023';
    end if;
    if skew is null or skew < interval '0' or skew > interval '1 day' then
        raise exception 'the skew must be from nothing to a day, not %', skew using errcode = '22023';
    end if;
    insert into headrace.revocation (xid, user_name, stream, reason, skew, issued_to_ms)
        values (pg_current_xact_id(), user_name, stream, reason, skew, 0);
end $$;
comment on function headrace.disconnect(text, text, text, interval) is
    'Closes a user''s connections and refuses its older tokens, or closes a stream''s connections, at commit.';

-- The revocations that transactions from `since` on have made. For shards.
--
-- Rows: at least one, whose columns but the first are null if there is none.
--   floor    what to give as `since` the next time, on the same connection
--   age_ms   how long ago a stream's connections were to be closed
create function headrace.read_revocations(since xid8)
returns table (
    floor xid8, revocation_id bigint, user_name text, stream text, reason text, issued_to_ms bigint, age_ms bigint
)
language sql stable security definer
set search_path to pg_catalog, pg_temp
as $$
    select pg_snapshot_xmin(pg_current_snapshot()), r.revocation_id, r.user_name, r.stream, r.reason, r.issued_to_ms,
            (extract(epoch from clock_timestamp()) * 1000)::bigint - r.issued_to_ms
        from (values (1)) v left join headrace.revocation r on r.xid >= since
$$;
comment on function headrace.read_revocations(xid8) is 'New revocations, and where the next reading begins; for shards.';

-- Forgets what can no longer matter: a user's row that a later one covers, one older than any token may live (null: for
-- ever), and a stream's after an hour. An hour is added for clocks that disagree. Returns how many.
create function headrace.forget_revocations(token_life interval) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    gone bigint;
    now_ms constant bigint := extract(epoch from clock_timestamp()) * 1000;
begin
    delete from headrace.revocation r
        where r.stream is not null and r.issued_to_ms < now_ms - 3600000
            or r.user_name is not null and r.issued_to_ms
                < now_ms - 3600000 - (extract(epoch from token_life) * 1000)::bigint
            or exists (
                select from headrace.revocation n where n.user_name = r.user_name
                    and (n.issued_to_ms, n.revocation_id) > (r.issued_to_ms, r.revocation_id)
            );
    get diagnostics gone = row_count;
    return gone;
end $$;
comment on function headrace.forget_revocations(interval) is 'Removes revocations that no token can be hit by.';

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
-- Not a role of its own: who may publish can say anything to everybody already, and the same application does both.
grant execute on function headrace.disconnect(text, text, text, interval) to headrace_publisher;
