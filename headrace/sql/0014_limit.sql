-- The limit of an event's size, in a table that only the owner writes.
--
-- It is no setting of the session, which every publisher could change: an event costs each shard with a client of its
-- stream several times its size.

create table headrace.limits (
    single boolean primary key default true check (single),
    max_payload_bytes bigint not null check (max_payload_bytes between 1000 and 67108864)
);
comment on table headrace.limits is 'What publishers may not exceed; one row, written by headrace.set_max_payload_bytes.';
comment on column headrace.limits.single is 'Always true: there is one row.';
comment on column headrace.limits.max_payload_bytes is 'How many bytes of UTF-8 the data of an event may have.';

-- For headrace.fault and headrace.publish_change. Data of up to 1,000 bytes is never too large: ask only about more.
create function headrace.max_payload_bytes() returns bigint
language sql stable parallel safe security definer
set search_path to pg_catalog, pg_temp
as $$
    select coalesce((select l.max_payload_bytes from headrace.limits l), 1048576)
$$;
comment on function headrace.max_payload_bytes() is
    'How many bytes of UTF-8 the data of an event may have; never less than 1,000. Set by headrace.set_max_payload_bytes.';

-- In force for every statement that begins after the commit.
create function headrace.set_max_payload_bytes(bytes bigint) returns void
language plpgsql volatile security definer
set search_path to pg_catalog, pg_temp
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
    'Sets how many bytes of UTF-8 the data of an event may have, 1,000 to 67,108,864; for the owner of the schema.';

-- What is wrong with an event, as a sentence, or null. Not SECURITY DEFINER and without settings of its own, so that
-- PostgreSQL can inline it; its callers have fixed the search path.
create or replace function headrace.fault(stream text, data text, type text, visible_to text) returns text
language sql stable
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

-- The limit begins with the value of the setting headrace.max_payload_bytes in this session, if it has one that is a
-- size. The setting itself has no effect.
insert into headrace.limits (max_payload_bytes)
    select least(greatest(
            case when s.value ~* '^ *[0-9]{1,9} *(bytes|b|kb|mb|gb)? *$' then pg_size_bytes(s.value) else 1048576 end,
            1000), 67108864)
        from (select current_setting('headrace.max_payload_bytes', true) as value) s;

revoke all on headrace.limits from public;
revoke all on function headrace.max_payload_bytes(), headrace.set_max_payload_bytes(bigint) from public;
grant execute on function headrace.max_payload_bytes() to headrace_publisher;
