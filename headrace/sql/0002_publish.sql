-- Publishing: the functions that applications call.
--
--     publish ──► stage (unlogged) ──┐ first staged row of the transaction "rings"
--     publish ──► stage              │
--     COMMIT  ──► deferred trigger ◄─┘ takes the streams in the order of their names, numbers, notifies, empties stage
--
-- Since all locks are taken at commit and in one order, an open transaction holds up nobody, and transactions that
-- publish to the same streams in different orders cannot deadlock. Savepoints need no care: a rolled back savepoint
-- takes along its staged rows, the pending trigger and the setting that says that the bell was rung.
--
-- headrace.ringing (a setting, local to the transaction) holds the id of the transaction whose bell is rung. It is set
-- before the row is inserted, because under SET CONSTRAINTS ALL IMMEDIATE the trigger fires within that INSERT.

create unlogged table headrace.stage (
    xid xid8 not null,
    seq bigint generated always as identity,
    stream text collate "C" not null,
    type text,
    data text not null,
    visible_to text,
    rings boolean not null,
    primary key (xid, seq)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table headrace.stage is
    'Events published in transactions that are still open; no row of it is ever committed.';
comment on column headrace.stage.xid is 'The publishing transaction.';
comment on column headrace.stage.seq is 'Order of publishing within the transaction.';
comment on column headrace.stage.stream is 'Name of the stream.';
comment on column headrace.stage.type is 'As in headrace.event.';
comment on column headrace.stage.data is 'As in headrace.event.';
comment on column headrace.stage.visible_to is 'As in headrace.event.';
comment on column headrace.stage.rings is
    'True for the row whose trigger numbers this and all later rows of the transaction.';

-- What is wrong with an event, as a sentence, or null. Not SECURITY DEFINER and without settings of its own, so that
-- PostgreSQL can inline it; its callers have fixed the search path.
create function headrace.fault(stream text, data text, type text, visible_to text) returns text
language sql stable
as $$
    select case
        when stream is null
            then 'the stream name is null; name a stream'
        when octet_length(stream) not between 1 and 512
            then 'a stream name must have 1 to 512 bytes, this one has ' || octet_length(stream)
        when data is null
            then 'the data is null; publish an empty text instead'
        when octet_length(data)
                > coalesce(nullif(current_setting('headrace.max_payload_bytes', true), ''), '1048576')::bigint
            then 'the data has ' || octet_length(data) || ' bytes, more than headrace.max_payload_bytes ('
                || coalesce(nullif(current_setting('headrace.max_payload_bytes', true), ''), '1048576') || ')'
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
comment on function headrace.fault(text, text, text, text) is 'Why this event is refused; null if it is not.';

-- The plan of every statement is forced: the statistics of a table that is empty between transactions are useless, and
-- a nested loop or a sequential scan would make the cost of a transaction the square of its events.
create function headrace.number_staged() returns trigger
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_nestloop to off
set jit to off
as $$
declare
    names text[] := '{}';
    stream_ids int[] := '{}';
    befores bigint[] := '{}';
    now_on bigint;
    staged record;
    taken record;
begin
    perform set_config('headrace.ringing', '', true);
    now_on := headrace.begin_numbering();
    for staged in
        select g.stream, count(*)::int as events from headrace.stage g
            where g.xid = new.xid and g.seq >= new.seq
            group by g.stream order by g.stream
    loop
        taken := headrace.take(staged.stream, staged.events, now_on);
        names := names || staged.stream;
        stream_ids := stream_ids || taken.stream_id;
        befores := befores || taken.before;
    end loop;
    insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
        select t.stream_id, t.before + row_number() over (partition by g.stream order by g.seq), clock_timestamp(),
                g.type, g.data, g.visible_to
            from headrace.stage g
            join unnest(names, stream_ids, befores) as t (stream, stream_id, before) on t.stream = g.stream
            where g.xid = new.xid and g.seq >= new.seq;
    delete from headrace.stage g where g.xid = new.xid and g.seq >= new.seq;
    return null;
end $$;
comment on function headrace.number_staged() is
    'Constraint trigger: numbers what the transaction has staged, at commit.';

create constraint trigger number_staged after insert on headrace.stage
    deferrable initially deferred
    for each row when (new.rings) execute function headrace.number_staged();
-- Also in a session of a logical replication worker, which fires no ordinary trigger.
alter table headrace.stage enable always trigger number_staged;

-- Returns whether the row about to be staged must ring, and notes that it does.
create function headrace.rings(xid xid8) returns boolean
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    if current_setting('headrace.ringing', true) = xid::text then
        return false;
    end if;
    perform set_config('headrace.ringing', xid::text, true);
    return true;
end $$;
comment on function headrace.rings(xid8) is 'True for the first call in a transaction, and again after each numbering.';

-- Publish an event when, and only if, this transaction commits. Its id is given out at commit.
create function headrace.publish(
    stream text, data text, event text default 'message', visible_to text default null
) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    refusal constant text := headrace.fault(stream, data, event, visible_to);
    xid constant xid8 := pg_current_xact_id();
    bell boolean;
begin
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
    bell := headrace.rings(xid);
    insert into headrace.stage (xid, stream, type, data, visible_to, rings)
        values (xid, stream, nullif(event, 'message'), data, visible_to, bell);
end $$;
comment on function headrace.publish(text, text, text, text) is
    'Publishes data to a stream with this transaction; a null event means "message", a null visible_to everybody.';

-- Publish an event and return its id. The stream stays locked until the transaction ends, so this is for a transaction
-- of its own: others that publish to the stream wait for it, and two such transactions may deadlock.
create function headrace.publish_now(
    stream text, data text, event text default 'message', visible_to text default null
) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
as $$
declare
    refusal constant text := headrace.fault(stream, data, event, visible_to);
    taken record;
begin
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
    taken := headrace.take(stream, 1, headrace.begin_numbering());
    insert into headrace.event (stream_id, id, created_at, type, data, visible_to)
        values (taken.stream_id, taken.before + 1, clock_timestamp(), nullif(event, 'message'), data, visible_to);
    return taken.before + 1;
end $$;
comment on function headrace.publish_now(text, text, text, text) is
    'Publishes like headrace.publish, but numbers at once and returns the id; for a transaction of its own.';

-- Publish many events, numbered at commit in the order of the arrays, which must have the same length.
create function headrace.publish_many(
    streams text[], data text[], events text[] default null, visible_to text[] default null
) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
declare
    size constant int := cardinality(streams);
    refusal text;
    this_xid xid8;
    bell boolean;
begin
    if streams is null or data is null then
        raise exception 'the array of streams or of data is null' using errcode = '22023';
    end if;
    if cardinality(data) <> size or cardinality(events) <> size or cardinality(visible_to) <> size then
        raise exception 'the arrays must have the same length: % streams, % data, % events, % visible_to',
            size, cardinality(data), coalesce(cardinality(events), size), coalesce(cardinality(visible_to), size)
            using errcode = '22023';
    end if;
    if size = 0 then
        return;
    end if;
    select 'event ' || u.place || ': ' || headrace.fault(u.stream, u.data, u.event, u.visible_to) into refusal
        from unnest(streams, publish_many.data, events, publish_many.visible_to)
            with ordinality as u (stream, data, event, visible_to, place)
        where headrace.fault(u.stream, u.data, u.event, u.visible_to) is not null
        order by u.place limit 1;
    if refusal is not null then
        raise exception using message = refusal, errcode = '22023';
    end if;
    this_xid := pg_current_xact_id();
    bell := headrace.rings(this_xid);
    insert into headrace.stage (xid, stream, type, data, visible_to, rings)
        select this_xid, u.stream, nullif(u.event, 'message'), u.data, u.visible_to, bell and u.place = 1
            from unnest(streams, publish_many.data, events, publish_many.visible_to)
                with ordinality as u (stream, data, event, visible_to, place)
            order by u.place;
end $$;
comment on function headrace.publish_many(text[], text[], text[], text[]) is
    'Publishes one event per position of the arrays with this transaction; empty arrays publish nothing.';

revoke all on all tables in schema headrace from public;
revoke all on all functions in schema headrace from public;
grant execute on function
    headrace.publish(text, text, text, text),
    headrace.publish_now(text, text, text, text),
    headrace.publish_many(text[], text[], text[], text[])
    to headrace_publisher;
