-- Publishing never waits: what a transaction publishes is written once, to headrace.payload, and gets its id after the
-- commit, from a shard that numbers for all, or at commit, where no shard does. This file has the tables, and what
-- happens to rows that leave the log; 0022 publishes and numbers at commit, 0023 numbers in rounds, 0024 reads.

-- In the order in which those who number use them: a lock on events alone would meet a transaction that has a stream.
lock table headrace.stream, headrace.event in access exclusive mode;

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

-- An event whose seq is null has its payload in its own row, as all had before.
alter table headrace.event alter column data drop not null, add column xid xid8, add column seq bigint;
comment on table headrace.event is
    'The kept events, in their places. Retention removes a prefix of a stream''s ids, never one from the middle.';
comment on column headrace.event.type is 'As in headrace.payload, where seq is null.';
comment on column headrace.event.data is 'As in headrace.payload, where seq is null; else null.';
comment on column headrace.event.visible_to is 'As in headrace.payload, where seq is null.';
comment on column headrace.event.xid is 'With seq, the row of headrace.payload; null where the payload is in this row.';
comment on column headrace.event.seq is 'See xid.';

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
create index turn_xid on headrace.turn (xid);

create table headrace.tick (
    n bigint primary key,
    seen pg_snapshot not null
);
comment on table headrace.tick is
    'What the last rounds have numbered: in the row with the highest n, all turns visible in seen; but see headrace.behind.';
comment on column headrace.tick.n is 'Number of the round.';
comment on column headrace.tick.seen is 'The snapshot in which the round looked for turns.';
-- It covers no turn, so that it is right in any server in which a dump of a new schema is restored.
insert into headrace.tick (n, seen) values (0, '1:1:');

create table headrace.behind (
    stream text collate "C" primary key,
    seen pg_snapshot not null
);
comment on table headrace.behind is
    'Streams that rounds have passed over, because others had them locked: their turns are numbered only as far as seen.';
comment on column headrace.behind.stream is 'Name of the stream.';
comment on column headrace.behind.seen is 'Takes the place of headrace.tick.seen for this stream.';

create table headrace.round (
    single boolean primary key default true check (single)
);
comment on table headrace.round is 'One row: the session that has its lock does a round.';
comment on column headrace.round.single is 'Always true: there is one row.';
insert into headrace.round default values;

revoke all on headrace.payload, headrace.turn, headrace.tick, headrace.behind, headrace.round from public;

-- Removes at most `batch` of the events up to the given id of each stream, lowest ids first, with their payloads; else as
-- in 0019.
create or replace function headrace.cut(stream_ids int[], up_to bigint[], batch int) returns bigint
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
set plan_cache_mode to force_generic_plan
set enable_seqscan to off
set enable_hashjoin to off
set enable_mergejoin to off
set jit to off
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
        insert into headrace.trimmed as m (stream_id, trimmed_to)
            select d.stream_id, max(d.id) from deleted d group by d.stream_id
            on conflict (stream_id) do update set trimmed_to = greatest(m.trimmed_to, excluded.trimmed_to)
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

-- A removed stream takes its events, their payloads, its marks and its jumps with it, and leaves the floor for a stream of
-- the same name. Events without an id are not removed: the stream is made again for them.
create or replace function headrace.stream_removed() returns trigger
language plpgsql security definer
set search_path to pg_catalog, pg_temp
as $$
begin
    update headrace.slot_floor f set floor = old.last_id where f.slot = old.slot and f.floor < old.last_id;
    with gone as (
        delete from headrace.event e where e.stream_id = old.stream_id returning e.xid, e.seq
    )
    delete from headrace.payload p using gone g where p.xid = g.xid and p.seq = g.seq;
    delete from headrace.trimmed t where t.stream_id = old.stream_id;
    delete from headrace.removed r where r.stream_id = old.stream_id;
    delete from headrace.jump j where j.stream_id = old.stream_id;
    return null;
end $$;

-- The payloads are not truncated: publishers use the table, and take locks in the other order.
create or replace function headrace.streams_truncated() returns trigger
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
    delete from headrace.payload p using headrace.event e where p.xid = e.xid and p.seq = e.seq;
    truncate headrace.event, headrace.trimmed, headrace.removed, headrace.jump;
    return null;
end $$;
