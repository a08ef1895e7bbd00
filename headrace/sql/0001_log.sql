-- The log: its tables, and how the ids of a stream are given out.
--
-- Rules.
--   Ids are per stream, without gaps and in commit order: who gives out an id holds the lock on the stream's row until
--   it commits, so once a reader has seen id n, nothing at or below n can still appear.
--   A jump (ids that never existed) and a trim (ids that exist no longer) are recorded, never guessed from arithmetic.
--   An id that anybody may have seen is never given to another event.
--
-- Ids and timelines. After fail-over to a replica that lacked the last commits, the counters of the lost ones stand
-- lower than what clients have seen. PostgreSQL gives every promotion a new timeline number, so each stream remembers
-- the timeline it was last numbered on, and when that is no longer the server's, it goes on in a fresh block of ids:
--
--       id = block (23 bits) . number within the block (40 bits)
--
-- Nobody but the owner of these tables has any right on them; everything goes through SECURITY DEFINER functions.

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'headrace_publisher') then
        create role headrace_publisher nologin;
    end if;
exception
    -- The same migration of another database of this server made it a moment ago: roles are shared by all databases.
    when duplicate_object or unique_violation then null;
    when insufficient_privilege then
        raise exception 'the user % may not create the role headrace_publisher', current_user using
            errcode = 'insufficient_privilege',
            hint = 'run `CREATE ROLE headrace_publisher NOLOGIN` as a superuser, then migrate again';
end $$;

grant usage on schema headrace to headrace_publisher;

-- Streams. One row each; `last_id` changes with every publish, so no index may cover anything but name and stream_id
-- (all updates stay HOT), and half of each page is left free for the next row versions.
create table headrace.stream (
    stream_id int generated always as identity primary key,
    name text collate "C" not null unique,
    slot smallint not null,
    last_id bigint not null,
    timeline bigint not null
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.stream is 'Every stream that was ever published to, with the head of its log.';
comment on column headrace.stream.stream_id is 'Short key of the stream in the other tables; never reused.';
comment on column headrace.stream.name is 'The name, 1 to 512 bytes, compared byte by byte.';
comment on column headrace.stream.slot is 'headrace.slot(name): notifications go to the channel headrace_slot_<slot>.';
comment on column headrace.stream.last_id is 'The head: the newest id given out.';
comment on column headrace.stream.timeline is 'The server''s timeline when last_id was given out.';

-- Events. No foreign key to the stream: it would lock the stream's hot row on every insert.
create table headrace.event (
    stream_id int not null,
    id bigint not null,
    created_at timestamptz not null,
    type text,
    data text not null,
    visible_to text,
    primary key (stream_id, id)
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.event is
    'The kept events. Retention removes a prefix of a stream''s ids, never one from the middle.';
comment on column headrace.event.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.event.id is 'Position in the stream.';
comment on column headrace.event.created_at is 'The clock when the id was given out; only retention relies on it.';
comment on column headrace.event.type is 'The event type; null means "message".';
comment on column headrace.event.data is 'The payload.';
comment on column headrace.event.visible_to is 'Audience label that a connection must have; null means everybody.';

-- Retention walks the events in the order of their age; the included columns spare it the table itself.
create index event_created_at on headrace.event (created_at) include (stream_id, id);

-- A table of its own: a further column on headrace.stream would make retention contend with publishing.
create table headrace.trimmed (
    stream_id int primary key,
    trimmed_to bigint not null
) with (fillfactor = 50);
comment on table headrace.trimmed is 'The mark of retention per stream; written by headrace.prune alone.';
comment on column headrace.trimmed.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.trimmed.trimmed_to is 'Events up to this id are no longer kept.';

create table headrace.jump (
    stream_id int not null,
    from_id bigint not null,
    to_id bigint not null,
    primary key (stream_id, to_id),
    check (from_id between 1 and to_id)
);
comment on table headrace.jump is
    'Ranges of ids that never existed in this log. Kept for ever: one row per stream and fail-over.';
comment on column headrace.jump.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.jump.from_id is 'First id of the range.';
comment on column headrace.jump.to_id is 'Last id of the range; the next event has to_id + 1.';

-- One row: the block in which streams new on this timeline begin, since a lost stream may have had any id before it.
create table headrace.epoch (
    single boolean primary key default true check (single),
    timeline bigint not null,
    block bigint not null
);
comment on table headrace.epoch is 'Where new streams begin; one row, changed by the first publish after a fail-over.';
comment on column headrace.epoch.single is 'Always true: there is one row.';
comment on column headrace.epoch.timeline is 'The timeline that block was set for.';
comment on column headrace.epoch.block is 'New streams begin at this block of ids.';

-- All 1024 rows exist from the start, so that a creator can lock the row and sees every removal before its own.
create table headrace.slot_floor (
    slot smallint primary key,
    floor bigint not null
) with (fillfactor = 50);
comment on table headrace.slot_floor is
    'Per slot the highest id of any removed stream: a stream made again begins above it.';
comment on column headrace.slot_floor.slot is 'The slot, 0 to 1023.';
comment on column headrace.slot_floor.floor is 'New streams of this slot begin above this id.';
insert into headrace.slot_floor (slot, floor) select n, 0 from generate_series(0, 1023) n;

-- The slot of a stream: the first two bytes of sha256(name as UTF-8), big-endian, modulo 1024. Python computes the
-- same.
create function headrace.slot(name text) returns int
language sql immutable strict parallel safe security definer
set search_path to pg_catalog, pg_temp
as $$
    select ('x' || encode(substr(sha256(convert_to(name, 'UTF8')), 1, 2), 'hex'))::bit(16)::int & 1023
$$;
comment on function headrace.slot(text) is 'Slot of a stream name, 0 to 1023.';

-- The timeline of the server's write-ahead log: the first 8 hexadecimal digits of the current segment's name.
create function headrace.server_timeline() returns bigint
language sql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
    select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
$$;
comment on function headrace.server_timeline() is 'The server''s current timeline; raises during recovery.';

insert into headrace.epoch (timeline, block) select headrace.server_timeline(), 0;

-- What every numbering MUST call before it takes its first stream. It returns the timeline to number on, and
--   makes the commit durable: an event that a client has seen must survive a crash, or its id would be given out again;
--   moves the epoch to this timeline: locked later, between two streams, it could deadlock with another numbering.
create function headrace.begin_numbering() returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    now_on constant bigint := headrace.server_timeline();
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    if not exists (select from headrace.epoch e where e.timeline = now_on) then
        update headrace.epoch e
            set block = e.block + case when now_on > e.timeline then now_on - e.timeline else 1 end, timeline = now_on
            where e.timeline <> now_on;
    end if;
    return now_on;
end $$;
comment on function headrace.begin_numbering() is
    'Prepares the transaction for numbering; returns the timeline for headrace.take.';

-- Gives out the next `count` ids of a stream, from before + 1 on, and announces them. The lock on the stream's row is
-- held until the transaction ends. Callers that take several streams MUST take them in the order of their names
-- (collation "C"); in another order they could deadlock. `now_on` is from headrace.begin_numbering.
create function headrace.take(
    name text, count int, now_on bigint, out stream_id int, out before bigint
)
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    home constant smallint := headrace.slot(name);
    found_row headrace.stream;
    head bigint;
    start bigint;
begin
    loop
        update headrace.stream s set last_id = s.last_id + count
            where s.name = take.name and s.timeline = now_on
            returning s.stream_id, s.last_id into stream_id, head;
        exit when found;

        select s.* into found_row from headrace.stream s where s.name = take.name for update;
        if not found then
            -- The lock on the floor keeps a removal of this stream out until we have committed.
            select greatest(f.floor, e.block << 40) into strict start
                from headrace.slot_floor f, headrace.epoch e where f.slot = home for share of f;
            insert into headrace.stream as s (name, slot, last_id, timeline) values (take.name, home, start, now_on)
                on conflict do nothing returning s.stream_id into stream_id;
            if found and start > 0 then
                insert into headrace.jump (stream_id, from_id, to_id) values (take.stream_id, 1, start);
            end if;
        elsif found_row.timeline <> now_on then
            start := ((found_row.last_id >> 40) + greatest(now_on - found_row.timeline, 1)) << 40;
            insert into headrace.jump (stream_id, from_id, to_id)
                values (found_row.stream_id, found_row.last_id + 1, start);
            update headrace.stream s set last_id = start, timeline = now_on where s.stream_id = found_row.stream_id;
        end if;
    end loop;
    before := head - count;
    perform pg_notify('headrace_slot_' || home, head || ' ' || name);
end $$;
comment on function headrace.take(text, int, bigint) is
    'Gives out ids before + 1 .. before + count of a stream, creating it if needed, and notifies its slot.';

-- A removed stream takes its events, marks and jumps with it, and leaves the floor for a stream of the same name.
create function headrace.stream_removed() returns trigger
language plpgsql security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    update headrace.slot_floor f set floor = old.last_id where f.slot = old.slot and f.floor < old.last_id;
    delete from headrace.event e where e.stream_id = old.stream_id;
    delete from headrace.trimmed t where t.stream_id = old.stream_id;
    delete from headrace.jump j where j.stream_id = old.stream_id;
    return null;
end $$;
comment on function headrace.stream_removed() is
    'Row trigger: remembers the ids of a removed stream, removes the rest.';

create function headrace.streams_truncated() returns trigger
language plpgsql security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot may be older than the lock, and would show lower heads than clients have seen.
        raise exception 'headrace.stream can be truncated in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    update headrace.slot_floor f set floor = greatest(f.floor, s.last_id)
        from (select slot, max(last_id) as last_id from headrace.stream group by slot) s where s.slot = f.slot;
    truncate headrace.event, headrace.trimmed, headrace.jump;
    return null;
end $$;
comment on function headrace.streams_truncated() is 'Statement trigger: the same as stream_removed, for TRUNCATE.';

create trigger stream_removed after delete on headrace.stream
    for each row execute function headrace.stream_removed();
create trigger streams_truncated before truncate on headrace.stream
    for each statement execute function headrace.streams_truncated();
-- Also in a session of a logical replication worker, which fires no ordinary trigger.
alter table headrace.stream enable always trigger stream_removed;
alter table headrace.stream enable always trigger streams_truncated;

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
