-- Publishing over HTTP: ids at once for a batch, and once for all requests with the same key.

-- Publish one event per position and return their ids in that order. Numbered at once, streams in the order of their
-- names, so two such transactions do not deadlock; the streams stay locked until the transaction ends, so this is for
-- a transaction of its own, like publish_now.
create function headrace.publish_many_now(
    streams text[], data text[], events text[] default null, visible_to text[] default null, out ids bigint[]
)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    perform headrace.publish_many(streams, data, events, visible_to);
    set constraints headrace.number_staged immediate;
    set constraints headrace.number_staged deferred;
    -- Nobody can have numbered an event of these streams since: ours are the last of each.
    select coalesce(array_agg(s.last_id - c.total + c.rank order by c.place), '{}') into ids
        from (
            select u.stream, u.place,
                    row_number() over (partition by u.stream order by u.place) as rank,
                    count(*) over (partition by u.stream) as total
                from unnest(publish_many_now.streams) with ordinality as u (stream, place)
        ) c
        join headrace.stream s on s.name = c.stream;
end $$;
comment on function headrace.publish_many_now(text[], text[], text[], text[]) is
    'Publishes like headrace.publish_many, but numbers at once and returns the ids; for a transaction of its own.';

create table headrace.publication (
    key bytea primary key,
    digest bytea not null,
    ids bigint[] not null default '{}',
    created_at timestamptz not null default clock_timestamp()
);
comment on table headrace.publication is 'What was published under an idempotency key, as long as it may be repeated.';
comment on column headrace.publication.key is 'sha256 of who published and the key that it gave.';
comment on column headrace.publication.digest is 'sha256 of the events.';
comment on column headrace.publication.ids is 'The ids of the events.';
comment on column headrace.publication.created_at is 'When; only its removal relies on it.';
create index publication_created_at on headrace.publication (created_at);

-- Publish like publish_many_now, but for one key only once: again, it returns the same ids and publishes nothing; while
-- a transaction with the key is open, it waits for that. A null key is none. Raises 22HR1 if the key was used for other
-- events.
create function headrace.publish_once(
    key bytea, digest bytea, streams text[], data text[], events text[], visible_to text[]
) returns bigint[]
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    known headrace.publication;
    new_ids bigint[];
begin
    if key is null then
        return headrace.publish_many_now(streams, data, events, visible_to);
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot may be older than the other transaction with the key.
        raise exception 'a key can be used in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    loop
        insert into headrace.publication (key, digest) values (publish_once.key, publish_once.digest)
            on conflict on constraint publication_pkey do nothing;
        exit when found;
        select p.* into known from headrace.publication p where p.key = publish_once.key;
        if found then  -- else it was forgotten a moment ago
            if known.digest <> publish_once.digest then
                raise exception 'the key was used for other events' using errcode = '22HR1';
            end if;
            return known.ids;
        end if;
    end loop;
    new_ids := headrace.publish_many_now(streams, data, events, visible_to);
    update headrace.publication p set ids = new_ids where p.key = publish_once.key;
    return new_ids;
end $$;
comment on function headrace.publish_once(bytea, bytea, text[], text[], text[], text[]) is
    'Publishes a batch once for a key and returns its ids; for the router.';

create function headrace.forget_publications(keep interval) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    gone bigint;
begin
    delete from headrace.publication p where p.created_at < clock_timestamp() - keep;
    get diagnostics gone = row_count;
    return gone;
end $$;
comment on function headrace.forget_publications(interval) is 'Removes the keys that were used longer ago.';

revoke all on headrace.publication from public;
revoke all on function
    headrace.publish_many_now(text[], text[], text[], text[]),
    headrace.publish_once(bytea, bytea, text[], text[], text[], text[]),
    headrace.forget_publications(interval)
    from public;
grant execute on function
    headrace.publish_many_now(text[], text[], text[], text[]),
    headrace.publish_once(bytea, bytea, text[], text[], text[], text[])
    to headrace_publisher;
