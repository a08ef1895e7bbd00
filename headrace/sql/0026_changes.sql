-- Changes of tables cost their writers less: headrace.publish_changes prepares what most changes need, as arguments of the
-- trigger behind the options, and publish_change tells these changes in few expressions.
--
-- A trigger's arguments:
--     0  the options (headrace/sql/0016_changes.sql)
--     1  the table's schema
--     2  the table's name
--     3  what stands in the event between the operation and the row
--     4  the audience label, or ''
--     5  the stream, or what stands in the template before its one column
--     6  that column
--     7  what stands behind it
-- The arguments from 1 on are there if the row is told of in whole, and without the old one, and those from 6 on if the
-- template has a column. Triggers that were made before have the options alone, and work as before.

create or replace function headrace.publish_change() returns trigger
language plpgsql volatile
set search_path to pg_catalog, pg_temp
set timezone to 'UTC'
set datestyle to 'ISO, MDY'
set intervalstyle to 'postgres'
set extra_float_digits to 1
set bytea_output to 'hex'
set quote_all_identifiers to off
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

-- The arguments of a trigger for each row: the options, and what most changes need if it can be prepared. A template whose
-- beginning could let a row choose one of headrace's own streams is left to headrace.stream_of.
create function headrace.row_arguments(of_table regclass, options jsonb) returns text[]
language plpgsql stable
set search_path to pg_catalog, pg_temp
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
comment on function headrace.row_arguments(regclass, jsonb) is
'The arguments of a trigger that headrace.publish_changes makes for each row of a table: the options, and if most changes
of the table can do with less than these say, what the trigger needs for it.';
revoke all on function headrace.row_arguments(regclass, jsonb) from public;
grant execute on function headrace.row_arguments(regclass, jsonb) to headrace_publisher;

drop function headrace.make_trigger(regclass, text, text, text, text);

-- Makes or replaces a trigger; one that also fires in sessions of logical replication goes on doing so.
create function headrace.make_trigger(of_table regclass, name text, events text, level text, arguments text[])
returns void
language plpgsql volatile
set search_path to pg_catalog, pg_temp
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
comment on function headrace.make_trigger(regclass, text, text, text, text[]) is
'Makes a trigger for headrace.publish_changes, or replaces it; one that also fires in sessions of logical replication
goes on doing so.';
revoke all on function headrace.make_trigger(regclass, text, text, text, text[]) from public;
grant execute on function headrace.make_trigger(regclass, text, text, text, text[]) to headrace_publisher;

-- Publishes every change of a table's rows, from now on. A second call with the same template replaces the options; with
-- another template, it adds events to other streams.
create or replace function headrace.publish_changes(
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
