-- Publishing, and numbering at commit. headrace/sql/schema.sql, in its chapter on numbering, has the theory.

-- Begins an incarnation; also lets the numbers of payloads go on above all that any other incarnation has given out, since
-- cursors tell events without an id by them, and leaves the turns of a log that was copied row by row anew, since the
-- transactions that left them belong to another server.
create or replace function headrace.begin_block(new_identity boolean default false, forced boolean default true)
returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- Leaves the turns that wait in a log that was restored from a dump, or replicated row by row, as turns of the transaction
-- 2. Their transactions' ids mean nothing here, and neither do the last snapshots, so what waits is told by the events:
-- it has no place among them. PostgreSQL gives the id 2 to no transaction, and each snapshot shows it. No numbering is
-- under way, since each would begin the incarnation first; transactions of this server may have left turns, though.
create function headrace.adopt_turns() returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- Lets the numbers of payloads go on above up_to. The lock keeps two sessions from setting the sequence back. Nobody must
-- hold it until a transaction ends, since publishers take it, so the block undoes all but the sequence, which nothing
-- undoes. Where the clock is behind, the numbers jump: an event may get the next one in this moment.
create function headrace.raise_numbers(up_to bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- Where no numbering has begun this database's incarnation yet: lets the numbers of payloads go on above all that any other
-- may have given out. It waits for nobody who begins the incarnation.
create function headrace.pass_old_numbers() returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    perform from headrace.deployment d
        where d.writer is null or d.timeline = headrace.server_timeline()
            and d.file = pg_relation_filepath('headrace.deployment') and d.writer = d.xmin;
    if not found then
        perform headrace.raise_numbers((extract(epoch from clock_timestamp()) * 1000000)::bigint);
    end if;
end $$;

-- True for a row that must get the mark `rings`: the first row of a transaction, and the first after a trigger has fired; each
-- row of a SERIALIZABLE transaction, whose trigger must read nothing: what concurrent transactions have read of each other
-- makes them fail. Once in a session it looks which incarnation this is: a session does not outlive that, and the look
-- costs half as much as the event. For callers that have fixed the search path.
create or replace function headrace.rings(xid xid8) returns boolean
language plpgsql volatile
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

-- Few expressions, and none that looks into a table, since each costs a short transaction a hundredth of all that it does.
create or replace function headrace.publish(
    stream text,
    data text,
    event text default 'message',
    visible_to text default null
)
returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- Raises 22023 if the arrays of a headrace.publish_many have different lengths, or an event of theirs is not allowed.
create function headrace.check_many(streams text[], data text[], events text[], visible_to text[]) returns void
language plpgsql stable security definer
set search_path to pg_catalog, pg_temp
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

create or replace function headrace.publish_many(
    streams text[],
    data text[],
    events text[] default null,
    visible_to text[] default null
)
returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- The turns of these streams that wait: those that the caller's snapshot shows and that the stream's bound does not cover.
-- The bound is what headrace.behind has for the stream, else the newest tick. Not the caller's own.
create function headrace.waiting(streams text[])
returns table (stream text, xid xid8, turn bigint, from_seq bigint, alone boolean)
language sql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_nestloop to on
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
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

-- Numbers what waits in streams whose rows the caller has locked, in the order of turns, from befores + 1 on; raises the
-- streams' heads by as much, and removes the turns. Returns befores, raised likewise. MUST be called at READ COMMITTED, so
-- that it looks after the locks were got.
create function headrace.number_waiting(streams text[], stream_ids int[], befores bigint[]) returns bigint[]
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_mergejoin to off
set jit to off
as $$
declare
    names text[];
    xids xid8[];
    turns bigint[];
    froms bigint[];
    alones boolean[];
    counts bigint[];
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
    update headrace.stream s set last_id = s.last_id + u.more
        from unnest(stream_ids, counts) as u (stream_id, more) where s.stream_id = u.stream_id and u.more > 0;
    return array(
        select u.before + u.more from unnest(befores, counts) with ordinality as u (before, more, place) order by u.place
    );
end $$;

-- The highest number of a turn when the statement, or COMMIT, began in which this is called. A turn that was taken
-- since then stays, where each event has a trigger: a new version of its row for each event would make the next event
-- slower than the one before.
create function headrace.turns_since() returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- At commit, or earlier by SET CONSTRAINTS or PREPARE: leaves a turn for each stream to others, or numbers. A transaction
-- above READ COMMITTED leaves turns, since its snapshot may be older than what waits in its streams.
create or replace function headrace.take_turn() returns trigger
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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

-- Leaves a turn for each stream of the transaction's events from from_seq on. The last turn of a transaction counts.
create function headrace.leave_turns(own xid8, own_from bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set jit to off
as $$
begin
    insert into headrace.turn (stream, xid, from_seq, alone)
        select p.stream, own, min(p.seq), count(*) = 1 from headrace.payload p
            where p.xid = own and p.seq >= own_from group by p.stream
        on conflict (stream, xid) do update set turn = default, alone = false;
end $$;

-- Numbers what waits in the streams of the transaction's events from own_from on, then these events, and notifies. Events
-- from the next row on that rings are numbered when that row's trigger fires: RESET ALL makes a transaction ring twice. A
-- transaction that has left turns before, while a shard was in office, leaves all its events to others.
create function headrace.number_own(own xid8, own_from bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set enable_seqscan to off
set enable_nestloop to off
set jit to off
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

create constraint trigger take_turn after insert on headrace.payload
    deferrable initially deferred
    for each row when (new.rings) execute function headrace.take_turn();
alter table headrace.payload enable always trigger take_turn;
