-- Changes of tables: triggers that publish every changed row as JSON.
--
--     select headrace.publish_changes('shop.orders', 'order:{id}')
--
--     insert into shop.orders …  ──►  event "insert" of stream order:42
--         {"op": "insert", "schema": "shop", "table": "orders", "row": {"id": 42, "state": "new"}}
--
-- A template is text in which {column} stands for that column of the row, {{ and }} for a brace. The streams of a
-- template show the table as they would a view of it: a row that an update moves from one stream to another is a
-- "delete" in the first and an "insert" in the second, and a row with a null in one of the columns is in no stream.
--
-- Rights. Nothing here is SECURITY DEFINER. Turning a row into JSON runs functions that the owners of its types chose
-- (casts to json), so with the rights of this schema's owner any publisher could take these. Instead the trigger is
-- made with the rights of who calls publish_changes (TRIGGER on the table), and publishes with those of who writes the
-- table: both need headrace_publisher, as for publishing by hand.
--
-- What a trigger needs to know is its argument, so that dumps carry it:
--     stream      the template in pieces: text, column, text, column, …, text
--     columns     the columns that the JSON shows; null: all
--     key         the columns of the primary key, for rows that are too large
--     old         whether updates carry the old row, too
--     visible_to  audience label, or null

-- The template in pieces, as above. Raises for braces that do not match.
create function headrace.template_pieces(template text) returns text[]
language plpgsql immutable
set search_path to pg_catalog, pg_temp
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
    'A stream template as text, column, text, column, …, text.';

-- The stream of a row, or null if a column of the template is null. Raises for a column that the row does not have.
create function headrace.stream_of(pieces jsonb, shown jsonb) returns text
language plpgsql immutable
set search_path to pg_catalog, pg_temp
as $$
declare
    name text := pieces ->> 0;
    i int := 1;
begin
    while i < jsonb_array_length(pieces) loop
        if not shown ? (pieces ->> i) then
            raise exception 'a trigger of headrace names its streams by the column %, which is no longer there',
                quote_ident(pieces ->> i)
                using errcode = '42703', hint = 'call headrace.unpublish_changes, then headrace.publish_changes again';
        end if;
        name := name || (shown ->> (pieces ->> i)) || (pieces ->> i + 1);
        i := i + 2;
    end loop;
    return name;
end $$;
comment on function headrace.stream_of(jsonb, jsonb) is 'The stream of a row, from the pieces of a template.';

-- The named columns of a row; all of them if none are named.
create function headrace.shown_columns(whole jsonb, columns jsonb) returns jsonb
language sql immutable
set search_path to pg_catalog, pg_temp
as $$
    select case
        when jsonb_typeof(columns) = 'array'
            then (select coalesce(jsonb_object_agg(c.key, c.value), '{}') from jsonb_each(whole) c where columns ? c.key)
        else whole
    end
$$;
comment on function headrace.shown_columns(jsonb, jsonb) is 'The columns of a row that its events show.';

create function headrace.publish_change() returns trigger
language plpgsql volatile
set search_path to pg_catalog, pg_temp
as $$
declare
    options constant jsonb := tg_argv[0];
    most constant bigint :=
        coalesce(nullif(current_setting('headrace.max_payload_bytes', true), ''), '1048576')::bigint;
    event jsonb := jsonb_build_object('schema', tg_table_schema, 'table', tg_table_name);
    root regclass;
    before_row jsonb;
    after_row jsonb;
    before_stream text;
    after_stream text;
    change record;
begin
    if tg_op = 'TRUNCATE' then
        perform headrace.publish(
            options #>> '{stream,0}', (event || '{"op": "truncate"}')::text, 'truncate', options ->> 'visible_to'
        );
        return null;
    end if;
    if tg_op = 'UPDATE' then
        if old *= new then
            return null;
        end if;
    end if;
    -- A partition's trigger is a copy of its parent's, and rows are told of under the parent's name.
    root := pg_partition_root(tg_relid);
    if root is not null and root <> tg_relid then
        select event || jsonb_build_object('schema', n.nspname, 'table', c.relname) into event
            from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root;
    end if;
    if tg_op <> 'INSERT' then
        before_row := to_jsonb(old);
        before_stream := headrace.stream_of(options -> 'stream', before_row);
    end if;
    if tg_op <> 'DELETE' then
        after_row := to_jsonb(new);
        after_stream := headrace.stream_of(options -> 'stream', after_row);
    end if;
    for change in
        select * from (values
            ('update', after_stream, after_row, before_row, before_stream = after_stream),
            ('delete', before_stream, before_row, null, before_stream is distinct from after_stream),
            ('insert', after_stream, after_row, null, before_stream is distinct from after_stream)
        ) as v (op, stream, whole, replaced, applies)
        where v.applies and v.stream is not null
    loop
        event := event || jsonb_build_object(
            'op', change.op, 'row', headrace.shown_columns(change.whole, options -> 'columns'));
        if change.replaced is not null and (options ->> 'old')::boolean then
            event := event || jsonb_build_object(
                'old', headrace.shown_columns(change.replaced, options -> 'columns'));
        end if;
        if octet_length(event::text) > most then
            -- A write must not fail because nobody can be told all of it.
            event := event - 'old' || jsonb_build_object('too_large', true, 'row',
                headrace.shown_columns(change.whole, coalesce(options -> 'key', '[]')));
        end if;
        perform headrace.publish(change.stream, event::text, change.op, options ->> 'visible_to');
        event := event - '{row,old,too_large}'::text[];
    end loop;
    return null;
end $$;
comment on function headrace.publish_change() is 'Trigger that headrace.publish_changes makes; never make one by hand.';

-- Publish every change of a table's rows, from now on. Calling it again with the same template replaces the options;
-- with another one, it adds events to other streams.
create function headrace.publish_changes(
    of_table regclass,
    stream text,
    columns text[] default null,
    old boolean default false,
    visible_to text default null
) returns void
language plpgsql volatile
set search_path to pg_catalog, pg_temp
as $$
declare
    pieces constant text[] := headrace.template_pieces(stream);
    names constant text[] := (
        select array_agg(a.attname::text order by a.attnum) from pg_attribute a
            where a.attrelid = of_table and a.attnum > 0 and not a.attisdropped);
    key constant text[] := (
        select array_agg(a.attname::text order by a.attnum) from pg_index i
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
            where i.indrelid = of_table and i.indisprimary);
    asked text;
    options text;
    trigger_name text;
begin
    if of_table is null then
        raise exception 'the table is null; name a table' using errcode = '22023';
    end if;
    if octet_length(visible_to) not between 1 and 512 then
        raise exception 'an audience label must have 1 to 512 bytes' using errcode = '22023';
    end if;
    foreach asked in array columns || array(
        select p.piece from unnest(pieces) with ordinality as p (piece, place) where p.place % 2 = 0
    ) loop
        if asked is null or not asked = any (names) then
            raise exception 'the table % has no column %', of_table, coalesce(quote_ident(asked), 'null')
                using errcode = '42703', hint = 'in a stream template write {{ and }} for braces';
        end if;
    end loop;
    options := jsonb_build_object(
        'stream', pieces, 'columns', columns, 'key', key, 'old', coalesce(old, false), 'visible_to', visible_to);
    trigger_name := 'headrace_changes_' || md5(stream);
    execute format(
        'create or replace trigger %I after insert or update or delete on %s'
            ' for each row execute function headrace.publish_change(%L)',
        trigger_name, of_table, options);
    if cardinality(pieces) = 1 then
        execute format(
            'create or replace trigger %I after truncate on %s'
                ' for each statement execute function headrace.publish_change(%L)',
            trigger_name || '_truncate', of_table, options);
    end if;
end $$;
comment on function headrace.publish_changes(regclass, text, text[], boolean, text) is
    'Publishes every changed row of a table to the stream that the template gives it, with the writing transaction.';

-- Stop publishing a table's changes: to the streams of one template, or with a null to any.
create function headrace.unpublish_changes(of_table regclass, stream text default null) returns void
language plpgsql volatile
set search_path to pg_catalog, pg_temp
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
comment on function headrace.unpublish_changes(regclass, text) is
    'Removes what headrace.publish_changes made, for one template or for all.';

revoke all on all functions in schema headrace from public;
grant execute on function
    headrace.template_pieces(text),
    headrace.stream_of(jsonb, jsonb),
    headrace.shown_columns(jsonb, jsonb),
    headrace.publish_change(),
    headrace.publish_changes(regclass, text, text[], boolean, text),
    headrace.unpublish_changes(regclass, text)
    to headrace_publisher;
