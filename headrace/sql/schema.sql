-- The whole schema `headrace`, as the migrations 0001_*.sql and following leave it behind. For readers: a database is
-- made by `headrace migrate`, never by this file. `make schema` writes it, with the definitions that PostgreSQL has of
-- tables and functions; tests hold it to the migrations.
--
--     1 The record of the migrations    5 Numbering            9 Revocation
--     2 Streams and events              6 Reading             10 Presence
--     3 The deployment                  7 Retention           11 Publishing over HTTP
--     4 Publishing                      8 Changes of tables   12 For older versions
--
-- One role, headrace_publisher, may call the functions that are granted to it at the end of this file. Nobody but the
-- owner of the schema has any right on a table. Functions that touch tables are SECURITY DEFINER, and each function
-- that is not inlined fixes its search path, or is called by those alone that have fixed it, so that nothing which a
-- stranger makes in another schema is ever called.

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'headrace_publisher') then
        create role headrace_publisher nologin;
    end if;
end $$;
create schema headrace;
grant usage on schema headrace to headrace_publisher;
-- Functions stand in the order in which they are best read; some use what comes later.
set check_function_bodies to off;


-- 1 The record of the migrations --------------------------------------------------------------------------------------

create table headrace.migration (
    version integer not null,
    applied_at timestamp with time zone not null default clock_timestamp(),
    oldest integer not null default 0,
    primary key (version)
);
comment on table headrace.migration is 'The migrations that this database has: one row for each.';
comment on column headrace.migration.version is 'The number at the beginning of the file''s name.';
comment on column headrace.migration.applied_at is 'When it was applied.';
comment on column headrace.migration.oldest is
    'Programs that know fewer migrations than this do not work with the schema any more; 0: all work.';

insert into headrace.migration (version, oldest) values
    (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 0), (12, 0), (13, 0), (14, 0),
    (15, 0), (16, 0), (17, 0), (18, 0), (19, 0), (20, 0), (21, 0), (22, 0), (23, 0), (24, 0), (25, 0), (26, 0), (27, 0),
    (28, 0);


-- 2 Streams and events ------------------------------------------------------------------------------------------------
--
-- Rules.
--   Ids are per stream and in the order of the commits: a transaction that gives out an id holds the lock on the
--   stream's row until it commits, so once a reader has seen id n, nothing at or below n can still appear.
--   Within one incarnation (chapter 3) ids have no gaps. A jump (ids that never existed) and a trim (ids that are no
--   longer kept) are recorded, never guessed from arithmetic.
--   An id that anybody may have seen is never given to another event.
--
-- last_id of headrace.stream changes with every publish. So no index covers anything but name and stream_id (all
-- updates stay HOT), and half of each page is left free for the next versions of rows. headrace.event has no foreign
-- key to the stream, which would lock the stream's busy row on every insert. headrace.trimmed is a table of its own
-- because a further column of headrace.stream would make retention contend with publishing. All 1024 rows of
-- headrace.slot_floor exist from the start, so that a transaction that makes a stream can lock the row and sees every
-- removal before its own.

create function headrace.slot(name text)
returns integer
language sql
immutable parallel safe strict security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select ('x' || encode(substr(sha256(convert_to(name, 'UTF8')), 1, 2), 'hex'))::bit(16)::int & 1023
$$;
comment on function headrace.slot(text) is
    'The slot of a stream''s name, 0 to 1023: the first two bytes of sha256(name as UTF-8), big-endian, modulo 1024.';

create table headrace.stream (
    stream_id integer not null generated always as identity,
    name text collate "C" not null,
    slot smallint not null,
    last_id bigint not null,
    timeline bigint not null,
    primary key (stream_id),
    unique (name)
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.stream is
    'Every stream that was published to and is not forgotten, with the head of its log.';
comment on column headrace.stream.stream_id is 'Short key of the stream in the other tables; never reused.';
comment on column headrace.stream.name is 'The name, 1 to 512 bytes, compared byte by byte.';
comment on column headrace.stream.slot is 'headrace.slot(name): notifications go to the channel headrace_slot_<slot>.';
comment on column headrace.stream.last_id is 'The head: the newest id given out.';
comment on column headrace.stream.timeline is
    'Number of the incarnation in which last_id was given out. The first incarnations are numbered by timeline.';

create table headrace.event (
    stream_id integer not null,
    id bigint not null,
    created_at timestamp with time zone not null,
    type text,
    data text,
    visible_to text,
    xid xid8,
    seq bigint,
    primary key (stream_id, id)
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.event is
    'The kept events, in their places. Retention removes a prefix of a stream''s ids, never one from the middle.';
comment on column headrace.event.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.event.id is 'Position in the stream.';
comment on column headrace.event.created_at is 'The clock when the id was given out; only retention relies on it.';
comment on column headrace.event.type is 'As in headrace.payload, where seq is null.';
comment on column headrace.event.data is 'As in headrace.payload, where seq is null; else null.';
comment on column headrace.event.visible_to is 'As in headrace.payload, where seq is null.';
comment on column headrace.event.xid is 'With seq, the row of headrace.payload; null where the payload is in this row.';
comment on column headrace.event.seq is 'See xid.';
create index event_created_at on headrace.event using btree (created_at) include (stream_id, id);

create table headrace.trimmed (
    stream_id integer not null,
    trimmed_to bigint not null,
    used_at timestamp with time zone not null default now(),
    begins_after bigint not null default 0,
    primary key (stream_id)
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02
);
comment on table headrace.trimmed is
    'The mark of retention per stream that has lost events, or that was made in a slot with forgotten streams.';
comment on column headrace.trimmed.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.trimmed.trimmed_to is 'Events up to this id are no longer kept.';
comment on column headrace.trimmed.used_at is
    'When the stream last lost an event, or a shard last noted that it has a subscriber.';
comment on column headrace.trimmed.begins_after is
    'Ids up to this one are of forgotten streams: the stream was made above them. 0 if there were none.';

create table headrace.jump (
    stream_id integer not null,
    from_id bigint not null,
    to_id bigint not null,
    primary key (stream_id, to_id),
    check (((from_id >= 1) and (from_id <= to_id)))
);
comment on table headrace.jump is
    'Ranges of ids that never existed in this log. Kept for ever: one row per stream and fail-over.';
comment on column headrace.jump.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.jump.from_id is 'First id of the range.';
comment on column headrace.jump.to_id is 'Last id of the range; the next event has to_id + 1.';

create table headrace.slot_floor (
    slot smallint not null,
    floor bigint not null,
    forgotten bigint not null default 0,
    primary key (slot)
) with (
    fillfactor = 50
);
comment on table headrace.slot_floor is
    'Per slot the highest id of any removed and of any forgotten stream: a stream made again begins above both.';
comment on column headrace.slot_floor.slot is 'The slot, 0 to 1023.';
comment on column headrace.slot_floor.floor is
    'New streams of this slot begin above this id, because of streams that were removed by hand.';
comment on column headrace.slot_floor.forgotten is
    'The highest head that any forgotten stream of this slot had; 0 if none was forgotten.';

insert into headrace.slot_floor (slot, floor) select n, 0 from generate_series(0, 1023) n;

-- A removed stream takes its events, marks and jumps with it, and leaves the floor for a stream of the same name. The
-- triggers fire in a session of a logical replication worker, too, which fires no ordinary trigger.

create function headrace.stream_removed()
returns trigger
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    if current_setting('headrace.forgetting', true) is distinct from 'on' then
        update headrace.slot_floor f set floor = greatest(old.last_id, nullif(f.forgotten, 0) + 1)
            where f.slot = old.slot and f.floor < greatest(old.last_id, nullif(f.forgotten, 0) + 1);
    end if;
    with gone as (
        delete from headrace.event e where e.stream_id = old.stream_id returning e.xid, e.seq
    )
    delete from headrace.payload p using gone g where p.xid = g.xid and p.seq = g.seq;
    delete from headrace.trimmed t where t.stream_id = old.stream_id;
    delete from headrace.removed r where r.stream_id = old.stream_id;
    delete from headrace.jump j where j.stream_id = old.stream_id;
    return null;
end $$;
comment on function headrace.stream_removed() is
'Row trigger of headrace.stream: remembers the head of a removed stream in headrace.slot_floor, and removes its events,
their payloads, its marks and jumps. Events without an id are not removed: for them the stream is made again.';
create trigger stream_removed after delete on headrace.stream
    for each row
    execute function headrace.stream_removed();
alter table headrace.stream enable always trigger stream_removed;

create function headrace.streams_truncated()
returns trigger
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot may be older than the lock, and would show lower heads than clients have seen.
        raise exception 'headrace.stream can be truncated in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    update headrace.slot_floor f set floor = greatest(f.floor, s.last_id, nullif(f.forgotten, 0) + 1)
        from (select slot, max(last_id) as last_id from headrace.stream group by slot) s where s.slot = f.slot;
    delete from headrace.payload p using headrace.event e where p.xid = e.xid and p.seq = e.seq;
    truncate headrace.event, headrace.trimmed, headrace.removed, headrace.jump;
    return null;
end $$;
comment on function headrace.streams_truncated() is
'Statement trigger of headrace.stream: what stream_removed does, for TRUNCATE. Raises 25001 in a transaction that is
not READ COMMITTED. Payloads are deleted one by one: publishers use the table, and take locks in the other order.';
create trigger streams_truncated before truncate on headrace.stream
    for each statement
    execute function headrace.streams_truncated();
alter table headrace.stream enable always trigger streams_truncated;


-- 3 The deployment ----------------------------------------------------------------------------------------------------
--
-- A database can be copied: a dump is restored, in place of it or beside it; CREATE DATABASE … TEMPLATE; a standby is
-- promoted; a disk is restored. The copy's counters stand where they stood when it was made, below what clients have
-- seen since then. So each copy is an incarnation of its own: the ids that it gives out begin above all that any other
-- may have given out, and the jump is recorded. One row says which incarnation wrote it, by what no copy has in common
-- with it:
--
--     timeline    the server's timeline: a promotion, and a recovery to a point in time, begin another
--     file        the path of the table's file in the data directory: CREATE DATABASE … TEMPLATE, and a table that is
--                 made anew or truncated, have another
--     writer      the transaction that wrote the row, which is the row's own xmin: a program that restores the row from
--                 a dump, or replicates it, is another transaction
--
-- Where these are not the server's own, the next numbering begins an incarnation. A VACUUM FULL of the table, another
-- tablespace, or pg_upgrade may do so too, which costs one jump of each stream and nothing else. A disk, or a snapshot
-- of one, that comes back without a recovery cannot be told apart: there an operator calls headrace.begin_block.
--
-- Where ids begin. Incarnations begin at the microseconds since 1970, by the server's clock. Two copies of the same
-- rows never begin at the same id. One that begins later begins above all ids of one that began earlier, since no
-- stream has a million events a second for long. Ids stay below 2^53, so that JavaScript's numbers hold them. In case
-- the clock is behind, an incarnation begins at least 2^20 ids above what a stream has; more than that a fail-over does
-- not lose.
--
-- Where file and writer are null, nobody has published yet, or asked for the identity. The first transaction that does
-- writes them down in passing, and no other waits for that. A copy that was made before is as good as a new database,
-- and its ids begin at 1.
--
-- The identity tells deployments apart that share a Redis. A copy has another identity, except for a promoted standby
-- and a restored disk, which stand for their original. A copy that runs beside its original is given another identity
-- by headrace.begin_block(true).

create function headrace.server_timeline()
returns bigint
language sql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
$$;
comment on function headrace.server_timeline() is
'The timeline of the server''s write-ahead log: the first 8 hexadecimal digits of the current segment''s name. Raises
55000 during recovery.';

create table headrace.deployment (
    single boolean not null default true,
    id uuid not null,
    incarnation bigint not null,
    start bigint not null,
    timeline bigint not null,
    file text,
    writer xid,
    primary key (single),
    check (single)
);
comment on table headrace.deployment is
    'The identity of this deployment, and the incarnation of its tables; one row, written by headrace.begin_block.';
comment on column headrace.deployment.single is 'Always true: there is one row.';
comment on column headrace.deployment.id is 'The identity: no other deployment has it. Read it by headrace.identity().';
comment on column headrace.deployment.incarnation is
    'Number of the incarnation; streams with another in headrace.stream.timeline jump ahead when next published to.';
comment on column headrace.deployment.start is
    'In this incarnation new streams, and those that jump, begin above this id.';
comment on column headrace.deployment.timeline is 'The server''s timeline when the incarnation began.';
comment on column headrace.deployment.file is
    'The path of this table''s file when the row was written; null until somebody publishes.';
comment on column headrace.deployment.writer is
    'The transaction that wrote the row: its xmin, unless it is a copy; null until somebody publishes.';

create table headrace.epoch (
    single boolean not null default true,
    timeline bigint not null,
    block bigint not null,
    primary key (single),
    check (single)
);
comment on table headrace.epoch is
    'Its row is locked for a moment by headrace.raise_numbers. What is in it is as older numberings left it.';
comment on column headrace.epoch.single is 'Always true: there is one row.';
comment on column headrace.epoch.timeline is 'The timeline that block was set for.';
comment on column headrace.epoch.block is 'New streams begin at this block of ids.';

insert into headrace.epoch (timeline, block) select headrace.server_timeline(), 0;
insert into headrace.deployment (id, incarnation, start, timeline, file)
    select gen_random_uuid(), e.timeline, e.block << 40, e.timeline, pg_relation_filepath('headrace.deployment')
        from headrace.epoch e;

create function headrace.identity()
returns uuid
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    known headrace.deployment;
    copied boolean;
begin
    select d.* into strict known from headrace.deployment d;
    select d.file is distinct from pg_relation_filepath('headrace.deployment') or d.writer is distinct from d.xmin
        into strict copied from headrace.deployment d;
    if known.writer is null and current_setting('transaction_read_only') = 'on' then
        raise exception 'this database has no identity yet, and cannot be written to' using
            errcode = '25006', hint = 'run `select headrace.identity()` on the primary';
    end if;
    if copied and current_setting('transaction_read_only') = 'off' then
        perform headrace.begin_block(false, false);
        select d.* into strict known from headrace.deployment d;
    end if;
    return known.id;
end $$;
comment on function headrace.identity() is
'The identity of this deployment, a UUID that no other deployment has.

The first call writes it down. Raises 25006 where there is none yet and nothing can be written, as on a standby.';

create function headrace.begin_block(new_identity boolean default false, forced boolean default true)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    now_on constant bigint := headrace.server_timeline();
    known headrace.deployment;
    copied boolean;
    rewritten boolean;
    begun bigint;
    wrote xid;
begin
    select d.* into strict known from headrace.deployment d for update;
    select d.file is distinct from pg_relation_filepath('headrace.deployment') or d.writer is distinct from d.xmin,
            d.writer is distinct from d.xmin
        into strict copied, rewritten from headrace.deployment d;
    if not forced and known.timeline = now_on then
        if not copied then
            return known.incarnation;  -- another transaction has begun the incarnation a moment ago
        end if;
        if known.writer is null then
            begun := known.incarnation;
        end if;
    end if;
    if begun is null then
        begun := greatest(extract(epoch from clock_timestamp()) * 1000000, known.start + 1048576);
        known.start := begun;
        perform headrace.raise_numbers(begun);
    end if;
    if rewritten and known.writer is not null then
        perform headrace.adopt_turns();
    end if;
    update headrace.deployment d
        set id = case when copied or new_identity then gen_random_uuid() else d.id end,
            incarnation = begun, start = known.start, timeline = now_on,
            file = pg_relation_filepath('headrace.deployment')
        returning d.xmin into wrote;  -- of this subtransaction, if there is one
    update headrace.deployment d set writer = wrote;
    return begun;
end $$;
comment on function headrace.begin_block(boolean,boolean) is
'Begins an incarnation: ids go on above all that clients may have seen. Call it after a disk, or a snapshot of one, was
restored without a recovery, which cannot be noticed.

new_identity: true if this database is another deployment from now on, beside its original.
forced: false begins an incarnation only if the row of headrace.deployment was not written by this database.
Returns the number of the incarnation. For the owner of the schema.';

create function headrace.adopt_turns()
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    own constant xid8 := pg_current_xact_id();
    old_xids xid8[];
    old_seqs bigint[];
begin
    -- Turns of this server come last: their numbers are of a sequence that a replicated log has not.
    select array_agg(w.xid order by w.here, w.turn, w.seq), array_agg(w.seq order by w.here, w.turn, w.seq)
        into old_xids, old_seqs
        from (
            select t.xid, t.turn, p.seq, t.xmin = t.xid::xid as here from headrace.turn t
                join headrace.payload p on p.xid = t.xid and p.stream = t.stream
                    and case when t.alone then p.seq = t.from_seq else p.seq >= t.from_seq end
                where t.xid <> own and not exists (
                    select from headrace.stream s join headrace.event e on e.stream_id = s.stream_id
                        where s.name = p.stream and e.xid = p.xid and e.seq = p.seq
                )
        ) w;
    delete from headrace.turn t where t.xid <> own;
    delete from headrace.behind;
    -- All turns that exist from now on wait.
    insert into headrace.tick (n, seen) select coalesce(max(k.n), 0) + 1, '1:1:' from headrace.tick k;
    if old_xids is null then
        return;
    end if;
    with moved as (
        insert into headrace.payload (xid, stream, type, data, visible_to, rings)
            select '2', p.stream, p.type, p.data, p.visible_to, false
                from unnest(old_xids, old_seqs) with ordinality as w (xid, seq, place)
                join headrace.payload p on p.xid = w.xid and p.seq = w.seq order by w.place
            returning stream, seq
    )
    insert into headrace.turn (stream, xid, turn, from_seq, alone) overriding system value
        select m.stream, '2', 0, min(m.seq), count(*) = 1 from moved m group by m.stream;
    delete from headrace.payload p using unnest(old_xids, old_seqs) as w (xid, seq)
        where p.xid = w.xid and p.seq = w.seq;
end $$;
comment on function headrace.adopt_turns() is
'Leaves the turns that wait, in a log that was restored from a dump or replicated row by row, as turns of the transaction
2: the transactions that left them belong to another server. PostgreSQL gives the id 2 to no transaction.

What waits is told by headrace.event: it has no place there. For headrace.begin_block, while nobody can number.';


-- 4 Publishing --------------------------------------------------------------------------------------------------------
--
--     publish ──► payload ──┐ the first row of the transaction has the mark `rings`
--     publish ──► payload   │
--     COMMIT  ──► trigger ◄─┘ a shard in office?   yes: leaves a turn for each stream
--                                                  no:  numbers what waits in the streams, then this transaction's events
--
-- Publishing is one insert, and committing another: no publisher takes a lock that a second one could hold, apart from
-- those that number at commit. What is inserted is written once; an event's place in its stream, in headrace.event,
-- refers to it.
--
-- Savepoints need no care: a savepoint that is rolled back takes along its rows, the pending trigger, and the value of the
-- setting headrace.ringing, which says where the transaction is:
--
--     free PID      nothing was published; this session, of the process PID, has looked which incarnation this is
--     XID first     the transaction has one row of headrace.payload, which has the mark
--     XID more      it has more rows, and one of them has the mark
--     XID fired     a trigger has fired: the next row gets a mark of its own
--
-- All but the first are local to the transaction. They are set before the row is inserted, because under SET CONSTRAINTS
-- ALL IMMEDIATE the trigger fires within that INSERT. Anything else, as after RESET ALL, says nothing; then the next row
-- gets a mark, and its trigger looks what there is. Most transactions publish one event, READ COMMITTED, while a shard is
-- in office: for these, headrace.publish and the trigger have few expressions, and none of these looks into a table.
--
-- headrace.publish_now has to return an id. So it locks its stream at once, numbers what waits in it, and then its own
-- event, whose payload is in headrace.event itself.

create table headrace.limits (
    single boolean not null default true,
    max_payload_bytes bigint not null,
    primary key (single),
    check (((max_payload_bytes >= 1000) and (max_payload_bytes <= 67108864))),
    check (single)
);
comment on table headrace.limits is
    'What publishers may not exceed; one row, written by headrace.set_max_payload_bytes.';
comment on column headrace.limits.single is 'Always true: there is one row.';
comment on column headrace.limits.max_payload_bytes is 'How many bytes of UTF-8 the data of an event may have.';

insert into headrace.limits (max_payload_bytes) values (1048576);
create function headrace.max_payload_bytes()
returns bigint
language sql
stable parallel safe security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select coalesce((select l.max_payload_bytes from headrace.limits l), 1048576)
$$;
comment on function headrace.max_payload_bytes() is
    'How many bytes of UTF-8 the data of an event may have: 1,048,576 unless headrace.set_max_payload_bytes has changed it.';

create function headrace.set_max_payload_bytes(bytes bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    if bytes is null or bytes not between 1000 and 67108864 then
        raise exception 'the limit of an event''s data must be from 1,000 bytes to 67,108,864 (64 MiB), not %', bytes
            using errcode = '22023', hint = 'give a number of bytes; pg_size_bytes(''2 MB'') is one';
    end if;
    insert into headrace.limits as l (max_payload_bytes) values (bytes)
        on conflict (single) do update set max_payload_bytes = excluded.max_payload_bytes;
end $$;
comment on function headrace.set_max_payload_bytes(bigint) is
'Sets how many bytes of UTF-8 the data of an event may have, for every statement that begins after the commit.

For the owner of the schema. An event costs each shard with a client of its stream several times its size.

bytes: from 1,000 to 67,108,864 (64 MiB). Raises 22023 for another number.';


create table headrace.payload (
    xid xid8 not null,
    seq bigint not null generated always as identity,
    stream text collate "C" not null,
    type text,
    data text not null,
    visible_to text,
    rings boolean not null,
    primary key (xid, seq)
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.payload is
    'What was published: written once, by the publishing transaction; headrace.event says where in its stream it is.';
comment on column headrace.payload.xid is 'The publishing transaction.';
comment on column headrace.payload.seq is
    'Order of publishing within the transaction; no two events of a deployment have the same.';
comment on column headrace.payload.stream is 'Name of the stream.';
comment on column headrace.payload.type is 'The event type; null means "message".';
comment on column headrace.payload.data is 'The payload.';
comment on column headrace.payload.visible_to is 'Audience label that a connection must have; null means everybody.';
comment on column headrace.payload.rings is
    'True for the row whose trigger leaves the turns, or numbers, for this and all later rows of the transaction.';

create function headrace.fault(stream text, data text, type text, visible_to text)
returns text
language sql
stable
as $$
    select case
        when stream is null
            then 'the stream name is null; name a stream'
        when octet_length(stream) not between 1 and 512
            then 'a stream name must have 1 to 512 bytes, this one has ' || octet_length(stream)
        when data is null
            then 'the data is null; publish an empty text instead'
        when octet_length(data) > 1000 and octet_length(data) > headrace.max_payload_bytes()
            then 'the data has ' || octet_length(data) || ' bytes, more than headrace.max_payload_bytes() allows ('
                || headrace.max_payload_bytes() || '); the schema''s owner can call headrace.set_max_payload_bytes'
        when octet_length(type) not between 1 and 512
            then 'an event type must have 1 to 512 bytes, this one has ' || octet_length(type)
        when strpos(type, chr(10)) > 0 or strpos(type, chr(13)) > 0
            then 'an event type must not contain a line break'
        when starts_with(type, 'headrace:')
            then 'event types that begin with "headrace:" are reserved'
        when octet_length(visible_to) not between 1 and 512
            then 'an audience label must have 1 to 512 bytes, this one has ' || octet_length(visible_to)
    end
$$;
comment on function headrace.fault(text,text,text,text) is
    'Why an event with these arguments of headrace.publish is refused, as a sentence; null if it is allowed.';

create function headrace.rings(xid xid8)
returns boolean
language plpgsql
as $$
declare
    state constant text := coalesce(current_setting('headrace.ringing', true), '');
    free constant text := 'free ' || pg_backend_pid();
begin
    if state in (xid || ' first', xid || ' more') then
        perform set_config('headrace.ringing', xid || ' more', true);
        return current_setting('transaction_isolation') = 'serializable';
    end if;
    if state not in (free, xid || ' fired') then
        perform headrace.pass_old_numbers();
        perform set_config('headrace.ringing', free, false);
    end if;
    perform set_config('headrace.ringing', xid || ' more', true);
    return true;
end $$;
comment on function headrace.rings(xid8) is
'Whether the row of headrace.payload that is about to be inserted must get the mark `rings`, and so have a trigger.

True for the first row of a transaction, and again after a trigger has fired. True for each row of a SERIALIZABLE
transaction, whose trigger must read nothing: transactions fail for what they have read of each other''s rows. Once in a
session it calls headrace.pass_old_numbers, which costs half as much as an event. For callers that have fixed the search
path. headrace.publish spares most transactions the call.';

create function headrace.raise_numbers(up_to bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    numbers constant regclass := pg_get_serial_sequence('headrace.payload', 'seq');
    reached bigint;
begin
    perform from headrace.epoch e for update;
    reached := coalesce(pg_sequence_last_value(numbers), 0);
    perform setval(numbers, case when up_to > reached then up_to else reached + 1048576 end);
    raise exception using errcode = '22HR2';
exception when sqlstate '22HR2' then
    null;
end $$;
comment on function headrace.raise_numbers(bigint) is
'Lets headrace.payload.seq go on above up_to; if it is above that already, at least 2^20 higher.

The lock on the row of headrace.epoch keeps two sessions from setting the sequence back. Nobody must hold it until a
transaction ends, since publishers take it, so the function undoes all that it has done but the sequence, which nothing
undoes.';

create function headrace.pass_old_numbers()
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    perform from headrace.deployment d
        where d.writer is null or d.timeline = headrace.server_timeline()
            and d.file = pg_relation_filepath('headrace.deployment') and d.writer = d.xmin;
    if not found then
        perform headrace.raise_numbers((extract(epoch from clock_timestamp()) * 1000000)::bigint);
    end if;
end $$;
comment on function headrace.pass_old_numbers() is
'Where no numbering has begun this database''s incarnation yet, lets headrace.payload.seq go on above all that any other
incarnation has given out.

It waits for no transaction that begins the incarnation, since a publisher would wait for that.';

create function headrace.publish(
    stream text,
    data text,
    event text default 'message'::text,
    visible_to text default null::text
)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    refusal text;
    bell boolean;
begin
    if (
        octet_length(stream) between 1 and 512 and octet_length(data) <= 1000
        and event in ('message', 'insert', 'update', 'delete') and visible_to is null
    ) is not true then
        refusal := headrace.fault(stream, data, event, visible_to);
        if refusal is not null then
            raise exception using message = refusal, errcode = '22023';
        end if;
    end if;
    if current_setting('headrace.ringing', true) = 'free ' || pg_backend_pid() then
        bell := set_config('headrace.ringing', pg_current_xact_id() || ' first', true) <> '';
    else
        bell := headrace.rings(pg_current_xact_id());
    end if;
    insert into headrace.payload (xid, stream, type, data, visible_to, rings)
        values (pg_current_xact_id(), stream, nullif(event, 'message'), data, visible_to, bell);
end $$;
comment on function headrace.publish(text,text,text,text) is
'Publishes one event with this transaction: it exists when the transaction commits, and vanishes when it rolls back.

Publishing is an insert: it waits for no other publisher, and holds up none. The event gets its id at commit where no
shard numbers for all, else from that shard a moment later.

stream: its name, 1 to 512 bytes of UTF-8; a stream begins with its first event.
data: the payload, at most headrace.max_payload_bytes() bytes of UTF-8.
event: the type that browsers dispatch on, 1 to 512 bytes without a line break, not beginning with "headrace:"; null
means "message".
visible_to: the audience label that a client must have to see the event, 1 to 512 bytes; null means everybody.
Raises 22023 for an argument that is not allowed; 25006 in a read-only transaction.';

create function headrace.check_many(streams text[], data text[], events text[], visible_to text[])
returns void
language plpgsql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    size constant int := cardinality(streams);
    refusal text;
begin
    if streams is null or data is null then
        raise exception 'the array of streams or of data is null' using errcode = '22023';
    end if;
    if cardinality(data) <> size or cardinality(events) <> size or cardinality(visible_to) <> size then
        raise exception 'the arrays must have the same length: % streams, % data, % events, % visible_to',
            size, cardinality(data), coalesce(cardinality(events), size), coalesce(cardinality(visible_to), size)
            using errcode = '22023';
    end if;
    select 'event ' || u.place || ': ' || headrace.fault(u.stream, u.data, u.event, u.visible_to) into refusal
        from unnest(streams, check_many.data, events, check_many.visible_to)
            with ordinality as u (stream, data, event, visible_to, place)
        where headrace.fault(u.stream, u.data, u.event, u.visible_to) is not null
        order by u.place limit 1;
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
end $$;
comment on function headrace.check_many(text[],text[],text[],text[]) is
    'Raises 22023 if the arrays of a headrace.publish_many have different lengths, or if an event of theirs is not allowed.';

create function headrace.publish_many(
    streams text[],
    data text[],
    events text[] default null::text[],
    visible_to text[] default null::text[]
)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    this_xid xid8;
    bell boolean;
    bells boolean;
begin
    perform headrace.check_many(streams, data, events, visible_to);
    if cardinality(streams) = 0 then
        return;
    end if;
    this_xid := pg_current_xact_id();
    bell := headrace.rings(this_xid);
    bells := current_setting('transaction_isolation') = 'serializable';
    insert into headrace.payload (xid, stream, type, data, visible_to, rings)
        select this_xid, u.stream, nullif(u.event, 'message'), u.data, u.visible_to, bells or bell and u.place = 1
            from unnest(streams, publish_many.data, events, publish_many.visible_to)
                with ordinality as u (stream, data, event, visible_to, place)
            order by u.place;
end $$;
comment on function headrace.publish_many(text[],text[],text[],text[]) is
'Publishes one event per position of the arrays with this transaction; they get their ids in the order of the arrays.

streams, data: as in headrace.publish, one entry per event. Empty arrays publish nothing.
events, visible_to: as in headrace.publish, one entry per event; null means null for each.
Raises 22023 for arrays of different lengths, and for an event that is not allowed, with its position; 25006 in a
read-only transaction.';

create function headrace.require_read_committed(what text)
returns void
language plpgsql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        -- The snapshot may be older than events that committed before and have to come first.
        raise exception '% numbers at once, which needs a READ COMMITTED transaction', what using
            errcode = '25001', hint = 'call headrace.publish, whose events get their ids after the commit';
    end if;
end $$;
comment on function headrace.require_read_committed(text) is
    'Raises 25001 in a transaction that is not READ COMMITTED. what: the name of the function that numbers at once.';

create function headrace.publish_now(
    stream text,
    data text,
    event text default 'message'::text,
    visible_to text default null::text
)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
as $$
declare
    refusal constant text := headrace.fault(stream, data, event, visible_to);
    taken record;
    given bigint;
begin
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
    perform headrace.require_read_committed('headrace.publish_now');
    taken := headrace.take_one(stream, 1, headrace.begin_numbering());
    given := 1 + (headrace.number_waiting(array[stream], array[taken.stream_id], array[taken.before]))[1];
    insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
        values (taken.stream_id, given, clock_timestamp(), nullif(event, 'message'), data, visible_to);
    perform headrace.announce(array[taken.stream_id]);
    return given;
end $$;
comment on function headrace.publish_now(text,text,text,text) is
'Publishes one event like headrace.publish, but numbers it at once and returns its id.

For a transaction of its own: the stream stays locked until the transaction ends. Others who number in it at commit, or
call this, wait; two transactions that call this for the same streams in different orders may deadlock (40P01). Where a
shard numbers for all, it passes over the locked stream, and headrace.publish waits for nothing. Events that were
published before with headrace.publish in this transaction come after it.

Returns the id of the event. Raises 22023 for an argument that is not allowed; 25001 in a transaction that is not READ
COMMITTED; 25006 in a read-only transaction.';

create function headrace.publish_many_now(
    streams text[],
    data text[],
    events text[] default null::text[],
    visible_to text[] default null::text[],
    out ids bigint[]
)
returns bigint[]
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_nestloop to 'off'
set jit to 'off'
as $$
declare
    names text[];
    counts int[];
    stream_ids int[];
    befores bigint[];
begin
    perform headrace.check_many(streams, data, events, visible_to);
    ids := '{}';
    if cardinality(streams) = 0 then
        return;
    end if;
    perform headrace.require_read_committed('headrace.publish_many_now');
    select array_agg(g.stream order by g.stream), array_agg(g.events order by g.stream) into names, counts
        from (
            select u.stream collate "C" as stream, count(*)::int as events
                from unnest(publish_many_now.streams) as u (stream) group by 1
        ) g;
    select t.stream_ids, t.befores into stream_ids, befores
        from headrace.take_all(names, counts, headrace.begin_numbering()) t;
    befores := headrace.number_waiting(names, stream_ids, befores);
    with placed as materialized (
        select u.place, t.stream_id, u.type, u.data, u.visible_to,
                t.before + row_number() over (partition by u.stream order by u.place) as id
            from unnest(publish_many_now.streams, publish_many_now.data, events, publish_many_now.visible_to)
                with ordinality as u (stream, data, type, visible_to, place)
            join unnest(names, stream_ids, befores) as t (stream, stream_id, before) on t.stream = u.stream
    ), kept as (
        insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
            select p.stream_id, p.id, clock_timestamp(), nullif(p.type, 'message'), p.data, p.visible_to
                from placed p order by p.place
    )
    select array_agg(p.id order by p.place) into ids from placed p;
    perform headrace.announce(stream_ids);
end $$;
comment on function headrace.publish_many_now(text[],text[],text[],text[]) is
'Publishes like headrace.publish_many, but numbers at once and returns the ids. For a transaction of its own.

The streams stay locked until the transaction ends. Two transactions that call this once each do not deadlock, since
the streams are locked in the order of their names.

Returns the ids, in the order of the arrays. Raises like headrace.publish_many, and 25001 in a transaction that is not
READ COMMITTED.';


-- 5 Numbering ---------------------------------------------------------------------------------------------------------
--
-- An event gets its id after its transaction has come to commit, from whoever numbers its stream next:
--
--     few commits     each transaction numbers its own events at commit, and notifies: nothing is quicker, and no shard
--                     need run. It holds its streams until its commit is flushed
--     many commits    one shard is in *office*: a transaction leaves a *turn* for each stream, and every few milliseconds
--                     the shard does a *round*. It numbers all turns that have become visible, and notifies once for all
--
-- PostgreSQL gives notifications their order by a lock that a notifying transaction holds until its commit is flushed. So
-- where each transaction notifies, they flush one at a time on the whole server, even those of different streams; a
-- transaction that leaves a turn notifies nobody.
--
-- The order. If one transaction has waited for the commit of another before it took its turn, or has begun after that
-- commit, its events have higher ids. Transactions of which neither has waited for the other have no order. What gives
-- the order is the number of the turn, which is taken at commit. The order of the calls of headrace.publish would not do:
-- a transaction may publish first and wait afterwards. The order never depends on the office, which decides only who
-- numbers; a transaction may always leave a turn.
--
-- What waits. The bound of a stream is what headrace.behind has for it, else the newest tick. *A turn waits if and only if
-- it exists, is visible, and is not covered by its stream's bound*, that is, not visible in it.
--
-- Who numbers holds the stream's row, looks after it has the row, and numbers everything that waits, as seen then, in
-- the order of turns. That set contains, with each transaction, all that committed before it. Outside of a round the
-- numbered turns are deleted; in a round the bound moves in the same transaction. So no turn is numbered twice. Turns
-- below the bound are removed later by headrace.forget_turns.
--
-- A round waits for nobody. A stream that another transaction has locked is passed over: its turns wait on, since
-- headrace.behind keeps the bound that it had. `seen` is a snapshot from before the locks were taken, and turns that are
-- not visible in it are left for the next round; turns that others have deleted since then are no longer there. Ticks are
-- appended, so that an old snapshot elsewhere leaves no chain of dead versions of one row in the way; and rounds begin at
-- the last bound in the index of turns, so that they do not come across what was numbered before.
--
-- A transaction above READ COMMITTED always leaves turns: with its old snapshot it would not see what waits. Where nobody
-- is in office it wakes a shard by the notification `turn` on the channel headrace_rate, which a PREPARE TRANSACTION
-- does not allow.
--
-- A page. In its own snapshot, headrace.watermark reads the head and the events of the turns that wait: exactly those that
-- the page's data show, and that come later. So a page and its stream meet exactly; see headrace.watermark.
--
-- Two advisory locks tell who numbers. They are not data: what a publisher learns from them is true at that moment,
-- whatever snapshot the publisher has and however the shard in office ended.
--
--     office     held exclusively, for its session, by the shard in office. A publisher finds out by trying: what it gets
--                is given back at once, within one expression, which nothing can interrupt half-way
--     deferring  held in share, until its transaction has ended, by every publisher that has found the office held. It
--                looks at the office once more after it has this lock
--
-- Nothing waits for ever. The shard that leaves office gives up the lock first, goes on with rounds until it gets
-- `deferring` exclusively, for a moment, and does a last round. When it got that lock, every transaction that had seen it
-- in office had ended, and locks are given back after a commit has become visible; so the last round sees every turn. A
-- shard whose session ends otherwise loses the office with it, at once. The turns that it has not numbered are in a
-- logged table, and are numbered by its successor, by the shards that stand by, which do a round about once a second,
-- by the next transaction that numbers in the stream, or by any shard's pruner, within seconds. Anybody may do a round at
-- any time; the lock on the row of headrace.round lets one session do it.
--
-- No event is delivered before it is durable: publishing and numbering raise synchronous_commit to at least `local`. A
-- lost notification is a lost hint: each shard's sweep finds the new heads in a few seconds.
--
-- A shard in office that has stopped, or whose host is gone, would number nothing. So its session has an
-- idle_session_timeout, with which the server ends it; until then the shards that stand by do rounds.
--
-- A transaction that notifies also tells one time in 16 that it does, on the channel headrace_rate. From it shards
-- estimate how many commits there are in the database, also to streams that none of their clients follows.
--
-- The order of locks, which keeps those who number at commit from deadlocking with each other: first the streams that do
-- not exist yet are made, in the order of their names; then the rows of all are locked, in the order of their names
-- (collation "C"). A transaction in the first phase waits for makers only, in that order, and holds no row that others
-- could be waiting for in the second; one in the second phase waits for rows that are committed, in that order. UPDATE
-- promises no order, so the rows are locked before it by a SELECT that does. A transaction that finds in the second phase
-- that a stream was forgotten gives back all that it has made and locked, and begins with the first phase again. A round
-- takes locks in no order, and waits for none longer than 3 ms.
--
-- Only numbering makes streams, never publishing, which would wait for another maker at the index of names.
--
-- The settings of functions force their plans: statistics of tables that grow and empty in seconds are useless. Streams
-- are looked up one by one, by subqueries for a single value or by `= any`: a join would be at the mercy of what PostgreSQL
-- believes of the size of headrace.stream, which it takes for empty soon after nearly all streams were forgotten.
--
-- The locks are the bigints x'6865616472616361' ("headraca", office) and x'6865616472616364' ("headracd", deferring).
-- Processes of versions before 0.3 also use "headrace" and "headracm". Other programs that use advisory locks in this
-- database MUST NOT use any of these.

create table headrace.turn (
    stream text collate "C" not null,
    xid xid8 not null,
    turn bigint not null generated always as identity,
    from_seq bigint not null,
    alone boolean not null,
    primary key (stream, xid)
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.turn is
    'Published events that others number: one row a transaction and stream, written when the transaction commits.';
comment on column headrace.turn.stream is 'Name of the stream.';
comment on column headrace.turn.xid is 'The publishing transaction.';
comment on column headrace.turn.turn is 'The order in which transactions came to commit.';
comment on column headrace.turn.from_seq is
    'The turn is for the events of the stream and the transaction whose headrace.payload.seq is this or higher.';
comment on column headrace.turn.alone is 'True if there is only the event with the seq from_seq.';
create index turn_xid on headrace.turn using btree (xid);

create table headrace.tick (
    n bigint not null,
    seen pg_snapshot not null,
    primary key (n)
);
comment on table headrace.tick is
    'What the last rounds have numbered: in the row with the highest n, all turns visible in seen; but see headrace.behind.';
comment on column headrace.tick.n is 'Number of the round.';
comment on column headrace.tick.seen is 'The snapshot in which the round looked for turns.';

insert into headrace.tick (n, seen) values (0, '1:1:');
create table headrace.behind (
    stream text collate "C" not null,
    seen pg_snapshot not null,
    primary key (stream)
);
comment on table headrace.behind is
    'Streams that rounds have passed over, because others had them locked: their turns are numbered only as far as seen.';
comment on column headrace.behind.stream is 'Name of the stream.';
comment on column headrace.behind.seen is 'Takes the place of headrace.tick.seen for this stream.';

create table headrace.round (
    single boolean not null default true,
    primary key (single),
    check (single)
);
comment on table headrace.round is 'One row: the session that has its lock does a round.';
comment on column headrace.round.single is 'Always true: there is one row.';

insert into headrace.round default values;

create function headrace.begin_numbering()
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    now_in bigint;
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    select d.incarnation into now_in from headrace.deployment d
        where d.timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
            and d.file = pg_relation_filepath('headrace.deployment') and d.writer = d.xmin;
    if found then
        return now_in;
    end if;
    if not exists (
        select from headrace.deployment d where d.writer is null and d.timeline = headrace.server_timeline()
    ) then
        return headrace.begin_block(false, false);
    end if;
    perform from headrace.deployment d for update skip locked;
    if found then
        return headrace.begin_block(false, false);
    end if;
    -- Another transaction is writing the row for the first time, and keeps the incarnation as it is.
    return (select d.incarnation from headrace.deployment d);
end $$;
comment on function headrace.begin_numbering() is
'What every numbering MUST call before it takes its first stream.

It makes the commit durable, since an event that a client has seen must survive a crash, or its id would be given out
again. It begins an incarnation if need be: locked later, between two streams, the row of headrace.deployment could
deadlock with another numbering.

Returns the incarnation to number in, for headrace.take_one, headrace.take_all and headrace.make_streams.';

create function headrace.make_stream(name text, now_on bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    home constant smallint := headrace.slot(name);
    known headrace.slot_floor;
    start bigint;
    made int;
begin
    -- The lock on the row keeps a removal of this stream out until we have committed, and shows the newest numbers.
    select f.* into strict known from headrace.slot_floor f where f.slot = home for share;
    select greatest(known.floor, known.forgotten, d.start) into strict start from headrace.deployment d;
    insert into headrace.stream as s (name, slot, last_id, timeline) values (make_stream.name, home, start, now_on)
        on conflict do nothing returning s.stream_id into made;
    if not found then
        return;
    end if;
    if known.forgotten > 0 then
        insert into headrace.trimmed (stream_id, trimmed_to, used_at, begins_after)
            values (made, start, clock_timestamp(), known.forgotten);
    elsif start > 0 then
        insert into headrace.jump (stream_id, from_id, to_id) values (made, 1, start);
    end if;
end $$;
comment on function headrace.make_stream(text,bigint) is
'Makes a stream unless it exists, and waits for another transaction that is making it.

A caller that makes several MUST do so in the order of their names (collation "C"). now_on is from
headrace.begin_numbering.';

create function headrace.jump_to(last_id bigint)
returns bigint
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select greatest(d.start, jump_to.last_id + 1048576) from headrace.deployment d
$$;
comment on function headrace.jump_to(bigint) is
    'Where a stream goes on that was last numbered in another incarnation: the last id of its jump.';

create function headrace.take_one(name text, count integer, now_on bigint, out stream_id integer, out before bigint)
returns record
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    found_row headrace.stream;
    head bigint;
    start bigint;
begin
    loop
        update headrace.stream s set last_id = s.last_id + count
            where s.name = take_one.name and s.timeline = now_on
            returning s.stream_id, s.last_id into stream_id, head;
        exit when found;

        select s.* into found_row from headrace.stream s where s.name = take_one.name for update;
        if not found then
            perform headrace.make_stream(take_one.name, now_on);
        elsif found_row.timeline <> now_on then
            start := headrace.jump_to(found_row.last_id);
            insert into headrace.jump (stream_id, from_id, to_id)
                values (found_row.stream_id, found_row.last_id + 1, start);
            update headrace.stream s set last_id = start, timeline = now_on where s.stream_id = found_row.stream_id;
        end if;
    end loop;
    before := head - count;
end $$;
comment on function headrace.take_one(text,integer,bigint) is
'Gives out ids before + 1 to before + count of a stream, and makes the stream if need be.

The lock on the stream''s row is held until the transaction ends. The caller announces the new head, and takes no
second stream this way: see headrace.take_all. now_on is from headrace.begin_numbering.';

create function headrace.take_all(
    names text[],
    counts integer[],
    now_on bigint,
    out stream_ids integer[],
    out befores bigint[]
)
returns record
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_nestloop to 'on'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set enable_bitmapscan to 'off'
set enable_material to 'off'
set jit to 'off'
as $$
declare
    wanted constant int := cardinality(names);
    timelines bigint[];
    missing text[];
    ids int[];
    heads bigint[];
begin
    loop
        begin
            if (select count(*) from headrace.stream s where s.name = any (names)) < wanted then
                missing := array(
                    select n.name from unnest(names) with ordinality as n (name, place)
                        where (select s.stream_id from headrace.stream s where s.name = n.name) is null
                        order by n.place
                );
                perform headrace.make_stream(m.name, now_on) from unnest(missing) as m (name);
            end if;
            select array_agg(l.stream_id), array_agg(l.last_id), array_agg(l.timeline)
                into stream_ids, befores, timelines
                from (
                    select s.stream_id, s.last_id, s.timeline from headrace.stream s
                        where s.name = any (names) order by s.name for no key update
                ) l;
            exit when cardinality(stream_ids) = wanted;
            raise exception using errcode = '22HR3';
        exception when sqlstate '22HR3' then
            -- A stream was forgotten, or removed, between the two statements. Making it now would be out of the order
            -- of names, and two transactions could wait for each other. So all streams that were made and locked are
            -- given back, and taken anew.
            null;
        end;
    end loop;
    if now_on <> any (timelines) then
        insert into headrace.jump (stream_id, from_id, to_id)
            select u.stream_id, u.last_id + 1, headrace.jump_to(u.last_id)
                from unnest(stream_ids, befores, timelines) as u (stream_id, last_id, timeline)
                where u.timeline <> now_on;
        befores := array(
            select case when u.timeline = now_on then u.last_id else headrace.jump_to(u.last_id) end
                from unnest(befores, timelines) with ordinality as u (last_id, timeline, place) order by u.place
        );
    end if;
    select array_agg(u.stream_id order by u.stream_id), array_agg(u.before + u.count order by u.stream_id)
        into ids, heads from unnest(stream_ids, befores, counts) as u (stream_id, before, count);
    update headrace.stream s set last_id = heads[width_bucket(s.stream_id, ids)], timeline = now_on
        where s.stream_id = any (ids);
end $$;
comment on function headrace.take_all(text[],integer[],bigint) is
'Gives out ids of many streams in one statement, of each as many as counts says, and makes those that are missing.

names: sorted (collation "C"), each once. counts: by position. now_on: from headrace.begin_numbering.
Returns stream_ids and befores by position: the ids of a stream are before + 1 and following. The locks on the
streams'' rows are held until the transaction ends; the caller announces the new heads.';


create function headrace.defers()
returns boolean
language sql
as $$
    select not case when pg_try_advisory_lock_shared(x'6865616472616361'::bigint)
            then pg_advisory_unlock_shared(x'6865616472616361'::bigint) else false end
        and pg_try_advisory_xact_lock_shared(x'6865616472616364'::bigint)
        and not case when pg_try_advisory_lock_shared(x'6865616472616361'::bigint)
            then pg_advisory_unlock_shared(x'6865616472616361'::bigint) else false end
$$;
comment on function headrace.defers() is
'Whether a shard is in office, which numbers for this transaction; then it does not leave office for good before this
transaction has ended. Takes the lock `deferring` in share.

Each look at a lock gives back at once what it gets, within one expression, which nothing can interrupt half-way. Not
SECURITY DEFINER and without settings of its own, so that PostgreSQL can inline it; its callers have fixed the search
path.';

create function headrace.take_turn()
returns trigger
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    isolation text;
    in_office boolean;
    since bigint;
    ringing text;
begin
    -- As most transactions have it: this row is the only one, and no turn was left before.
    if current_setting('headrace.ringing', true) = new.xid || ' first'
        and current_setting('transaction_isolation') = 'read committed'
        and current_setting('synchronous_commit') <> 'off'
        and headrace.defers()
    then
        ringing := set_config('headrace.ringing', new.xid || ' fired', true);
        insert into headrace.turn (stream, xid, from_seq, alone) values (new.stream, new.xid, new.seq, true);
        return null;
    end if;
    if new.xid <> pg_current_xact_id() then  -- a row that is being restored from a dump
        return null;
    end if;
    ringing := set_config('headrace.ringing', new.xid || ' fired', true);
    -- Not before: the application may set it, or RESET ALL, after it has published.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    in_office := headrace.defers();
    isolation := current_setting('transaction_isolation');
    if isolation = 'serializable' then
        since := headrace.turns_since();
        insert into headrace.turn (stream, xid, from_seq, alone) values (new.stream, new.xid, new.seq, true)
            on conflict (stream, xid) do update set turn = default, alone = false
            where headrace.turn.alone or headrace.turn.turn <= since;
    elsif in_office or isolation = 'repeatable read' then
        perform headrace.leave_turns(new.xid, new.seq);
    else
        perform headrace.number_own(new.xid, new.seq);
        return null;
    end if;
    if not in_office then
        perform pg_notify('headrace_rate', 'turn');
    end if;
    return null;
end $$;
comment on function headrace.take_turn() is
'Constraint trigger of headrace.payload: at commit it leaves a turn for each stream of the transaction, or numbers.

It fires earlier by SET CONSTRAINTS and by PREPARE TRANSACTION. A transaction above READ COMMITTED leaves turns, since
its snapshot may be older than what waits in its streams. If nobody is in office, such a transaction wakes a shard.

It makes the commit durable: the seq of an event that a page has shown must survive a crash, or it would be given out
again, and the page''s client would not be sent the event that has it then.';
create constraint trigger take_turn after insert on headrace.payload
    deferrable initially deferred
    for each row when (new.rings)
    execute function headrace.take_turn();
alter table headrace.payload enable always trigger take_turn;

create function headrace.turns_since()
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    known constant text[] := string_to_array(current_setting('headrace.turning', true), ' ');
    began constant text := extract(epoch from statement_timestamp());
    reached bigint;
begin
    if known[1] = began then
        return known[2];
    end if;
    reached := coalesce(pg_sequence_last_value(pg_get_serial_sequence('headrace.turn', 'turn')::regclass), 0);
    perform set_config('headrace.turning', began || ' ' || reached, true);
    return reached;
end $$;
comment on function headrace.turns_since() is
'The highest number of any turn, as it was when the statement, or COMMIT, first called this. Turns with higher numbers
were taken since then.

The setting headrace.turning, local to the transaction, has the time at which the statement began, and this number.';

create function headrace.leave_turns(own xid8, own_from bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set jit to 'off'
as $$
begin
    insert into headrace.turn (stream, xid, from_seq, alone)
        select p.stream, own, min(p.seq), count(*) = 1 from headrace.payload p
            where p.xid = own and p.seq >= own_from group by p.stream
        on conflict (stream, xid) do update set turn = default, alone = false;
end $$;
comment on function headrace.leave_turns(xid8,bigint) is
'Leaves a turn for each stream in which the transaction own has an event from the seq own_from on.

A transaction that leaves a turn for a stream twice has the later turn, from the earlier from_seq on.';

create function headrace.number_own(own xid8, own_from bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_nestloop to 'off'
set jit to 'off'
as $$
declare
    own_to constant bigint := coalesce((
        select min(p.seq) from headrace.payload p where p.xid = own and p.seq > own_from and p.rings
    ), 9223372036854775807);
    names text[];
    counts int[];
    stream_ids int[];
    befores bigint[];
begin
    if exists (select from headrace.turn t where t.xid = own) then
        perform headrace.leave_turns(own, own_from);
        perform pg_notify('headrace_rate', 'turn');
        return;
    end if;
    select array_agg(g.stream order by g.stream), array_agg(g.events order by g.stream) into names, counts
        from (
            select p.stream, count(*)::int as events from headrace.payload p
                where p.xid = own and p.seq >= own_from and p.seq < own_to group by p.stream
        ) g;
    if cardinality(names) = 1 then  -- as most have, which are spared the statements for many
        select array[t.stream_id], array[t.before] into stream_ids, befores
            from headrace.take_one(names[1], counts[1], headrace.begin_numbering()) t;
    else
        select t.stream_ids, t.befores into stream_ids, befores
            from headrace.take_all(names, counts, headrace.begin_numbering()) t;
    end if;
    befores := headrace.number_waiting(names, stream_ids, befores);
    insert into headrace.event (stream_id, id, created_at, xid, seq)
        select t.stream_id, t.before + row_number() over (partition by p.stream order by p.seq), clock_timestamp(),
                p.xid, p.seq
            from headrace.payload p
            join unnest(names, stream_ids, befores) as t (stream, stream_id, before) on t.stream = p.stream
            where p.xid = own and p.seq >= own_from and p.seq < own_to;
    perform headrace.announce(stream_ids);
end $$;
comment on function headrace.number_own(xid8,bigint) is
'Numbers what waits in the streams of the transaction own, then its own events from the seq own_from on, and notifies.

Events from the next row on that rings are left to that row''s trigger: after RESET ALL a transaction rings twice. A
transaction that has left turns before, while a shard was in office, leaves these events to others as well.';

create function headrace.waiting(streams text[])
returns table(stream text, xid xid8, turn bigint, from_seq bigint, alone boolean)
language sql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_nestloop to 'on'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
as $$
    with bound as materialized (
        select u.name, coalesce(b.seen, k.seen) as seen
            from unnest(streams) as u (name)
            cross join (select k.seen from headrace.tick k order by k.n desc limit 1) k
            left join headrace.behind b on b.stream = u.name
    )
    select w.stream, w.xid, w.turn, w.from_seq, w.alone
        from bound b
        cross join lateral (
            select t.* from headrace.turn t where t.stream = b.name and t.xid >= pg_snapshot_xmax(b.seen)
            union all
            select t.* from pg_snapshot_xip(b.seen) as x (open)
                join headrace.turn t on t.stream = b.name and t.xid = x.open
        ) w
        where w.xid is distinct from pg_current_xact_id_if_assigned()
$$;
comment on function headrace.waiting(text[]) is
'The turns that wait in these streams: visible to the calling statement, and not covered by the bound of their stream.

Not the caller''s own.';

create function headrace.number_waiting(streams text[], stream_ids integer[], befores bigint[])
returns bigint[]
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
as $$
declare
    names text[];
    xids xid8[];
    turns bigint[];
    froms bigint[];
    alones boolean[];
    counts bigint[];
    raised int[];
    mores bigint[];
begin
    select array_agg(w.stream), array_agg(w.xid), array_agg(w.turn), array_agg(w.from_seq), array_agg(w.alone)
        into names, xids, turns, froms, alones from headrace.waiting(streams) w;
    if names is null then
        return befores;
    end if;
    with due as materialized (
        select u.* from unnest(names, xids, turns, froms, alones) as u (stream, xid, turn, from_seq, alone)
    ), fresh as materialized (
        select p.stream, p.xid, p.seq, row_number() over (partition by p.stream order by d.turn, p.seq) as k
            from (select distinct d.xid from due d) x
            cross join lateral (
                select p.stream, p.xid, p.seq from headrace.payload p where p.xid = x.xid offset 0
            ) p
            join due d on d.xid = p.xid and d.stream = p.stream
            where case when d.alone then p.seq = d.from_seq else p.seq >= d.from_seq end
    ), placed as (
        insert into headrace.event (stream_id, id, created_at, xid, seq)
            select s.stream_id, s.before + f.k, clock_timestamp(), f.xid, f.seq
                from fresh f
                join unnest(number_waiting.streams, stream_ids, befores) as s (stream, stream_id, before)
                    on s.stream = f.stream
    ), gone as (
        delete from headrace.turn t using due d where t.stream = d.stream and t.xid = d.xid
    )
    select array_agg(coalesce(f.k, 0) order by s.place) into counts
        from unnest(number_waiting.streams) with ordinality as s (stream, place)
        left join (select f.stream, max(f.k) as k from fresh f group by f.stream) f on f.stream = s.stream;
    select array_agg(u.stream_id order by u.stream_id), array_agg(u.more order by u.stream_id) into raised, mores
        from unnest(stream_ids, counts) as u (stream_id, more) where u.more > 0;
    update headrace.stream s set last_id = s.last_id + mores[width_bucket(s.stream_id, raised)]
        where s.stream_id = any (raised);
    return array(
        select u.before + u.more from unnest(befores, counts) with ordinality as u (before, more, place) order by u.place
    );
end $$;
comment on function headrace.number_waiting(text[],integer[],bigint[]) is
'Numbers what waits in streams whose rows the caller has locked: in the order of turns, from befores + 1 on.

It raises the heads of the streams by as many, and removes the turns. It MUST be called at READ COMMITTED, so that it
looks after the locks were taken.
streams, stream_ids, befores: by position, from headrace.take_one or headrace.take_all.
Returns befores, raised likewise: the caller''s own events follow.';

create function headrace.announce(stream_ids integer[])
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    perform pg_notify('headrace_slot_' || s.slot, s.last_id || ' ' || s.name)
        from headrace.stream s where s.stream_id = any (announce.stream_ids);
    -- Not by random(), whose sequence belongs to the caller's session.
    if hashint8(pg_current_xact_id()::text::bigint) & 15 = 0 then
        perform pg_notify('headrace_rate', '');
    end if;
end $$;
comment on function headrace.announce(integer[]) is
    'Notifies the slots of these streams (their stream_ids) of the heads that this transaction has given out.';


create function headrace.take_office()
returns boolean
language sql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select pg_try_advisory_lock(x'6865616472616361'::bigint)
$$;
comment on function headrace.take_office() is
    'Makes this session the one that numbers for all, until it leaves office or ends. Returns false if another session is.';

create function headrace.leave_office()
returns void
language sql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select pg_advisory_unlock(x'6865616472616361'::bigint)
$$;
comment on function headrace.leave_office() is
    'Ends this session''s office: publishing transactions number at commit from now on.';

create function headrace.nobody_defers()
returns boolean
language sql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select case when pg_try_advisory_lock(x'6865616472616364'::bigint)
        then pg_advisory_unlock(x'6865616472616364'::bigint) else false end
$$;
comment on function headrace.nobody_defers() is
    'Whether no transaction is open that has left its events to a shard in office.';

create function headrace.make_streams(names text[], now_on bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set lock_timeout to '3ms'
as $$
declare
    missing constant text[] := array(
        select n.name from unnest(names) as n (name)
            where (select s.stream_id from headrace.stream s where s.name = n.name) is null order by n.name collate "C"
    );
    give_up constant timestamptz := clock_timestamp() + interval '30 milliseconds';
    name text;
begin
    if cardinality(missing) = 0 then
        return;
    end if;
    begin
        perform headrace.make_stream(m.name, now_on) from unnest(missing) as m (name);
        return;
    exception when lock_not_available then
        null;  -- one of them is held: try each alone
    end;
    for name in select m.name from unnest(missing) as m (name) order by random() loop
        exit when clock_timestamp() > give_up;
        begin
            perform headrace.make_stream(name, now_on);
        exception when lock_not_available then
            null;
        end;
    end loop;
end $$;
comment on function headrace.make_streams(text[],bigint) is
    'Makes those of the streams that do not exist. A stream that another transaction is making is left out.';

create function headrace.sequence(out transactions bigint, out skipped bigint, out seen pg_snapshot)
returns record
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_nestloop to 'on'
set enable_hashjoin to 'on'
set enable_seqscan to 'off'
set enable_mergejoin to 'off'
set enable_bitmapscan to 'off'
set jit to 'off'
as $$
declare
    before pg_snapshot;
    number bigint;
    now_on bigint;
    later xid8;
    were_open xid8[];
    wanted text[];
    held text[];
begin
    perform headrace.require_read_committed('headrace.sequence');
    transactions := 0;
    skipped := 0;
    select k.seen, k.n into before, number from headrace.tick k order by k.n desc limit 1;
    seen := before;
    if not exists (select from headrace.turn t where t.xid >= pg_snapshot_xmax(before))
        and not exists (
            select from pg_snapshot_xip(before) as x (open) join headrace.turn t on t.xid = x.open
        )
        and not exists (select from headrace.behind)
    then
        return;
    end if;
    perform from headrace.round r for no key update skip locked;
    if not found then
        transactions := -1;
        return;
    end if;
    now_on := headrace.begin_numbering();
    if exists (select from headrace.payload p where p.xid = pg_current_xact_id()) then
        return;  -- a snapshot takes its own transaction for ended, and would cover turns that it has not taken yet
    end if;
    -- Once more, as it is since the lock was got.
    select k.seen, k.n into before, number from headrace.tick k order by k.n desc limit 1;
    later := pg_snapshot_xmax(before);
    were_open := array(select pg_snapshot_xip(before));
    seen := pg_current_snapshot();
    wanted := array(
        select t.stream from headrace.turn t where t.xid >= later and pg_visible_in_snapshot(t.xid, seen)
        union
        select t.stream from headrace.turn t where t.xid = any (were_open) and pg_visible_in_snapshot(t.xid, seen)
        union
        select b.stream from headrace.behind b
    );
    perform headrace.make_streams(wanted, now_on);
    held := array(
        select s.name from headrace.stream s where s.name = any (wanted) for no key update skip locked
    );
    -- From here on each statement sees what those have done who had the streams before.
    with late as materialized (
        select b.* from headrace.behind b where b.stream = any (held)
    ), recent as materialized (
        select t.* from headrace.turn t where t.xid >= later and pg_visible_in_snapshot(t.xid, sequence.seen)
        union all
        select t.* from headrace.turn t where t.xid = any (were_open) and pg_visible_in_snapshot(t.xid, sequence.seen)
    ), due as materialized (
        select n.* from recent n
            join (select unnest(held) as stream except select l.stream from late l) h on h.stream = n.stream
        union all
        select w.* from late l
            cross join lateral (
                select t.* from headrace.turn t where t.stream = l.stream and t.xid >= pg_snapshot_xmax(l.seen)
                union all
                select t.* from pg_snapshot_xip(l.seen) as x (open)
                    join headrace.turn t on t.stream = l.stream and t.xid = x.open
            ) w
            where pg_visible_in_snapshot(w.xid, sequence.seen)
    ), fresh as materialized (
        select e.stream, e.xid, e.seq, row_number() over (partition by e.stream order by e.turn, e.seq) as k
            from (
                select d.stream, d.xid, d.from_seq as seq, d.turn from due d where d.alone
                union all
                select p.stream, p.xid, p.seq, d.turn
                    from (select distinct d.xid from due d where not d.alone) x
                    cross join lateral (
                        select p.stream, p.xid, p.seq from headrace.payload p where p.xid = x.xid offset 0
                    ) p
                    join due d on d.xid = p.xid and d.stream = p.stream
                    where not d.alone and p.seq >= d.from_seq
            ) e
    ), heads as materialized (
        select f.stream, s.stream_id, s.last_id, s.slot, f.count, s.timeline = now_on as current,
                case when s.timeline = now_on then s.last_id else headrace.jump_to(s.last_id) end as start
            from (select f.stream, max(f.k) as count from fresh f group by f.stream) f
            cross join lateral (select s.* from headrace.stream s where s.name = f.stream offset 0) s
    ), sorted as materialized (
        select array_agg(h.stream_id order by h.stream_id) as stream_ids,
                array_agg(h.start + h.count order by h.stream_id) as heads
            from heads h
    ), jumped as (
        insert into headrace.jump (stream_id, from_id, to_id)
            select h.stream_id, h.last_id + 1, h.start from heads h where not h.current
    ), placed as (
        insert into headrace.event (stream_id, id, created_at, xid, seq)
            select h.stream_id, h.start + f.k, clock_timestamp(), f.xid, f.seq
                from fresh f join heads h on h.stream = f.stream
    ), raised as (
        update headrace.stream s
            set last_id = (select o.heads from sorted o)[
                    width_bucket(s.stream_id, (select o.stream_ids from sorted o))
                ],
                timeline = now_on
            where s.stream_id = any ((select o.stream_ids from sorted o)::int[])
    ), told as (
        select count(pg_notify('headrace_slot_' || h.slot, (h.start + h.count) || ' ' || h.stream)) from heads h
    )
    select (select count(*) from due) + 0 * told.count into transactions from told;
    delete from headrace.behind b where b.stream = any (held);
    skipped := cardinality(wanted) - cardinality(held);
    if skipped > 0 then
        insert into headrace.behind (stream, seen) select w.stream, before from unnest(wanted) as w (stream)
            where w.stream <> all (held) on conflict do nothing;
    end if;
    insert into headrace.tick (n, seen) values (number + 1, sequence.seen);
    delete from headrace.tick k where k.n = number - 20;
end $$;
comment on function headrace.sequence() is
'A round: numbers all turns that have become visible since the last round, except in streams that others have locked.

It waits for nobody. MUST be called at READ COMMITTED, in a transaction of its own.
Returns transactions, how many turns were numbered, or -1 if another session does a round; skipped, how many streams
were passed over; seen, the snapshot up to which all others are numbered.';

create function headrace.forget_turns(since xid8 default '0'::xid8)
returns xid8
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set jit to 'off'
as $$
declare
    covered constant xid8 := least(
        (select pg_snapshot_xmin(k.seen) from headrace.tick k order by k.n desc limit 1),
        (select min(pg_snapshot_xmin(b.seen)) from headrace.behind b)
    );
begin
    delete from headrace.turn t where t.xid >= since and t.xid < covered;
    return greatest(since, covered);
end $$;
comment on function headrace.forget_turns(xid8) is
'Removes turns that rounds have numbered, of transactions from since on.

since: what the last call of this session has returned, so that no call comes across the removed rows that an old
snapshot keeps in the table.';


-- 6 Reading -----------------------------------------------------------------------------------------------------------
--
-- The settings of headrace.read_log force the one plan that is right for any number of streams: a probe per stream
-- and table. A stream whose head is the first id wanted, which is what most reads come upon, is spared what many events
-- need: the sums of their bytes, since the first is returned whatever it has, and the jumps, since a jump above `after`
-- has an event behind it, so that the head would be further away.

create function headrace.head(stream text)
returns bigint
language sql
stable strict security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select coalesce(
        (select s.last_id from headrace.stream s where s.name = head.stream), headrace.missing_head(head.stream)
    )
$$;
comment on function headrace.head(text) is
'The head of a stream: its last id. That of a stream without a row is 0, or where it would begin, if streams of its slot
were forgotten.

It is read in the snapshot of the calling statement. The head MUST be read before a page''s data, or in one REPEATABLE
READ transaction with them: then no event is lost, and one that commits at that time may be delivered although the page
shows it already. headrace.watermark is exact.';

create function headrace.missing_head(stream text)
returns bigint
language sql
stable strict security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select coalesce((
        select greatest(f.forgotten, f.floor, d.start) from headrace.slot_floor f cross join headrace.deployment d
            where f.slot = headrace.slot(missing_head.stream)::smallint and f.forgotten > 0
    ), 0)
$$;
comment on function headrace.missing_head(text) is
'The head of a stream that does not exist: 0, or where it would begin in a slot of which streams were forgotten.

It may have been one of these. A client that begins there misses nothing of what is published later, whether the stream
is new or made again.';

create function headrace.watermark(stream text)
returns text
language plpgsql
stable strict security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_nestloop to 'on'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
as $$
declare
    most constant int := 500;
    head bigint;
    seqs bigint[];
begin
    with bound as materialized (
        select coalesce(
            (select b.seen from headrace.behind b where b.stream = watermark.stream),
            (select k.seen from headrace.tick k order by k.n desc limit 1)
        ) as seen
    ), pending as (
        select p.seq
            from bound b
            cross join lateral (
                select t.* from headrace.turn t where t.stream = watermark.stream and t.xid >= pg_snapshot_xmax(b.seen)
                union all
                select t.* from pg_snapshot_xip(b.seen) as x (open)
                    join headrace.turn t on t.stream = watermark.stream and t.xid = x.open
            ) t
            join headrace.payload p on p.xid = t.xid and p.stream = t.stream
                and case when t.alone then p.seq = t.from_seq else p.seq >= t.from_seq end
            where t.xid is distinct from pg_current_xact_id_if_assigned()
            limit most + 1
    )
    select coalesce(
                (select s.last_id from headrace.stream s where s.name = watermark.stream),
                headrace.missing_head(watermark.stream)
            ),
            (select array_agg(p.seq order by p.seq) from pending p)
        into head, seqs;
    if seqs is null or cardinality(seqs) > most then
        return head;
    end if;
    return head || (
        select string_agg('-' || u.seq - u.before, '' order by u.seq)
            from (select n.seq, coalesce(lag(n.seq) over (order by n.seq), 0) as before from unnest(seqs) as n (seq)) u
    );
end $$;
comment on function headrace.watermark(text) is
'Where a page that shows a stream ends, for its client to begin: exact in the snapshot of the calling statement.

It is the head, as of headrace.head, and the events that the snapshot shows although they have no id yet, since a shard
gives them theirs a moment later. The client is not sent these again. So a watermark and a page''s data that are read in
one statement, or in one REPEATABLE READ transaction, meet exactly. Under READ COMMITTED the watermark MUST be read
before the page''s data, as with headrace.head.

Returns the text that a stream''s URL takes as `since`: "17", or "17-81-3" with the events whose headrace.payload.seq are
81 and 84. Where more than 500 events wait for their ids it is the head alone, and the client may be sent events that
the page shows already.';

create table headrace.removed (
    stream_id integer not null,
    visible_to text collate "C" not null,
    removed_to bigint not null,
    primary key (stream_id, visible_to)
) with (
    fillfactor = 50
);
comment on table headrace.removed is
'The newest removed event of each audience, for streams of which events with an audience were removed; a stream without
a row has lost events for everybody only, or it is not known. Written by headrace.cut alone.';
comment on column headrace.removed.stream_id is 'The stream, as in headrace.stream.';
comment on column headrace.removed.visible_to is
    'As in headrace.event, and '''' for events that everybody may see; audiences beyond 64 count among these.';
comment on column headrace.removed.removed_to is 'The newest of the removed events that had this audience.';

create function headrace.read_log(
    streams text[],
    after bigint[],
    max_events integer,
    max_bytes bigint,
    total_bytes bigint
)
returns table(
    ordinal integer,
    head bigint,
    trimmed_to bigint,
    begins_after bigint,
    jumps bigint[],
    audiences text[],
    removed_to bigint[],
    unread boolean,
    id bigint,
    seq bigint,
    created_at timestamp with time zone,
    type text,
    data text,
    visible_to text
)
language plpgsql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_nestloop to 'on'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set enable_bitmapscan to 'off'
set enable_material to 'off'
set enable_memoize to 'off'
set jit to 'off'
as $$
begin
    if cardinality(streams) = 1 then
        -- Most reads are of one stream with one new event; they are spared the sums over all pages.
        return query
            select 1, coalesce(s.last_id, g.head, 0), coalesce(t.trimmed_to, g.head, 0),
                    coalesce(t.begins_after, g.begins_after, 0), j.bounds,
                    case when t.trimmed_to > c.after then (
                        select array_agg(m.visible_to order by m.visible_to) from headrace.removed m
                            where m.stream_id = s.stream_id and m.removed_to > c.after
                    ) end,
                    case when t.trimmed_to > c.after then (
                        select array_agg(m.removed_to order by m.visible_to) from headrace.removed m
                            where m.stream_id = s.stream_id and m.removed_to > c.after
                    ) end,
                    false, e.id, e.seq, e.created_at, e.type, e.data, e.visible_to
                from unnest(streams, read_log.after) as c (name, after)
                left join lateral (
                    select n.stream_id, n.last_id from headrace.stream n where n.name = c.name offset 0
                ) s on true
                left join lateral (
                    select m.trimmed_to, m.begins_after from headrace.trimmed m
                        where m.stream_id = s.stream_id offset 0
                ) t on true
                left join lateral (
                    select greatest(f.forgotten, f.floor, d.start) as head, f.forgotten as begins_after
                        from headrace.slot_floor f cross join headrace.deployment d
                        where s.stream_id is null and f.slot = headrace.slot(c.name)::smallint
                            and f.forgotten > 0 and d.single
                        offset 0
                ) g on true
                left join lateral (
                    select case when s.last_id - 1 > c.after then (
                        select array_agg(b.bound order by q.to_id, b.bound)
                            from headrace.jump q
                            cross join lateral (values (q.from_id), (q.to_id)) as b (bound)
                            where q.stream_id = s.stream_id and q.to_id > c.after
                    ) end as bounds
                ) j on true
                left join lateral (
                    (select n.id, n.seq, n.created_at, coalesce(p.type, n.type) as type,
                            coalesce(p.data, n.data) as data, coalesce(p.visible_to, n.visible_to) as visible_to
                        from headrace.event n left join headrace.payload p on p.xid = n.xid and p.seq = n.seq
                        where s.last_id - 1 = c.after and n.stream_id = s.stream_id and n.id = s.last_id
                            and n.id > coalesce(t.trimmed_to, 0)
                        limit max_events)
                    union all
                    select m.id, m.seq, m.created_at, m.type, m.data, m.visible_to
                        from (
                            select p.*,
                                    sum(256 + octet_length(p.data)) over ordered as total,
                                    sum(octet_length(p.data)) over ordered as bytes,
                                    row_number() over ordered as number
                                from (
                                    select v.id, v.seq, v.created_at, coalesce(l.type, v.type) as type,
                                            coalesce(l.data, v.data) as data,
                                            coalesce(l.visible_to, v.visible_to) as visible_to
                                        from headrace.event v
                                        left join headrace.payload l on l.xid = v.xid and l.seq = v.seq
                                        where v.stream_id = s.stream_id
                                            and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                        order by v.id limit max_events
                                ) p
                                window ordered as (order by p.id rows unbounded preceding)
                        ) m
                        where s.last_id - 1 > c.after
                            and (m.bytes <= max_bytes and m.total <= total_bytes or m.number = 1)
                ) e on e.data is not null
                order by e.id;
        return;
    end if;
    return query
        select f.place, f.head, f.trimmed_to, f.begins_after, f.jumps,
                case when f.first and f.trimmed_to > f.after then (
                    select array_agg(m.visible_to order by m.visible_to) from headrace.removed m
                        where m.stream_id = f.stream_id and m.removed_to > f.after
                ) end,
                case when f.first and f.trimmed_to > f.after then (
                    select array_agg(m.removed_to order by m.visible_to) from headrace.removed m
                        where m.stream_id = f.stream_id and m.removed_to > f.after
                ) end,
                f.id is not null and not f.fits,
                case when f.fits then f.id end, case when f.fits then f.seq end,
                case when f.fits then f.created_at end, case when f.fits then f.type end,
                case when f.fits then f.data end, case when f.fits then f.visible_to end
            from (
                select r.*, r.total <= total_bytes or r.total = r.size as fits
                    from (
                        select c.place::int as place, coalesce(s.last_id, g.head, 0) as head,
                                coalesce(t.trimmed_to, g.head, 0) as trimmed_to,
                                coalesce(t.begins_after, g.begins_after, 0) as begins_after,
                                j.bounds as jumps, s.stream_id, c.after, e.*,
                                sum(e.size) over ordered as total,
                                lag(c.place) over ordered is distinct from c.place as first
                            from unnest(streams, read_log.after) with ordinality as c (name, after, place)
                            left join lateral (
                                select n.stream_id, n.last_id from headrace.stream n where n.name = c.name offset 0
                            ) s on true
                            left join lateral (
                                select m.trimmed_to, m.begins_after from headrace.trimmed m
                                    where m.stream_id = s.stream_id offset 0
                            ) t on true
                            left join lateral (
                                select greatest(f.forgotten, f.floor, d.start) as head, f.forgotten as begins_after
                                    from headrace.slot_floor f cross join headrace.deployment d
                                    where s.stream_id is null and f.slot = headrace.slot(c.name)::smallint
                                        and f.forgotten > 0 and d.single
                                    offset 0
                            ) g on true
                            left join lateral (
                                select case when s.last_id - 1 > c.after then (
                                    select array_agg(b.bound order by q.to_id, b.bound)
                                        from headrace.jump q
                                        cross join lateral (values (q.from_id), (q.to_id)) as b (bound)
                                        where q.stream_id = s.stream_id and q.to_id > c.after
                                ) end as bounds
                            ) j on true
                            left join lateral (
                                (select n.id, n.seq, n.created_at, coalesce(p.type, n.type) as type,
                                        coalesce(p.data, n.data) as data,
                                        coalesce(p.visible_to, n.visible_to) as visible_to,
                                        256 + octet_length(coalesce(p.data, n.data)) as size
                                    from headrace.event n
                                    left join headrace.payload p on p.xid = n.xid and p.seq = n.seq
                                    where s.last_id - 1 = c.after and n.stream_id = s.stream_id and n.id = s.last_id
                                        and n.id > coalesce(t.trimmed_to, 0)
                                    limit max_events)
                                union all
                                select m.id, m.seq, m.created_at, m.type, m.data, m.visible_to, 256 + m.length
                                    from (
                                        select p.*, octet_length(p.data) as length,
                                                sum(octet_length(p.data)) over inner_ordered as bytes,
                                                row_number() over inner_ordered as number
                                            from (
                                                select v.id, v.seq, v.created_at, coalesce(l.type, v.type) as type,
                                                        coalesce(l.data, v.data) as data,
                                                        coalesce(l.visible_to, v.visible_to) as visible_to
                                                    from headrace.event v
                                                    left join headrace.payload l on l.xid = v.xid and l.seq = v.seq
                                                    where v.stream_id = s.stream_id
                                                        and v.id > c.after and v.id > coalesce(t.trimmed_to, 0)
                                                    order by v.id limit max_events
                                            ) p
                                            window inner_ordered as (order by p.id rows unbounded preceding)
                                    ) m
                                    where s.last_id - 1 > c.after and (m.bytes <= max_bytes or m.number = 1)
                            ) e on e.data is not null
                            window ordered as (order by c.place, e.id rows unbounded preceding)
                    ) r
            ) f
            -- A stream without events has no size, so `fits` is null there.
            where f.fits is not false or f.first
            order by f.place, f.id;
end $$;
comment on function headrace.read_log(text[],bigint[],integer,bigint,bigint) is
'What the streams have after the given ids, all in one snapshot and within a number of bytes. For shards.

streams, after: belong together by position; a null in after asks for the head alone.
max_events, max_bytes (of data): bound the page of each stream; its first event is returned even if it has more bytes.
total_bytes: bounds all pages together, counting 256 bytes for each event beside its data; the first event of the
first page that has any is returned whatever it has.
Returns, for each position, at least one row, whose event columns are null if there is no event; in the order of
ordinal and id:
ordinal: position in streams, from 1.
head: the last id of the stream; that of headrace.missing_head for a stream that does not exist.
trimmed_to: events up to this id are no longer kept; 0 if all are; the head of a stream that does not exist.
begins_after: ids up to this one are of forgotten streams; 0 if there are none in the stream''s slot, or were none when
the stream was made.
jumps: {from, to, from, to, …}, the recorded jumps that end above after, in order; null if there are none.
audiences, removed_to: with a trimmed_to above after, the audiences whose events above after were removed, '''' for
events that everybody may see, and the newest of each; null if that is not known.
unread: true in the one row of a stream that has events for which the bytes did not suffice; its id is null.
id, created_at: the event''s place, as in headrace.event.
seq: as in headrace.payload, by which a watermark names an event without an id; null for an event that never was one.
type, data, visible_to: what was published.';

create function headrace.kept_events()
returns table(
    stream text,
    stream_id integer,
    id bigint,
    created_at timestamp with time zone,
    type text,
    data text,
    visible_to text
)
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select s.name, e.stream_id, e.id, e.created_at, coalesce(p.type, e.type), coalesce(p.data, e.data),
            coalesce(p.visible_to, e.visible_to)
        from headrace.event e
        join headrace.stream s on s.stream_id = e.stream_id
        left join headrace.payload p on p.xid = e.xid and p.seq = e.seq
$$;
comment on function headrace.kept_events() is
    'All events that the log has, with the names of their streams. For people, and for the owner of the schema.';


-- 7 Retention ---------------------------------------------------------------------------------------------------------
--
-- Each rule walks the events in the order of created_at, in slices, up to its cutoff (the clock minus `keep`), and
-- remembers how far it got. In each stream of the slice for which it is the longest matching rule, everything up to the
-- slice's newest event is removed: a prefix of the ids, so a clock that was set back does no harm. A rule with
-- keep_count walks a second time, up to now, and trims each stream it meets to that many events. So an event is
-- examined once or twice per rule, whatever the number of streams.
--
-- An event becomes visible when its transaction commits, maybe long after its created_at, when a walk has passed it. So
-- no walk is remembered beyond the fence: the latest time of which it is known that every transaction that could have
-- made an event before it has ended. Usually that is the previous call; while some transaction that writes stays open,
-- the kept events since its begin are examined again by each call.
--
-- Pruning reads and deletes events and writes its own tables; it locks no row that publishing uses. One session prunes
-- at a time, by the lock on the row of headrace.fence, which nobody but the owner of the schema can take.

create table headrace.retention (
    pattern text collate "C" not null,
    like_pattern text collate "C" not null,
    keep interval not null,
    keep_count bigint,
    scanned_to timestamp with time zone not null default '-infinity'::timestamp with time zone,
    counted_to timestamp with time zone not null default '-infinity'::timestamp with time zone,
    revision bigint not null default 0,
    primary key (pattern)
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
    single boolean not null default true,
    passed timestamp with time zone not null,
    next_at timestamp with time zone not null,
    next_xid xid8 not null,
    primary key (single),
    check (single)
);
comment on table headrace.fence is
'The time up to which all events are visible; one row, written by headrace.prune alone. Its lock lets one session
prune.';
comment on column headrace.fence.single is 'Always true: there is one row.';
comment on column headrace.fence.passed is
    'Every event that was created before this time is visible, or will never be.';
comment on column headrace.fence.next_at is
    'The next value of passed, once every transaction older than next_xid has ended.';
comment on column headrace.fence.next_xid is 'A transaction id given out after next_at.';

insert into headrace.fence (passed, next_at, next_xid) values ('-infinity', '-infinity', '0');
create function headrace.set_retention(pattern text, keep interval, keep_count bigint default null::bigint)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set standard_conforming_strings to 'on'
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
comment on function headrace.set_retention(text,interval,bigint) is
'Sets or removes the rule of retention for the streams whose names match a pattern. Applied when pruning; for the owner
of the schema.

Of several rules that match a stream the one with the longest pattern applies. There is always one for `*`, which
keeps events for 5 minutes unless another is set.

pattern: a glob of 1 to 512 bytes: * is any text, ? any one character, all else is literal.
keep: for how long events are kept, at most 100 years; null removes the rule.
keep_count: how many of each stream''s newest events are kept within that time; null means any number.
Raises 22023 for an argument that is not allowed.';

create function headrace.prune(batch integer)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
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
comment on function headrace.prune(integer) is
'Removes at most batch events that no rule keeps. Call it in a loop, each call in a transaction of its own; shards do.

Returns how many were removed; 0 if nothing is left to remove now; -1 if another session is pruning.
Raises 22023 for a batch below 1.';

create function headrace.move_fence()
returns timestamp with time zone
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
comment on function headrace.move_fence() is
'Moves the fence forward if it can be moved, and returns where it is: the time up to which no event can still become
visible.';

create function headrace.cut(stream_ids integer[], up_to bigint[], batch integer)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
as $$
declare
    most constant int := 64;
    removed bigint;
    labelled int[];
begin
    with doomed as materialized (
        select d.stream_id, d.id, d.xid, d.seq
            from unnest(stream_ids, cut.up_to) with ordinality as t (stream_id, up_to, place)
            cross join lateral (
                select e.stream_id, e.id, e.xid, e.seq from headrace.event e
                    where e.stream_id = t.stream_id and e.id <= t.up_to order by e.id limit batch
            ) d
            order by t.place, d.id limit batch
    ), emptied as (
        delete from headrace.payload p using doomed d where p.xid = d.xid and p.seq = d.seq
            returning d.stream_id, d.id, p.visible_to
    ), deleted as (
        delete from headrace.event e using doomed d where e.stream_id = d.stream_id and e.id = d.id
            returning e.stream_id, e.id, e.visible_to, e.seq
    ), gone as materialized (
        select e.stream_id, e.id, e.visible_to from emptied e
        union all
        select d.stream_id, d.id, d.visible_to from deleted d where d.seq is null
    ), marked as (
        insert into headrace.trimmed as m (stream_id, trimmed_to, used_at)
            select d.stream_id, max(d.id), clock_timestamp() from deleted d group by d.stream_id
            on conflict (stream_id) do update
                set trimmed_to = greatest(m.trimmed_to, excluded.trimmed_to), used_at = excluded.used_at
    ), told as (
        -- Of each stream whose removed events have audiences, or had them before: one row per audience, and always one
        -- for the events that everybody may see.
        select g.stream_id, coalesce(g.visible_to, '') as visible_to, max(g.id) as removed_to
            from gone g
            where exists (select from headrace.removed r where r.stream_id = g.stream_id)
                or g.stream_id in (select o.stream_id from gone o where o.visible_to is not null)
            group by g.stream_id, coalesce(g.visible_to, '')
    ), noted as (
        insert into headrace.removed as m (stream_id, visible_to, removed_to)
            select n.stream_id, n.visible_to, max(n.removed_to)
                from (
                    select t.* from told t
                    union all
                    select distinct t.stream_id, '', b.trimmed_to from told t
                        join headrace.trimmed b on b.stream_id = t.stream_id
                        where not exists (select from headrace.removed r where r.stream_id = t.stream_id)
                ) n
                group by n.stream_id, n.visible_to
            on conflict (stream_id, visible_to) do update set removed_to = greatest(m.removed_to, excluded.removed_to)
            returning m.stream_id, m.visible_to
    )
    select (select count(*) from deleted),
            (select array_agg(distinct n.stream_id) from noted n where n.visible_to <> '')
        into removed, labelled;
    if labelled is not null then
        with old as (
            delete from headrace.removed r
                using (
                    select o.stream_id, o.visible_to,
                            row_number() over (partition by o.stream_id order by o.removed_to desc) as place
                        from headrace.removed o where o.stream_id = any (labelled) and o.visible_to <> ''
                ) o
                where r.stream_id = o.stream_id and r.visible_to = o.visible_to and o.place > most
                returning r.stream_id, r.removed_to
        )
        insert into headrace.removed as m (stream_id, visible_to, removed_to)
            select o.stream_id, '', max(o.removed_to) from old o group by o.stream_id
            on conflict (stream_id, visible_to) do update set removed_to = greatest(m.removed_to, excluded.removed_to);
    end if;
    return removed;
end $$;
comment on function headrace.cut(integer[],bigint[],integer) is
'Removes at most batch of the events up to the given id of each stream, lowest ids first, and raises the streams''
marks.

Ids become visible in order, so what is removed and marked is always a prefix. The audiences of the removed events are
noted in headrace.removed. Events that were removed before a stream''s first row there count as visible to everybody,
and so do the audiences whose marks are oldest when there are more than 64: then a client may be told of a gap where
it missed nothing, but no gap is kept from a client.

stream_ids, up_to: belong together by position. Returns how many events were removed.';


-- Idle streams. Retention removes events, and leaves the rows of their streams. A stream that has had no event and no
-- subscriber for a time that an operator chooses is *forgotten*: its row goes, with its marks and jumps. One search an
-- hour walks headrace.trimmed, since a stream that never lost an event has some. It takes no stream
--
--     whose mark is not its head                      it has events
--     that was used within that time                  used_at; shards note it for the streams of their clients
--     of which somebody has the row                   it is being numbered in
--     of which a turn or a bound exists, by its name  events wait for their ids, or did a moment ago
--
-- What is left of all forgotten streams of a slot is one number, `forgotten`: the highest head of any. The call that
-- forgets a stream finds that number raised by an earlier transaction. So whoever makes the stream again reads it, and
-- the ids go on above it.
--
-- A client comes back to a forgotten stream. It may have missed events that retention removed, and its cursor is all
-- that is known of it. A stream that does not exist in a slot with forgotten streams may be one of them, so it has a
-- head and a mark there: the slot's number. The stream that is made again gets them as its own. So a client whose cursor
-- is
--
--     below the number    is told of a gap: perhaps it missed nothing, which nobody can know any more
--     at the number       is told nothing: if the stream was forgotten, its head was not higher, so nothing was missed
--     above the number    is told that its cursor is not of this log
--
-- A page that is made after the stream was forgotten begins at the number. Where an incarnation began above the number
-- (chapter 3), its start takes the number's place, since a client may have seen an id that the number's own log lost. So
-- does the floor of a slot, where it is higher, for streams that were removed by hand.
--
-- A client that is connected is told nothing. Its shard has read the stream a moment ago, and a stream that had an event
-- since then cannot be forgotten yet. So what the shard finds below begins_after, and above the head that it knows,
-- never was an event of this stream.
--
-- The locks. headrace.forget_streams waits for none, so that it is in no deadlock. Whoever numbers in a stream that it
-- is forgetting waits until it has committed, finds no row, and makes the stream again.

create table headrace.forgetting (
    single boolean not null default true,
    walked_to integer not null default 0,
    next_at timestamp with time zone not null default '-infinity'::timestamp with time zone,
    primary key (single),
    check (single)
);
comment on table headrace.forgetting is
    'How far the search for idle streams has got; one row, whose lock lets one session forget at a time.';
comment on column headrace.forgetting.single is 'Always true: there is one row.';
comment on column headrace.forgetting.walked_to is
    'The streams up to this stream_id have been looked at; 0 while no search is under way.';
comment on column headrace.forgetting.next_at is 'When the next search begins.';

insert into headrace.forgetting default values;
create function headrace.note_used(streams text[], keep interval)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set enable_bitmapscan to 'off'
set jit to 'off'
as $$
declare
    stale constant timestamptz := clock_timestamp() - keep / 8;
    idle int[];
    noted bigint;
begin
    idle := array(
        select t.stream_id from unnest(streams) as u (name)
            cross join lateral (select n.stream_id from headrace.stream n where n.name = u.name offset 0) s
            cross join lateral (
                select m.stream_id from headrace.trimmed m
                    where m.stream_id = s.stream_id and m.used_at < stale offset 0
            ) t
    );
    idle := array(
        select m.stream_id from headrace.trimmed m where m.stream_id = any (idle) for no key update skip locked
    );
    update headrace.trimmed m set used_at = clock_timestamp() where m.stream_id = any (idle);
    get diagnostics noted = row_count;
    return noted;
end $$;
comment on function headrace.note_used(text[],interval) is
'Notes that these streams have subscribers, so that headrace.forget_streams passes them over. For shards.

A shard MUST call it at least every eighth of keep, with all streams that have had a subscriber since its last call. It
writes only where the last note is older than an eighth of keep.
Returns how many notes were written.';

create function headrace.forget_streams(keep interval, batch integer, out forgotten integer, out more boolean)
returns record
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
set enable_seqscan to 'off'
set enable_mergejoin to 'off'
set enable_bitmapscan to 'off'
set jit to 'off'
as $$
declare
    looks constant int := 10;
    cutoff constant timestamptz := clock_timestamp() - keep - keep / 4;
    reached int;
    looked int[];
    up_to int;
    idle int[];
    ready int[];
    slots smallint[];
begin
    if batch is null or batch not between 1 and 100000 then
        raise exception 'a batch must have 1 to 100,000 streams, not %', batch using errcode = '22023';
    end if;
    if keep is null or keep < interval '1 hour' then
        raise exception 'idle streams must be kept for 1 hour or longer, not for %', keep using errcode = '22023';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The snapshot would be older than the locks, and not show what was published before they were got.
        raise exception 'streams can be forgotten in a READ COMMITTED transaction only' using errcode = '25001';
    end if;
    forgotten := 0;
    more := false;
    select w.walked_to into reached from headrace.forgetting w
        where w.walked_to > 0 or w.next_at <= clock_timestamp() for update skip locked;
    if not found then
        return;
    end if;
    looked := array(
        select t.stream_id from headrace.trimmed t where t.stream_id > reached order by t.stream_id limit looks * batch
    );
    up_to := looked[cardinality(looked)];
    idle := array(
        select t.stream_id from headrace.trimmed t
            where t.stream_id > reached and t.stream_id <= up_to and t.used_at < cutoff
                and t.trimmed_to >= (select s.last_id from headrace.stream s where s.stream_id = t.stream_id)
            order by t.stream_id limit batch
    );
    more := cardinality(looked) = looks * batch;
    if cardinality(idle) = batch then
        more := true;
        up_to := idle[batch];
    end if;
    idle := array(select s.stream_id from headrace.stream s where s.stream_id = any (idle) for update skip locked);
    idle := array(
        select t.stream_id from headrace.trimmed t
            where t.stream_id = any (idle) and t.used_at < cutoff for update skip locked
    );
    -- From here on nobody numbers in these streams, and each statement sees all that was numbered in them before.
    idle := array(
        select s.stream_id from headrace.stream s
            where s.stream_id = any (idle)
                and s.last_id <= (select t.trimmed_to from headrace.trimmed t where t.stream_id = s.stream_id)
                -- No index has ctid, so it is not the index of times alone that is gone through.
                and (select e.ctid from headrace.event e where e.stream_id = s.stream_id limit 1) is null
                and (select w.turn from headrace.turn w where w.stream = s.name limit 1) is null
                and (select b.stream from headrace.behind b where b.stream = s.name) is null
    );
    ready := array(
        select s.stream_id from headrace.stream s
            where s.stream_id = any (idle)
                and s.last_id <= (select f.forgotten from headrace.slot_floor f where f.slot = s.slot)
    );
    perform set_config('headrace.forgetting', 'on', true);
    delete from headrace.stream s where s.stream_id = any (ready);
    get diagnostics forgotten = row_count;
    perform set_config('headrace.forgetting', '', true);
    -- Last of all, since whoever makes a stream of the slot waits for these locks. The others of these streams are
    -- forgotten by the next call: who makes one of them again then has the new number for certain.
    slots := array(
        select f.slot from headrace.slot_floor f
            where f.slot = any (array(
                select s.slot from headrace.stream s where s.stream_id = any (idle) and s.stream_id <> all (ready)
            ))
            for no key update skip locked
    );
    with heads as materialized (
        select s.slot, max(s.last_id) as head from headrace.stream s where s.stream_id = any (idle) group by s.slot
    )
    update headrace.slot_floor f set forgotten = h.head from heads h where f.slot = h.slot and f.slot = any (slots);
    if cardinality(slots) > 0 then
        more := true;
        up_to := reached;
    end if;
    update headrace.forgetting w
        set walked_to = case when more then up_to else 0 end,
            next_at = case when more then w.next_at else clock_timestamp() + least(keep / 8, interval '1 hour') end;
end $$;
comment on function headrace.forget_streams(interval,integer) is
'Forgets at most batch streams that have had no event and no subscriber for keep. Call it in a loop, each call in a
transaction of its own; shards do.

A call looks at the next streams of the search that is under way, or begins a search if one is due. It waits for no
lock, and passes over a stream in which somebody numbers, or of which events wait for their ids.
keep: at least 1 hour. A stream is kept for that time and a quarter of it, since its use is noted to a quarter.
Returns forgotten, how many streams; more, whether to call it again now.
Raises 22023 for an argument that is not allowed; 25001 in a transaction that is not READ COMMITTED.';

create function headrace.estimate_streams()
returns bigint
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select case
            when c.reltuples >= 0 then c.reltuples::bigint
            else (select count(*) from (select from headrace.stream limit 100000) s)
        end
        from pg_class c where c.oid = 'headrace.stream'::regclass
$$;
comment on function headrace.estimate_streams() is
'About how many streams there are: as many as the last VACUUM or ANALYZE of headrace.stream has found, which autovacuum
does often. Before the first they are counted, up to 100,000.';


-- 8 Changes of tables -------------------------------------------------------------------------------------------------
--
--     select headrace.publish_changes('shop.orders', 'order:{id}')
--
--     insert into shop.orders …  ──►  event "insert" of stream order:42
--         {"op": "insert", "schema": "shop", "table": "orders", "row": {"id": 42, "state": "new"}}
--
-- A template is text in which {column} stands for that column of the row, {{ and }} for a brace. The streams of a
-- template show the table as they would show a view of it: a row that an update moves from one stream to another is a
-- "delete" in the first and an "insert" in the second, and a row with a null in one of the columns is in no stream.
--
-- Rights. Nothing here is SECURITY DEFINER. Turning a row into JSON runs functions that the owners of its types chose
-- (casts to json), so with the rights of this schema's owner any publisher could take these. Instead the trigger is
-- made with the rights of the caller of publish_changes (TRIGGER on the table), and publishes with the rights of the
-- role that writes the table: both need headrace_publisher, as for publishing by hand.
--
-- How a row becomes JSON. The wanted columns of an ordinary row are converted at once: the quick way. Where that fails
-- (JSON that jsonb cannot hold, hundreds of megabytes, a cast that raises, a column that was renamed), and for a table
-- with virtual generated columns, which are null in a trigger, there is the careful way: a row is the parameter $1 of a
-- statement that names the wanted columns alone, so that no value of another column is converted. A row that cannot be
-- converted even so, or whose event is above the limit, is shown by its primary key. No write fails for the sake of its
-- event.
--
-- Settings. A row and its stream have the same text whichever session writes: publish_change fixes each setting that
-- changes how values look, except lc_monetary: in another currency, an amount of money would be another amount.
--
-- What a trigger needs to know are its arguments, so that dumps carry it. The first one is JSON:
--     stream       the template in pieces: text, column, text, column, …, text
--     columns      the columns that the JSON shows; null: all
--     old          whether updates carry the old row, too
--     visible_to   audience label, or null
--     of, numbers  the table's oid, and the number of each column that is named above: a column that was renamed is found
--                  by its number. In a dump that was restored numbers differ, which the other oid shows. Triggers that
--                  were made before version 0.3 have neither
--
-- Where events show the whole row without the old one, and the template has one column at most, there are more: the table's
-- schema; its name; what stands in an event between the operation and the row; the audience label, or an empty text; the
-- stream, or what stands in the template before its column; that column; what stands behind it. They are what most changes
-- need, in few expressions, since each expression costs a short transaction a hundredth of all that it does. What they do
-- not do for (a DELETE, a row that changes its stream, a table that was renamed, a partition), the first argument does.

create function headrace.publish_changes(
    of_table regclass,
    stream text,
    columns text[] default null::text[],
    old boolean default false,
    visible_to text default null::text
)
returns void
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    pieces constant text[] := headrace.template_pieces(stream);
    naming constant text[] := array(
        select p.piece from unnest(pieces) with ordinality p (piece, place) where p.place % 2 = 0);
    fixed constant text := (
        select string_agg(p.piece, '') from unnest(pieces) with ordinality p (piece, place) where p.place % 2 = 1);
    numbers jsonb;
    asked text;
    children text;
    options jsonb;
    trigger_name text;
begin
    if of_table is null then
        raise exception 'the table is null; name a table' using errcode = '22023';
    end if;
    if exists (select from pg_class c where c.oid = of_table and c.relnamespace = 'headrace'::regnamespace) then
        raise exception '% is a table of headrace itself; name one of your own', of_table using errcode = '22023';
    end if;
    if octet_length(visible_to) not between 1 and 512 then
        raise exception 'an audience label must have 1 to 512 bytes' using errcode = '22023';
    end if;
    if octet_length(fixed) > 512 then
        raise exception 'a stream name must have 1 to 512 bytes, and those of the template have at least %',
            octet_length(fixed) using errcode = '22023';
    end if;
    if starts_with(stream, 'headrace:') then
        raise exception 'stream names that begin with "headrace:" are headrace''s own, and nobody may read them'
            using errcode = '22023';
    end if;
    foreach asked in array columns || naming loop
        if asked is null or not exists (
            select from pg_attribute a where a.attrelid = of_table and a.attname = asked and a.attnum > 0
        ) then
            raise exception 'the table % has no column %', of_table, coalesce(quote_ident(asked), 'null')
                using errcode = '42703', hint = 'in a stream template write {{ and }} for braces';
        end if;
    end loop;
    numbers := (
        select jsonb_object_agg(a.attname, a.attnum) from pg_attribute a
            where a.attrelid = of_table and a.attname = any (columns || naming));
    options := jsonb_build_object(
        'stream', pieces, 'columns', columns, 'old', coalesce(old, false), 'visible_to', visible_to,
        'of', of_table::oid::bigint, 'numbers', numbers);
    trigger_name := 'headrace_changes_' || md5(stream);
    perform headrace.make_trigger(
        of_table, trigger_name, 'insert or update or delete', 'row', headrace.row_arguments(of_table, options));
    if cardinality(pieces) = 1 and exists (
        select from pg_class c where c.oid = of_table and c.relkind in ('r', 'p')
    ) then
        perform headrace.make_trigger(of_table, trigger_name || '_truncate', 'truncate', 'statement', array[options::text]);
    end if;
    children := (
        select string_agg(i.inhrelid::regclass::text, ', ' order by i.inhrelid) from pg_inherits i
            join pg_class c on c.oid = i.inhrelid where i.inhparent = of_table and not c.relispartition);
    if children is not null then
        raise warning 'changes of rows in the children of the table % are not published: %', of_table, children
            using hint = 'triggers are not inherited; call headrace.publish_changes for each child, too';
    end if;
end $$;
comment on function headrace.publish_changes(regclass,text,text[],boolean,text) is
'Publishes every change of a table''s rows, from now on, with the transaction that makes the change.

Makes triggers, with the rights of the caller, who needs TRIGGER on the table; roles that write the table need
headrace_publisher. A second call with the same template replaces the options; with another template, it adds events
to other streams.

of_table: the table. Triggers are not inherited: a warning names children, for which this must be called, too.
stream: a template of the stream''s name; {column} stands for that column of the row, {{ and }} for a brace.
columns: the columns that events show; null means all.
old: whether the event of an update has the old row, too.
visible_to: as in headrace.publish.
Events: type insert, update, delete or truncate; data {"op", "schema", "table", "row", "old"}. A row that an update
moves from one stream to another is a delete in the first and an insert in the second. A row that is too large or
cannot be converted is shown by its primary key, with "too_large": true or "failed": SQLSTATE.
Raises 22023 for an argument that is not allowed, 42703 for a column that the table does not have, 42501 without
rights.';

create function headrace.unpublish_changes(of_table regclass, stream text default null::text)
returns void
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    made record;
begin
    for made in
        select t.tgname from pg_trigger t
            where t.tgrelid = of_table and t.tgparentid = 0
                and t.tgfoid = 'headrace.publish_change()'::regprocedure
                and (stream is null or t.tgname in (
                    'headrace_changes_' || md5(stream), 'headrace_changes_' || md5(stream) || '_truncate'))
    loop
        execute format('drop trigger %I on %s', made.tgname, of_table);
    end loop;
end $$;
comment on function headrace.unpublish_changes(regclass,text) is
'Removes the triggers that headrace.publish_changes made on a table.

stream: the template; null removes those of all templates. Without such a trigger nothing happens.';

create function headrace.row_arguments(of_table regclass, options jsonb)
returns text[]
language plpgsql
stable
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    pieces constant text[] := array(select jsonb_array_elements_text(options -> 'stream'));
    beginning constant text := pieces[1];
    found record;
begin
    if options -> 'columns' <> 'null' or (options ->> 'old')::boolean or cardinality(pieces) > 3
        or cardinality(pieces) = 3 and (starts_with('headrace:', beginning) or starts_with('presence:', beginning))
    then
        return array[options::text];
    end if;
    select n.nspname, c.relname into strict found
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = of_table;
    return array[
        options::text, found.nspname, found.relname,
        '"' || headrace.table_told(of_table, found.nspname, found.relname) || ', "row": ',
        coalesce(options ->> 'visible_to', '')
    ] || pieces;
end $$;
comment on function headrace.row_arguments(regclass,jsonb) is
'The arguments of a trigger that headrace.publish_changes makes for each row of a table: the options, and if most changes
of the table can do with less than these say, what the trigger needs for it.';

create function headrace.make_trigger(of_table regclass, name text, events text, level text, arguments text[])
returns void
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    enabled constant "char" := (select t.tgenabled from pg_trigger t where t.tgrelid = of_table and t.tgname = name);
    enabling text;
begin
    execute format(
        'create or replace trigger %I after %s on %s for each %s execute function headrace.publish_change(%s)',
        name, events, of_table, level, (
            select string_agg(quote_literal(a.argument), ', ' order by a.place)
                from unnest(arguments) with ordinality a (argument, place)
        ));
    if enabled in ('A', 'R') then
        enabling := case enabled when 'A' then 'always' else 'replica' end;
        execute format('alter table %s enable %s trigger %I', of_table, enabling, name);
    end if;
end $$;
comment on function headrace.make_trigger(regclass,text,text,text,text[]) is
'Makes a trigger for headrace.publish_changes, or replaces it; one that also fires in sessions of logical replication
goes on doing so.';

create function headrace.template_pieces(template text)
returns text[]
language plpgsql
immutable
set search_path to 'pg_catalog', 'pg_temp'
set standard_conforming_strings to 'on'
as $$
declare
    pieces text[] := array[''];
    parsed text := '';
    token text;
begin
    for token in
        select m[1] from regexp_matches(template, '(\{\{|\}\}|\{(?:[^{}]|\{\{|\}\})+\}(?!\})|[^{}]+)', 'g') m
    loop
        parsed := parsed || token;
        if starts_with(token, '{') and token <> '{{' then
            token := substr(token, 2, length(token) - 2);
            pieces := pieces || array[replace(replace(token, '{{', '{'), '}}', '}'), ''];
        else
            token := case token when '{{' then '{' when '}}' then '}' else token end;
            pieces[cardinality(pieces)] := pieces[cardinality(pieces)] || token;
        end if;
    end loop;
    if template = '' or parsed is distinct from template then
        raise exception 'the stream template % is not text with {column} in it; write {{ and }} for braces',
            quote_nullable(template) using errcode = '22023';
    end if;
    return pieces;
end $$;
comment on function headrace.template_pieces(text) is
    'A stream template in pieces: text, column, text, column, …, text. Raises 22023 for braces that do not match.';

create function headrace.publish_change()
returns trigger
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
set "TimeZone" to 'UTC'
set "DateStyle" to 'ISO, MDY'
set "IntervalStyle" to 'postgres'
set extra_float_digits to '1'
set bytea_output to 'hex'
set quote_all_identifiers to 'off'
as $$
declare
    shown jsonb;
    event text;
    stream text;
    done text;
begin
    if tg_nargs > 5 then
        begin
            if tg_op <> 'DELETE' and (old *= new) is not true and pg_column_size(new) <= 16000
                and tg_table_name = tg_argv[2] and tg_table_schema = tg_argv[1]
            then
                shown := to_jsonb(new);
                if tg_nargs = 6 then
                    stream := tg_argv[5];
                elsif tg_op = 'INSERT' or to_jsonb(old) ->> tg_argv[6] = shown ->> tg_argv[6] then
                    stream := tg_argv[5] || (shown ->> tg_argv[6]) || tg_argv[7];
                end if;
                event := '{"op": "' || lower(tg_op collate "C") || tg_argv[3] || shown || '}';
            end if;
        exception when others then
            event := null;  -- the statements below find out what is wrong
        end;
        -- Virtual generated columns, which came with PostgreSQL 18, are null in a trigger.
        if strpos(event, ': null') > 0 then
            if current_setting('server_version_num')::int >= 180000
                and exists (select from pg_attribute a where a.attrelid = tg_relid and a.attgenerated = 'v')
            then
                event := null;
            end if;
        end if;
        if octet_length(event) <= 1000 and octet_length(stream) <= 512 then
            -- An assignment costs less than PERFORM.
            done := headrace.publish(stream, event, lower(tg_op collate "C"), nullif(tg_argv[4], ''));
            return null;
        end if;
    end if;
    declare
        options constant jsonb := tg_argv[0];
        pieces constant jsonb := options -> 'stream';
        columns constant jsonb := options -> 'columns';
        by_columns constant boolean := jsonb_array_length(pieces) > 1;
        with_old constant boolean := tg_op = 'UPDATE' and (options ->> 'old')::boolean;
        said text;
        quick boolean := true;
        hidden text[] := '{}';
        statement text;
        comma text := '';
        told record;
        before_row text;
        before_stream text;
        after_row text;
        after_stream text;
        reason text;
        op text;
    begin
        said := headrace.table_told(tg_relid, tg_table_schema, tg_table_name);
        if tg_op = 'TRUNCATE' then
            perform headrace.publish(
                pieces ->> 0, '{"op": "truncate"' || said || '}', 'truncate', options ->> 'visible_to');
            return null;
        end if;

        begin
            if tg_op = 'UPDATE' then
                if old *= new then
                    return null;
                end if;
            end if;
            if current_setting('server_version_num')::int >= 180000 then
                quick := not exists (select from pg_attribute a where a.attrelid = tg_relid and a.attgenerated = 'v');
            end if;
            if quick and columns <> 'null' then
                statement := 'select to_jsonb(r.*) from (select ';
                for i in 0 .. jsonb_array_length(columns) - 1 loop
                    statement := statement || comma || '($1).' || quote_ident(columns ->> i);
                    comma := ', ';
                end loop;
                for i in 1 .. jsonb_array_length(pieces) - 2 by 2 loop
                    if not columns ? (pieces ->> i) then
                        hidden := hidden || (pieces ->> i);
                        statement := statement || comma || '($1).' || quote_ident(pieces ->> i);
                        comma := ', ';
                    end if;
                end loop;
                statement := statement || ') r';
            end if;
            if quick and tg_op <> 'DELETE' then
                if statement is not null then
                    execute statement into shown using new;
                elsif not headrace.is_huge(pg_column_size(new)) then
                    shown := to_jsonb(new);
                end if;
                after_stream := headrace.stream_of(pieces, shown);
                after_row := (shown - hidden)::text;
            end if;
            if quick and (tg_op = 'DELETE' or with_old or tg_op = 'UPDATE' and by_columns) then
                shown := null;
                if statement is not null then
                    execute statement into shown using old;
                elsif not headrace.is_huge(pg_column_size(old)) then
                    shown := to_jsonb(old);
                end if;
                before_stream := headrace.stream_of(pieces, shown);
                before_row := (shown - hidden)::text;
            end if;
        exception when others then
            null;  -- the careful way finds out what is wrong
        end;
        if tg_op <> 'DELETE' and after_stream is null then
            after_stream := case when by_columns then headrace.row_stream(new, tg_relid, options) else pieces ->> 0 end;
        end if;
        if tg_op <> 'INSERT' and before_stream is null then
            before_stream := case when by_columns then headrace.row_stream(old, tg_relid, options) else pieces ->> 0 end;
        end if;

        foreach op in array
            case when before_stream = after_stream then '{update}' else '{delete,insert}' end::text[]
        loop
            stream := case op when 'delete' then before_stream else after_stream end;
            continue when stream is null;
            reason := null;
            if before_row is null and (op = 'delete' or op = 'update' and with_old) then
                told := headrace.row_told(old, tg_relid, options);
                before_row := told.shown;
                reason := told.reason;
            end if;
            if after_row is null and op <> 'delete' then
                told := headrace.row_told(new, tg_relid, options);
                after_row := told.shown;
                reason := coalesce(told.reason, reason);
            end if;
            event := '{"op": "' || op || '"' || said
                || ', "row": ' || case op when 'delete' then before_row else after_row end
                || case when op = 'update' and with_old then ', "old": ' || before_row else '' end || '}';
            if event is null or octet_length(event) > 1000 and octet_length(event) > headrace.max_payload_bytes() then
                event := '{"op": "' || op || '"' || said || coalesce(reason, ', "too_large": true');
                if op = 'delete' then
                    event := headrace.row_key(old, tg_relid, event);
                else
                    event := headrace.row_key(new, tg_relid, event);
                end if;
            end if;
            perform headrace.publish(stream, event, op, options ->> 'visible_to');
        end loop;
        return null;
    end;
end $$;
comment on function headrace.publish_change() is
    'The trigger that headrace.publish_changes makes, which publishes the events of a changed row. Never make one by hand.';

create function headrace.table_told(relation oid, schema_name name, table_name name)
returns text
language plpgsql
stable
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    root constant regclass := pg_partition_root(relation);
begin
    if root <> relation then
        select n.nspname, c.relname into schema_name, table_name
            from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root;
    end if;
    return ', "schema": ' || to_json(schema_name) || ', "table": ' || to_json(table_name);
end $$;
comment on function headrace.table_told(oid,name,name) is
'The table of a change, as it stands in the JSON of its event. A partition''s rows are shown under the name of the
partitioned table.';

create function headrace.stream_of(pieces jsonb, shown jsonb)
returns text
language plpgsql
immutable
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    name text := pieces ->> 0;
    i int := 1;
begin
    while i < jsonb_array_length(pieces) loop
        name := name || (shown ->> (pieces ->> i)) || (pieces ->> i + 1);
        i := i + 2;
    end loop;
    if octet_length(name) not between 1 and 512 or starts_with(name, 'headrace:')
        or starts_with(name, 'presence:') and not starts_with(pieces ->> 0, 'presence:')
    then
        return null;
    end if;
    return name;
end $$;
comment on function headrace.stream_of(jsonb,jsonb) is
'The stream of a row, from the pieces of a template and the row''s columns as JSON.

Returns null if a column of the template is null or missing, if no stream can have the name, and if a row must not
choose
it: headrace''s own streams, and companion streams (presence:) unless the template itself begins so.';

create function headrace.is_huge(row_bytes bigint)
returns boolean
language plpgsql
stable
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    return row_bytes > 16000 and row_bytes / 16 > headrace.max_payload_bytes();
end $$;
comment on function headrace.is_huge(bigint) is
'Whether an event with all of a row of this size in bytes is certainly above the limit: no JSON has less than a
sixteenth of the bytes that it is made from.';

create function headrace.columns_now(
    relation oid,
    options jsonb,
    names text[],
    out present text[],
    out expressions text[]
)
returns record
language plpgsql
stable
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    numbers constant jsonb := options -> 'numbers';
begin
    if names is null then
        names := array(
            select a.attname from pg_attribute a
                where a.attrelid = relation and a.attnum > 0 and not a.attisdropped order by a.attnum);
    end if;
    -- By their names first: where a column was renamed and another column has its name now, the other column is meant.
    present := array(
        select a.attname::text from unnest(names) with ordinality n (name, place)
            left join pg_attribute a on a.attrelid = relation and a.attname = n.name and a.attnum > 0
            order by n.place);
    for i in 1 .. cardinality(names) loop
        if present[i] is null and numbers ? names[i] then
            present[i] := (
                select a.attname from pg_attribute a
                    where a.attrelid = (options ->> 'of')::oid and a.attnum = (numbers ->> names[i])::smallint
                        and not a.attisdropped);
        end if;
    end loop;
    expressions := array(
        select case a.attgenerated when 'v'
                -- A generated column may use the row's others, and of the system's columns tableoid alone.
                then '(select (' || pg_get_expr(d.adbin, relation) || ') from (select ($1).*, ' || relation
                    || '::oid as tableoid) r)'
                else '($1).' || quote_ident(a.attname)
            end
            from unnest(present) with ordinality p (name, place)
            left join pg_attribute a on a.attrelid = relation and a.attname = p.name and a.attnum > 0
            left join pg_attrdef d on a.attgenerated = 'v' and d.adrelid = a.attrelid and d.adnum = a.attnum
            order by p.place);
end $$;
comment on function headrace.columns_now(oid,jsonb,text[]) is
'The names that a trigger''s columns have now.

names: the columns as they were called when the trigger was made; null means all columns of the table. Returns, in the
same order, present, the name that each has now, and expressions, the SQL that takes it from a row $1; both null for a
column that no longer exists.';

create function headrace.row_json(whole record, relation oid, options jsonb, names text[])
returns text
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    wanted record;
    list text;
    told text;
begin
    wanted := headrace.columns_now(relation, options, names);
    list := (
        select string_agg(c.sql || ' as ' || quote_ident(c.name), ', ')
            from unnest(wanted.present, wanted.expressions) c (name, sql) where c.sql is not null);
    if list is null then
        return '{}';
    end if;
    execute 'select to_json(r.*)::text from (select ' || list || ') r' into told using whole;
    return told;
end $$;
comment on function headrace.row_json(record,oid,jsonb,text[]) is
'The columns of a row that are named (null: all), as JSON text; a column that no longer exists is left out. Raises what
the conversion of a value raises.';

create function headrace.row_stream(whole record, relation oid, options jsonb)
returns text
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    pieces constant jsonb := options -> 'stream';
    names constant text[] := array(
        select distinct p.piece from jsonb_array_elements_text(pieces) with ordinality p (piece, place)
            where p.place % 2 = 0);
    wanted record;
    gone text;
    shown jsonb;
begin
    wanted := headrace.columns_now(relation, options, names);
    gone := (
        select string_agg(quote_ident(n.name), ', ') from unnest(names, wanted.expressions) n (name, sql)
            where n.sql is null);
    if gone is not null then
        raise warning 'a change of the table % is published nowhere: its stream is named by %, which is no longer there',
            relation::regclass, gone
            using hint = 'call headrace.unpublish_changes for the table, then headrace.publish_changes again';
        return null;
    end if;
    execute 'select to_jsonb(r.*) from (select ' || (
        select string_agg(c.sql || ' as ' || quote_ident(c.name), ', ') from unnest(names, wanted.expressions) c (name, sql)
    ) || ') r' into shown using whole;
    return headrace.stream_of(pieces, shown);
exception when others then
    raise warning 'a change of the table % is published nowhere: its stream cannot be named: %',
        relation::regclass, sqlerrm using errcode = sqlstate;
    return null;
end $$;
comment on function headrace.row_stream(record,oid,jsonb) is
'The stream of a row, whatever became of its table''s columns; null, with a warning, if it cannot be named; null if a
column of the template is null.';

create function headrace.row_told(whole record, relation oid, options jsonb, out shown text, out reason text)
returns record
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    names constant text[] := case when options ->> 'columns' is not null
        then array(select jsonb_array_elements_text(options -> 'columns')) end;
begin
    if names is null and headrace.is_huge(pg_column_size(whole)) then
        reason := ', "too_large": true';
    else
        shown := headrace.row_json(whole, relation, options, names);
    end if;
exception
    when program_limit_exceeded or out_of_memory or internal_error then
        -- internal_error is what PostgreSQL raises when it would have to allocate a gigabyte.
        reason := ', "too_large": true';
    when others then
        raise warning 'a changed row of the table % is told of by its key: %', relation::regclass, sqlerrm
            using errcode = sqlstate;
        reason := ', "failed": ' || to_json(sqlstate);
end $$;
comment on function headrace.row_told(record,oid,jsonb) is
'The columns of a row that its events show, as JSON text; or null and the reason why they cannot be shown, as it stands
in the event.';

create function headrace.row_key(whole record, relation oid, beginning text)
returns text
language plpgsql
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    key constant text[] := (
        select array_agg(a.attname::text order by a.attnum) from pg_index i
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey[0:i.indnkeyatts - 1])
            where i.indrelid = relation and i.indisprimary);
    event text;
begin
    if key is not null then
        event := beginning || ', "row": ' || headrace.row_json(whole, relation, null, key) || '}';
        if octet_length(event) <= 1000 or octet_length(event) <= headrace.max_payload_bytes() then
            return event;
        end if;
    end if;
    return beginning || ', "row": {}}';
exception when others then
    return beginning || ', "row": {}}';
end $$;
comment on function headrace.row_key(record,oid,text) is
'The event of a row that cannot be shown in full, from its beginning on: with the row''s primary key, as it is now, or
without it if there is none, it cannot be converted, or the event would be above the limit. Without it, the event has
at most 900 bytes, which is never too large.';

create function headrace.shown_columns(whole jsonb, columns jsonb)
returns jsonb
language sql
immutable
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select case
        when jsonb_typeof(columns) = 'array'
            then (select coalesce(jsonb_object_agg(c.key, c.value), '{}') from jsonb_each(whole) c where columns ? c.key)
        else whole
    end
$$;
comment on function headrace.shown_columns(jsonb,jsonb) is
    'Not called by this version: the columns of a row that its events show.';


-- 9 Revocation --------------------------------------------------------------------------------------------------------
--
-- headrace.disconnect adds a row with the caller's transaction. Every shard reads the new rows several times a second
-- and keeps them in memory, so that nothing in the path of a request asks PostgreSQL.
--
--   Which rows are new. Ids of an identity column do not become visible in their order. So each row has the id of its
--   transaction, and each reading returns a floor below which every transaction had ended when it read (the snapshot's
--   xmin): whatever was invisible then has an id at or above it, and the next reading asks from there. A row may be
--   read twice, never missed. While a transaction stays open, the rows since its begin are read again.
--
--   From when on. Tokens carry the time of their issue by the clock of the application's host, in whole milliseconds.
--   It is compared with this server's clock when the disconnecting transaction commits (a deferred trigger sets it),
--   not when the function was called: until the commit, others may still sign tokens for that user. The time is rounded
--   down to the millisecond, and tokens of that same millisecond are refused too; the trigger then waits for the
--   millisecond to end, so that a token that is signed after the commit, on a clock that agrees, is never refused. If
--   the clock of the signing host is ahead by s seconds, tokens that it signed in the last s seconds before the
--   disconnect escape, and so does a token signed just after it by a request that began before it: `skew` refuses those
--   as well, and whatever else is signed in that time. If the clock is behind by s seconds, tokens of the first s
--   seconds afterwards are refused.
--
-- The trigger fires twice at commit: what is changed by a deferred trigger fires another behind all that were waiting
-- already. So the time is taken when the streams that the transaction also publishes to have been waited for, and no
-- token is signed between.

create table headrace.revocation (
    revocation_id bigint not null generated always as identity,
    xid xid8 not null,
    user_name text collate "C",
    stream text collate "C",
    reason text not null,
    skew interval not null,
    issued_to_ms bigint not null,
    primary key (revocation_id),
    check (((user_name is null) <> (stream is null)))
);
comment on table headrace.revocation is
    'Every call of headrace.disconnect that may still have an effect; read by shards.';
comment on column headrace.revocation.revocation_id is 'Tells rows apart; not the order in which they became visible.';
comment on column headrace.revocation.xid is 'The transaction that made the row.';
comment on column headrace.revocation.user_name is
    'The user whose tokens are refused and whose connections are closed, or null.';
comment on column headrace.revocation.stream is 'The stream whose connections are closed, once, or null.';
comment on column headrace.revocation.reason is 'What the clients are told.';
comment on column headrace.revocation.skew is 'Tokens issued up to this long after the commit are refused as well.';
comment on column headrace.revocation.issued_to_ms is
'Tokens issued up to this time, in milliseconds since 1970, are refused: the commit''s time and the skew; 0 or -1 until
the commit.';
create index revocation_user on headrace.revocation using btree (user_name, issued_to_ms) where (user_name is not null);
create index revocation_xid on headrace.revocation using btree (xid);

create function headrace.date_revocation()
returns trigger
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
comment on function headrace.date_revocation() is
    'Constraint trigger of headrace.revocation: sets, at commit, up to when tokens are refused.';
create constraint trigger date_revocation after insert or update on headrace.revocation
    deferrable initially deferred
    for each row when ((new.issued_to_ms <= 0))
    execute function headrace.date_revocation();
alter table headrace.revocation enable always trigger date_revocation;

create function headrace.disconnect(
    user_name text default null::text,
    stream text default null::text,
    reason text default 'disconnected'::text,
    skew interval default '00:00:00'::interval
)
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
comment on function headrace.disconnect(text,text,text,interval) is
'Closes connections on every node when, and only if, this transaction commits.

user_name: closes the connections of this user, and refuses its tokens that were issued before the commit; at most
16,384 bytes.
stream: closes the connections that follow this stream; their clients may come back. Give one of the two.
reason: what the clients are told by headrace:goodbye, 1 to 512 bytes.
skew: tokens issued up to this long after the commit are refused as well, for hosts whose clock is ahead; 0 to 1 day.
Raises 22023 for an argument that is not allowed; 25006 in a read-only transaction.';

create function headrace.read_revocations(since xid8)
returns table(
    floor xid8,
    revocation_id bigint,
    user_name text,
    stream text,
    reason text,
    issued_to_ms bigint,
    age_ms bigint
)
language plpgsql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
set plan_cache_mode to 'force_generic_plan'
as $$
begin
    return query
        select pg_snapshot_xmin(pg_current_snapshot()), r.revocation_id, r.user_name, r.stream, r.reason,
                r.issued_to_ms, (extract(epoch from clock_timestamp()) * 1000)::bigint - r.issued_to_ms
            from (values (1)) v left join headrace.revocation r on r.xid >= since;
end $$;
comment on function headrace.read_revocations(xid8) is
'The revocations that transactions from since on have made. For shards.

Returns at least one row, whose columns but the first are null if there is no revocation. floor: what to give as since
the next time, on the same connection. issued_to_ms: milliseconds since 1970. age_ms: how long ago a stream''s
connections were to be closed, in milliseconds.';

create function headrace.forget_revocations(token_life interval)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
comment on function headrace.forget_revocations(interval) is
'Removes the revocations that no token can be hit by: a user''s that a later one covers; a user''s that is older than
any token may live; a stream''s after an hour. An hour is added for clocks that disagree.

token_life: for how long a token may live; null means for ever. Returns how many were removed.';


-- 10 Presence ---------------------------------------------------------------------------------------------------------
--
--     shard ── presence_report(session, serial, here, gone) ──► holders ──► members ──► join, leave on presence:<stream>
--
-- Rules.
--   A user is a member of a stream as long as at least one session holds the pair of stream and user; a session is a
--   shard's process, which counts the user's connections by itself. So there is one row per shard and pair, however
--   many tabs.
--   Whatever changes the members of a stream first locks the stream's row in headrace.presence, in the order of names,
--   and keeps the lock until it commits. So a join here and a leave there never overlook each other, the count is
--   exact, and the events are numbered in the order in which the members changed: for each user a join, a leave, a join
--   … Members, count and events change in one transaction. In any snapshot the members of a stream are those that its
--   companion stream's events up to the head add up to (as far back as they are kept).
--   No clock decides anything: a session is given up by another session that has seen its serial unchanged for long.
--
-- The settings of the functions force a probe per pair: statistics of tables that are empty at times mislead, and a
-- scan per pair would make the cost of a crowd its square.

create table headrace.presence (
    stream text collate "C" not null,
    members bigint not null,
    primary key (stream)
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.presence is 'How many members a stream has; no row where there are none.';
comment on column headrace.presence.stream is
    'Name of the stream. The lock on this row is the lock on the members of the stream.';
comment on column headrace.presence.members is 'How many rows of headrace.presence_member the stream has.';

create table headrace.presence_member (
    stream text collate "C" not null,
    member text collate "C" not null,
    since timestamp with time zone not null,
    primary key (stream, member)
) with (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.presence_member is
    'The members of streams: the pairs of stream and user that at least one session holds.';
comment on column headrace.presence_member.stream is 'Name of the stream.';
comment on column headrace.presence_member.member is 'The user.';
comment on column headrace.presence_member.since is 'When the user joined.';

create table headrace.presence_holder (
    stream text collate "C" not null,
    member text collate "C" not null,
    session uuid not null,
    primary key (stream, member, session)
) with (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.presence_holder is 'Which sessions have at least one connection of a user on a stream.';
comment on column headrace.presence_holder.stream is 'Name of the stream.';
comment on column headrace.presence_holder.member is 'The user.';
comment on column headrace.presence_holder.session is 'As in headrace.presence_session.';
create index presence_holder_session on headrace.presence_holder using btree (session);

create table headrace.presence_session (
    session uuid not null,
    shard text not null,
    serial bigint not null,
    primary key (session)
) with (
    fillfactor = 50,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.presence_session is
    'The shards'' processes that hold members; each has a row while it holds any.';
comment on column headrace.presence_session.session is
    'A random id of the process. It takes another one whenever it has to report all its members again.';
comment on column headrace.presence_session.shard is 'The id of the shard, for people who read the table.';
comment on column headrace.presence_session.serial is
'The number of the last report. It grows every few seconds: a shard that sees the serial of another session unchanged
for long knows that the other process is gone.';

create function headrace.members(stream text)
returns table(member text, since timestamp with time zone)
language sql
stable strict security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select m.member, m.since from headrace.presence_member m where m.stream = members.stream order by m.since, m.member
$$;
comment on function headrace.members(text) is
'The members of a stream: the users who are present on it in the snapshot of this statement, each with the time of
joining, in that order.';

create function headrace.member_count(stream text)
returns bigint
language sql
stable strict security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select coalesce((select p.members from headrace.presence p where p.stream = member_count.stream), 0)
$$;
comment on function headrace.member_count(text) is
    'How many members a stream has in the snapshot of this statement. One row is read, however many they are.';

create function headrace.presence_report(
    session uuid,
    shard text,
    serial bigint,
    after bigint,
    opens boolean,
    here_streams text[],
    here_members text[],
    gone_streams text[],
    gone_members text[]
)
returns table(known uuid, reached bigint)
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
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
comment on function headrace.presence_report(uuid,text,bigint,bigint,boolean,text[],text[],text[],text[]) is
'One report of a shard''s process: which pairs of stream and user it holds now, which it holds no longer, and that it
lives.

session, shard: as in headrace.presence_session.
serial: above that of any earlier report of the session.
after: the newest serial that the process knows to be committed. If the session''s is lower, what was reported is
lost, as by a fail-over, and the report is not taken.
opens: whether the session is new; then it is made if it does not exist.
The four arrays: the streams and users that joined, and those that left, each by position; no pair is in both.

A report whose outcome its sender could not learn may be repeated with a higher serial. If the first one is still
under way, whichever comes first holds the session''s row, and the older, coming second, does nothing.

Returns all sessions with their serials, to be watched. Where the own is missing, the report was not taken.';

create function headrace.presence_sessions()
returns table(known uuid, reached bigint)
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select p.session, p.serial from headrace.presence_session p
$$;
comment on function headrace.presence_sessions() is
    'All sessions, and the serial of the last report of each. For a shard that has nothing to report.';

create function headrace.presence_expire(session uuid, serial bigint)
returns integer
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
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
comment on function headrace.presence_expire(uuid,bigint) is
'Ends a session that was seen to stand at this serial for long: users whom no other session holds leave.

Of several shards that notice, the first does it; a session that has reported meanwhile stays.
Returns how many users have left; null if nothing was done.';

create function headrace.presence_settle(
    here_streams text[],
    here_members text[],
    gone_streams text[],
    gone_members text[]
)
returns integer
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_hashjoin to 'off'
set enable_mergejoin to 'off'
set jit to 'off'
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
comment on function headrace.presence_settle(text[],text[],text[],text[]) is
'Brings the members in line with the holders after these have changed, and publishes joins and leaves.

The pairs of stream and user that joined and that left are given by position. The locks of all these streams MUST be
held.
Returns how many members joined and left.';

create function headrace.presence_lock(streams text[])
returns void
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
'Takes the locks of these streams, until the transaction ends: their rows in headrace.presence, which are made if they
are missing. Raises 25001 in a transaction that is not READ COMMITTED.';


-- 11 Publishing over HTTP ---------------------------------------------------------------------------------------------

create table headrace.publication (
    key bytea not null,
    digest bytea not null,
    ids bigint[] not null default '{}'::bigint[],
    created_at timestamp with time zone not null default clock_timestamp(),
    primary key (key)
);
comment on table headrace.publication is
    'The requests that used an idempotency key, for as long as they may be repeated.';
comment on column headrace.publication.key is 'sha256 of the publisher and the key that it gave.';
comment on column headrace.publication.digest is 'sha256 of the events.';
comment on column headrace.publication.ids is 'The ids of the events.';
comment on column headrace.publication.created_at is 'When the key was used; only its removal relies on it.';
create index publication_created_at on headrace.publication using btree (created_at);

create function headrace.publish_once(
    key bytea,
    digest bytea,
    streams text[],
    data text[],
    events text[],
    visible_to text[]
)
returns bigint[]
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
comment on function headrace.publish_once(bytea,bytea,text[],text[],text[],text[]) is
'Publishes like headrace.publish_many_now, but for one key only once. For the router''s POST /publish.

A second call with the key returns the same ids and publishes nothing; while another transaction with the key is open,
it waits for that. The key is remembered until headrace.forget_publications removes it.

key: sha256 of the publisher and the key that it gave; null publishes each time.
digest: sha256 of the events.
Returns the ids, in the order of the arrays. Raises 22HR1 if the key was used for other events; 25001 in a transaction
that is not READ COMMITTED; and like headrace.publish_many.';

create function headrace.count_missing(streams text[])
returns bigint
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
as $$
    select count(*) from (select distinct u.name from unnest(streams) as u (name)) n
        where (select s.stream_id from headrace.stream s where s.name = n.name) is null
$$;
comment on function headrace.count_missing(text[]) is
    'How many of the streams do not exist. For the router, which limits how many a publisher token makes.';

create function headrace.forget_publications(keep interval)
returns bigint
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    gone bigint;
begin
    delete from headrace.publication p where p.created_at < clock_timestamp() - keep;
    get diagnostics gone = row_count;
    return gone;
end $$;
comment on function headrace.forget_publications(interval) is
    'Removes the idempotency keys that were used longer ago than keep; returns how many.';


-- 12 For older versions -----------------------------------------------------------------------------------------------
--
-- Shards of older versions run while a database is migrated, and some transactions were open then.

create unlogged table headrace.stage (
    xid xid8 not null,
    seq bigint not null generated always as identity,
    stream text collate "C" not null,
    type text,
    data text not null,
    visible_to text,
    rings boolean not null,
    primary key (xid, seq)
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.stage is
    'Not used: headrace.payload has taken its place. Events of transactions that were open during the migration.';
comment on column headrace.stage.xid is 'The publishing transaction.';
comment on column headrace.stage.seq is 'Order of publishing within the transaction.';
comment on column headrace.stage.stream is 'Name of the stream.';
comment on column headrace.stage.type is 'As in headrace.event.';
comment on column headrace.stage.data is 'As in headrace.event.';
comment on column headrace.stage.visible_to is 'As in headrace.event.';
comment on column headrace.stage.rings is
    'True for the row whose trigger numbers this and all later rows of the transaction.';

create function headrace.number_staged()
returns trigger
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
set enable_seqscan to 'off'
set enable_nestloop to 'off'
set jit to 'off'
as $$
declare
    bell boolean;
begin
    if new.xid <> pg_current_xact_id() then
        return null;
    end if;
    perform set_config('headrace.ringing', '', true);
    bell := headrace.rings(new.xid);
    with staged as (
        delete from headrace.stage g where g.xid = new.xid and g.seq >= new.seq returning g.*
    )
    insert into headrace.payload (xid, stream, type, data, visible_to, rings)
        select s.xid, s.stream, s.type, s.data, s.visible_to, bell and row_number() over (order by s.seq) = 1
            from staged s order by s.seq;
    return null;
end $$;
comment on function headrace.number_staged() is
'Constraint trigger of headrace.stage, which this version does not write to: transactions that had staged events when the
database was migrated go on as if they had published at their commit.';
create constraint trigger number_staged after insert on headrace.stage
    deferrable initially deferred
    for each row when (new.rings)
    execute function headrace.number_staged();
alter table headrace.stage enable always trigger number_staged;

create unlogged table headrace.unannounced (
    stream_ids integer[] not null
) with (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
comment on table headrace.unannounced is 'Not used: what older versions left to the announcer.';
comment on column headrace.unannounced.stream_ids is 'As in headrace.stream.';

create function headrace.announce_since(
    since pg_snapshot default null::pg_snapshot,
    out transactions bigint,
    out bytes bigint,
    out seen pg_snapshot
)
returns record
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    select greatest(q.transactions, 0), 0, q.seen into transactions, bytes, seen from headrace.sequence() q;
end $$;
comment on function headrace.announce_since(pg_snapshot) is
    'headrace.sequence, for shards of older versions, which call it when they are in office.';

create function headrace.announce_waiting(out transactions bigint, out bytes bigint)
returns record
language sql
security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select a.transactions, a.bytes from headrace.announce_since() a
$$;
comment on function headrace.announce_waiting() is 'headrace.sequence, for shards of versions before 0.2.';

create function headrace.read_events(
    streams text[],
    after bigint[],
    max_events integer,
    max_bytes bigint,
    total_bytes bigint
)
returns table(
    ordinal integer,
    head bigint,
    trimmed_to bigint,
    jumps bigint[],
    audiences text[],
    removed_to bigint[],
    unread boolean,
    id bigint,
    seq bigint,
    created_at timestamp with time zone,
    type text,
    data text,
    visible_to text
)
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select e.ordinal, e.head, e.trimmed_to, e.jumps, e.audiences, e.removed_to, e.unread,
            e.id, e.seq, e.created_at, e.type, e.data, e.visible_to
        from headrace.read_log(streams, after, max_events, max_bytes, total_bytes) e
$$;
comment on function headrace.read_events(text[],bigint[],integer,bigint,bigint) is
    'headrace.read_log without begins_after, for shards of older versions.';

create function headrace.read_after(streams text[], after bigint[], max_events integer, max_bytes bigint)
returns table(
    ordinal integer,
    head bigint,
    trimmed_to bigint,
    jumps bigint[],
    id bigint,
    created_at timestamp with time zone,
    type text,
    data text,
    visible_to text
)
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select e.ordinal, e.head, e.trimmed_to, e.jumps, e.id, e.created_at, e.type, e.data, e.visible_to
        from headrace.read_events(streams, after, max_events, max_bytes, 9223372036854775807) e
$$;
comment on function headrace.read_after(text[],bigint[],integer,bigint) is
    'headrace.read_events without seq, audiences and unread, for shards of versions before 0.3.';

create function headrace.read_after(
    streams text[],
    after bigint[],
    max_events integer,
    max_bytes bigint,
    total_bytes bigint
)
returns table(
    ordinal integer,
    head bigint,
    trimmed_to bigint,
    jumps bigint[],
    audiences text[],
    removed_to bigint[],
    unread boolean,
    id bigint,
    created_at timestamp with time zone,
    type text,
    data text,
    visible_to text
)
language sql
stable security definer
set search_path to 'pg_catalog', 'pg_temp'
as $$
    select e.ordinal, e.head, e.trimmed_to, e.jumps, e.audiences, e.removed_to, e.unread,
            e.id, e.created_at, e.type, e.data, e.visible_to
        from headrace.read_events(streams, after, max_events, max_bytes, total_bytes) e
$$;
comment on function headrace.read_after(text[],bigint[],integer,bigint,bigint) is
    'headrace.read_events without seq, for shards of older versions.';

create function headrace.take(name text, count integer, now_on bigint, out stream_id integer, out before bigint)
returns record
language plpgsql
security definer
set search_path to 'pg_catalog', 'pg_temp'
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
comment on function headrace.take(text,integer,bigint) is
'Not called by this version: gives out ids of a stream and notifies its slot, for numberings of older versions that
were under way during the migration.';


reset check_function_bodies;


-- Rights --------------------------------------------------------------------------------------------------------------

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
grant execute on function
    headrace.columns_now(oid,jsonb,text[]),
    headrace.count_missing(text[]),
    headrace.disconnect(text,text,text,interval),
    headrace.head(text),
    headrace.identity(),
    headrace.is_huge(bigint),
    headrace.make_trigger(regclass,text,text,text,text[]),
    headrace.max_payload_bytes(),
    headrace.member_count(text),
    headrace.members(text),
    headrace.publish(text,text,text,text),
    headrace.publish_change(),
    headrace.publish_changes(regclass,text,text[],boolean,text),
    headrace.publish_many(text[],text[],text[],text[]),
    headrace.publish_many_now(text[],text[],text[],text[]),
    headrace.publish_now(text,text,text,text),
    headrace.publish_once(bytea,bytea,text[],text[],text[],text[]),
    headrace.row_arguments(regclass,jsonb),
    headrace.row_json(record,oid,jsonb,text[]),
    headrace.row_key(record,oid,text),
    headrace.row_stream(record,oid,jsonb),
    headrace.row_told(record,oid,jsonb),
    headrace.shown_columns(jsonb,jsonb),
    headrace.stream_of(jsonb,jsonb),
    headrace.table_told(oid,name,name),
    headrace.template_pieces(text),
    headrace.unpublish_changes(regclass,text),
    headrace.watermark(text)
    to headrace_publisher;
