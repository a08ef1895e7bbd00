-- The tables of an application that publishes: what its transactions have done, for the judge.

create schema torture;

-- The rows that transactions contend for. A chain belongs to one stream; `version` counts its updates.
create table torture.chain (
    name text collate "C" primary key,
    stream text collate "C" not null,
    version bigint not null
) with (fillfactor = 50);

-- One row for each time that a transaction got a chain, in order. A chain without a row in torture.chain is an advisory
-- lock, whose versions come from a sequence: transactions wait for it under any snapshot, and versions may be missing.
create table torture.link (
    chain text collate "C" not null,
    version bigint not null,
    transaction bigint not null,
    step integer not null,      -- the place among the steps of the transaction
    primary key (chain, version)
);
create sequence torture.lock_version;

-- One row for each published event, written by the publishing transaction.
create table torture.publication (
    token bigint primary key,   -- the first word of the event's data
    stream text collate "C" not null,
    transaction bigint not null,
    chain text collate "C",     -- the event tells of this version of this chain
    version bigint,
    id bigint                   -- as publish_now and publish_many_now have returned it
);
create index on torture.publication (stream, token);

-- The next version of a chain; the caller has the chain until its transaction ends.
create function torture.move(stream text, chain text, transaction bigint, step integer) returns bigint
language plpgsql as $$
declare
    reached bigint;
begin
    update torture.chain c set version = c.version + 1 where c.name = move.chain returning c.version into reached;
    if not found then
        insert into torture.chain (name, stream, version) values (move.chain, move.stream, 1);
        reached := 1;
    end if;
    insert into torture.link (chain, version, transaction, step) values (move.chain, reached, move.transaction, move.step);
    return reached;
end $$;

-- The same for a chain that is an advisory lock.
create function torture.queue(chain text, transaction bigint, step integer) returns bigint
language plpgsql as $$
declare
    reached bigint;
begin
    perform pg_advisory_xact_lock(77, hashtext(queue.chain));
    reached := nextval('torture.lock_version');
    insert into torture.link (chain, version, transaction, step) values (queue.chain, reached, queue.transaction, queue.step);
    return reached;
end $$;

-- Work that the application leaves to the end of the transaction, by a deferred constraint trigger of its own: it moves
-- a chain, and publishes if there is a token.
create table torture.work (
    transaction bigint not null,
    step integer not null,
    stream text collate "C" not null,
    chain text collate "C" not null,
    token bigint,
    data text
);
create function torture.work_at_commit() returns trigger
language plpgsql as $$
declare
    reached bigint := torture.move(new.stream, new.chain, new.transaction, new.step);
begin
    if new.token is not null then
        perform headrace.publish(new.stream, new.data);
        insert into torture.publication (token, stream, transaction, chain, version)
            values (new.token, new.stream, new.transaction, new.chain, reached);
    end if;
    return null;
end $$;
create constraint trigger work_at_commit after insert on torture.work
    deferrable initially deferred
    for each row execute function torture.work_at_commit();
