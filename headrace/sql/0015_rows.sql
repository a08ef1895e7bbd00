-- The rows of headrace.publish_changes: the JSON and the stream of a changed row, whatever it holds and whatever became
-- of its table's columns. For the trigger headrace.publish_change, with the rights of the role that writes the table.
--
-- A trigger's options name columns as they were called when it was made, and headrace.columns_now tells what they are
-- called now. A row is the parameter $1 of a statement that names the wanted columns alone, so that no value of another
-- column is converted.

-- The stream of a row. Null if a column of the template is null or missing, and if no stream can have the name, or a row
-- must not choose it: headrace's own streams, and those of joins and leaves unless the template itself spells that out.
create or replace function headrace.stream_of(pieces jsonb, shown jsonb) returns text
language plpgsql immutable
set search_path to pg_catalog, pg_temp
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
comment on function headrace.stream_of(jsonb, jsonb) is
    'The stream of a row, from the pieces of a template; null if it is in none.';

-- For the columns that a trigger was made to name: the name that each has now, and an SQL expression of the row $1 for
-- it, in the same order; both null for a column that is gone. Of all columns if no names are given.
create function headrace.columns_now(
    relation oid, options jsonb, names text[], out present text[], out expressions text[]
)
language plpgsql stable
set search_path to pg_catalog, pg_temp
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
comment on function headrace.columns_now(oid, jsonb, text[]) is
    'The present names of columns that a trigger names, and the SQL that takes them from the row $1.';

-- Some columns of a row, or all, as JSON text. Raises what the conversion of a value raises.
create function headrace.row_json(whole record, relation oid, options jsonb, names text[]) returns text
language plpgsql volatile
set search_path to pg_catalog, pg_temp
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
comment on function headrace.row_json(record, oid, jsonb, text[]) is
    'The columns of a row that are named, null: all, as JSON; one that is gone is left out.';

-- The stream of a row. Warns where it cannot be named; a null in the row needs no warning.
create function headrace.row_stream(whole record, relation oid, options jsonb) returns text
language plpgsql volatile
set search_path to pg_catalog, pg_temp
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
comment on function headrace.row_stream(record, oid, jsonb) is
    'The stream of a row, whatever became of its columns; null if it is in none.';

-- The columns of a row that its events show; null with a reason, as it stands in the event, if they cannot be shown.
create function headrace.row_told(whole record, relation oid, options jsonb, out shown text, out reason text)
language plpgsql volatile
set search_path to pg_catalog, pg_temp
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
comment on function headrace.row_told(record, oid, jsonb) is
    'The columns of a row that its events show, as JSON, or why they cannot be shown.';

-- No JSON has a sixteenth of the bytes that it is made from, so nothing is gained by converting such a row.
create function headrace.is_huge(row_bytes bigint) returns boolean
language plpgsql stable
set search_path to pg_catalog, pg_temp
as $$
begin
    return row_bytes > 16000 and row_bytes / 16 > headrace.max_payload_bytes();
end $$;
comment on function headrace.is_huge(bigint) is 'Whether an event with all of a row of this size is above the limit.';

-- The event of a row that cannot be told of in full, from its beginning: with the primary key, as it is now, if there is
-- one that can be told. Without it, it has 900 bytes at most, which is never too large.
create function headrace.row_key(whole record, relation oid, beginning text) returns text
language plpgsql volatile
set search_path to pg_catalog, pg_temp
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
comment on function headrace.row_key(record, oid, text) is
    'The event of a row that is too large, or cannot be converted: with its primary key, if it has one that fits.';

-- The table of a change as it stands in events. A partition's trigger is a copy of its parent's, and its rows are told
-- of under the parent's name.
create function headrace.table_told(relation oid, schema_name name, table_name name) returns text
language plpgsql stable
set search_path to pg_catalog, pg_temp
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
comment on function headrace.table_told(oid, name, name) is 'The table of a change, as it stands in the JSON of its event.';

revoke all on function
    headrace.columns_now(oid, jsonb, text[]),
    headrace.row_json(record, oid, jsonb, text[]),
    headrace.row_stream(record, oid, jsonb),
    headrace.row_told(record, oid, jsonb),
    headrace.is_huge(bigint),
    headrace.row_key(record, oid, text),
    headrace.table_told(oid, name, name)
    from public;
grant execute on function
    headrace.columns_now(oid, jsonb, text[]),
    headrace.row_json(record, oid, jsonb, text[]),
    headrace.row_stream(record, oid, jsonb),
    headrace.row_told(record, oid, jsonb),
    headrace.is_huge(bigint),
    headrace.row_key(record, oid, text),
    headrace.table_told(oid, name, name)
    to headrace_publisher;
