"""Rows that are hard to tell of, and tables that change after `publish_changes`: no write fails for its event."""

import json
from typing import Any

import psycopg
import pytest
from psycopg import sql

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema import migrations
from tests.fixtures.postgres import Connection
from tests.fixtures.read_after import value
from tests.integration.test_changes import changes
from tests.integration.test_publish import events


def rows(url: str) -> list[tuple[str, str, Any]]:
    """(stream, operation, row) of each event so far, streams in the order of their names."""
    return [(stream, type_, payload.get("row")) for stream, type_, payload in changes(url)]


def warnings(connection: Connection) -> list[tuple[str, str]]:
    """A list to which each warning of the server is added from now on, with its hint."""
    heard: list[tuple[str, str]] = []

    def listen(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            heard.append((diagnostic.message_primary or "", diagnostic.message_hint or ""))

    connection.add_notice_handler(listen)
    return heard


def test_a_large_row_without_a_key_and_with_one_that_came_later(connection: Connection, database_url: str) -> None:
    """What cannot be told is left out: the event of a row without a key has an empty row; a later key is told."""
    c = connection
    c.execute("create table page (id int not null, kind int, body text)")
    c.execute("select headrace.publish_changes('page', 'pages')")
    c.execute("insert into page values (1, 2, repeat('x', 1 << 20))")
    c.execute("alter table page add primary key (id) include (kind)")
    c.execute("update page set id = 2")
    c.execute("alter table page rename id to number")
    c.execute("update page set number = 3")
    assert [(payload["row"], payload["too_large"]) for _, _, payload in changes(database_url)] == [
        ({}, True),
        ({"id": 2}, True),
        ({"number": 3}, True),
    ]


def test_a_key_that_is_above_the_limit(connection: Connection, database_url: str) -> None:
    """A key that is itself too large is left out, too, with names of any length in the event."""
    name = sql.Identifier("\x01" * 63)
    connection.execute(sql.SQL("create table {0} (id text primary key)").format(name))
    connection.execute("select headrace.publish_changes(%s, 'pages')", [name.as_string(connection)])
    connection.execute("select headrace.set_max_payload_bytes(1000)")
    connection.execute(sql.SQL("insert into {0} values (repeat('x', 900))").format(name))
    ((_, _, payload),) = changes(database_url)
    assert (payload["table"], payload["row"], payload["too_large"]) == ("\x01" * 63, {}, True)


def test_json_that_jsonb_cannot_hold(connection: Connection, database_url: str) -> None:
    """A json column is told as it is, and where it is not told it does no harm; as a stream's name it is none."""
    c = connection
    heard = warnings(c)
    c.execute("create table doc (id int, value json)")
    c.execute("select headrace.publish_changes('doc', 'all', old => true)")
    c.execute("select headrace.publish_changes('doc', 'doc:{id}', columns => '{id}')")
    c.execute("insert into doc values (1, '\"\\u0000\"'), (2, '1e200000')")
    assert heard == []
    c.execute("update doc set value = '3' where id = 1")
    c.execute("select headrace.publish_changes('doc', 'value:{value}')")
    c.execute("insert into doc values (4, '\"\\u0000\"')")
    assert "its stream cannot be named" in heard[0][0]
    told = {
        stream: [data for name, _, data, _, _ in events(database_url) if name == stream] for stream in ("all", "doc:1")
    }
    assert json.loads(told["all"][0])["row"] == {"id": 1, "value": "\0"}
    assert "1e200000" in told["all"][1]
    assert json.loads(told["all"][2])["old"] == {"id": 1, "value": "\0"}
    assert [json.loads(data)["row"] for data in told["doc:1"]] == [{"id": 1}, {"id": 1}]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("bytea", "convert_to(repeat('x', 140000000), 'UTF8')"),
        pytest.param("text", "repeat('x', 268500000)", marks=pytest.mark.slow),
    ],
)
def test_hundreds_of_megabytes(connection: Connection, database_url: str, type_: str, value: str) -> None:
    """What no jsonb can hold is told of by its key, and where it is not told of, costs nothing."""
    c = connection
    c.execute(f"create table film (id int primary key, data {type_})".encode())
    c.execute("alter table film alter data set storage external")
    c.execute("select headrace.publish_changes('film', 'films')")
    c.execute("select headrace.publish_changes('film', 'film:{id}', columns => '{id}')")
    c.execute(f"insert into film values (1, {value})".encode())
    (told, small) = (payload for _, _, payload in reversed(changes(database_url)))
    assert (told["row"], told["too_large"]) == ({"id": 1}, True)
    assert (small["row"], "too_large" in small) == ({"id": 1}, False)


def test_a_value_whose_conversion_fails(connection: Connection, database_url: str) -> None:
    """A cast to json that raises costs its row the other columns, which the event and a warning say."""
    c = connection
    heard = warnings(c)
    c.execute("create type mood as enum ('bad')")
    c.execute(
        "create function feel(mood) returns json language plpgsql as"
        " $$ begin raise exception 'no words' using errcode = 'P0001'; end $$"
    )
    c.execute("create cast (mood as json) with function feel(mood)")
    c.execute("create table person (id int primary key, name text, mood mood)")
    c.execute("select headrace.publish_changes('person', 'all', old => true)")
    c.execute("select headrace.publish_changes('person', 'person:{id}', columns => '{name}')")
    c.execute("insert into person values (1, 'ada', 'bad')")
    assert heard == [("a changed row of the table public.person is told of by its key: no words", "")]
    assert changes(database_url) == [
        ("all", "insert", {"op": "insert", "schema": "public", "table": "person", "failed": "P0001", "row": {"id": 1}}),
        ("person:1", "insert", {"op": "insert", "schema": "public", "table": "person", "row": {"name": "ada"}}),
    ]


def test_virtual_generated_columns(connection: Connection, database_url: str) -> None:
    """They are computed for the event, also one that is added later, and name streams."""
    if connection.info.server_version < 180000:
        pytest.skip("PostgreSQL before 18 has no virtual generated columns")
    c = connection
    c.execute('create table "it\'s" (a int, "B b" int generated always as (a * 2) virtual, d date)')
    c.execute("select headrace.publish_changes('\"it''s\"', 'b:{B b}', old => true)")
    c.execute("select headrace.publish_changes('\"it''s\"', 'some', columns => '{B b}')")
    c.execute('insert into "it\'s" values (1), (null)')
    c.execute('update "it\'s" set a = 2 where a = 1')
    c.execute("alter table \"it's\" add c text generated always as (coalesce('\\' || a, 'none') || tableoid) virtual")
    c.execute("update \"it's\" set d = '2026-01-02' where a = 2")
    row = c.execute('select c from "it\'s" where a = 2').fetchone()
    assert row is not None
    assert [(stream, payload["row"], payload.get("old")) for stream, _, payload in changes(database_url)] == [
        ("b:2", {"a": 1, "B b": 2, "d": None}, None),
        ("b:2", {"a": 1, "B b": 2, "d": None}, None),
        ("b:4", {"a": 2, "B b": 4, "d": None}, None),
        (
            "b:4",
            {"a": 2, "B b": 4, "d": "2026-01-02", "c": row[0]},
            {"a": 2, "B b": 4, "d": None, "c": row[0]},
        ),
        ("some", {"B b": 2}, None),
        ("some", {"B b": None}, None),
        ("some", {"B b": 4}, None),
        ("some", {"B b": 4}, None),
    ]


@pytest.mark.parametrize("name", ["", "é" * 257, "headrace:ops", "presence:room:1"])
def test_names_that_no_row_may_give_a_stream(connection: Connection, database_url: str, name: str) -> None:
    """Such a row is in no stream, as one with a null: nobody could read it, or it would speak in headrace's name."""
    c = connection
    c.execute("create table room (name text)")
    c.execute("select headrace.publish_changes('room', '{name}')")
    c.execute("select headrace.publish_changes('room', 'presence:{name}')")
    c.execute("insert into room values ('hall')")
    c.execute("update room set name = %s", [name])
    c.execute("update room set name = 'hall'")
    c.execute("delete from room")
    hall = [(stream, type_) for stream, type_, _ in changes(database_url) if stream == "hall"]
    assert hall == [("hall", type_) for type_ in ("insert", "delete", "insert", "delete")]
    assert {stream for stream, _, _ in changes(database_url)} - {"hall", "presence:hall"} <= {"presence:" + name}


def test_columns_that_are_renamed_dropped_and_retyped(connection: Connection, database_url: str) -> None:
    """Names are followed. Without the column that names its stream a change is published nowhere, with a warning."""
    c = connection
    heard = warnings(c)
    c.execute("create table orders (gone int, id int, note text, state text, at text)")
    c.execute("alter table orders drop column gone")
    c.execute("select headrace.publish_changes('orders', 'order:{id}', columns => '{note,state}')")
    c.execute("select headrace.publish_changes('orders', 'all:{id}')")
    c.execute("alter table orders rename to sales")
    c.execute("alter table sales rename column id to number")
    c.execute("alter table sales rename column state to phase")
    c.execute("insert into sales values (1, 'n', 's', '2026-01-02')")
    c.execute("alter table sales drop column note")
    c.execute("alter table sales alter number type text, alter at type date using at::date")
    c.execute("update sales set number = 'one'")
    assert heard == []
    c.execute("alter table sales drop column number")
    c.execute("update sales set phase = 't'")
    assert {hint for _, hint in heard} == {
        "call headrace.unpublish_changes for the table, then headrace.publish_changes again"
    }
    assert "the table public.sales is published nowhere: its stream is named by id" in heard[0][0]
    heard.clear()
    c.execute("alter table sales add column id int default 7")
    c.execute("update sales set phase = 'u'")
    assert heard == []
    assert rows(database_url) == [
        ("all:1", "insert", {"number": 1, "note": "n", "phase": "s", "at": "2026-01-02"}),
        ("all:1", "delete", {"number": "1", "phase": "s", "at": "2026-01-02"}),
        ("all:7", "update", {"phase": "u", "at": "2026-01-02", "id": 7}),
        ("all:one", "insert", {"number": "one", "phase": "s", "at": "2026-01-02"}),
        ("order:1", "insert", {"note": "n", "phase": "s"}),
        ("order:1", "delete", {"phase": "s"}),
        ("order:7", "update", {"phase": "u"}),
        ("order:one", "insert", {"phase": "s"}),
    ]


def test_a_dump_that_was_restored_takes_no_other_column_for_one_that_was_renamed(
    connection: Connection, database_url: str
) -> None:
    """The numbers of columns count in the table for which they were noted alone."""
    c = connection
    heard = warnings(c)
    c.execute("create table orders (gone int, id int, secret text)")
    c.execute("select headrace.publish_changes('orders', 'order:{id}')")
    (made,) = c.execute("select pg_get_triggerdef(oid) from pg_trigger where tgname like 'headrace_%'").fetchone() or (
        "",
    )
    c.execute("drop table orders")
    c.execute("create table orders (number int, secret text)")
    c.execute(made.encode())
    c.execute("insert into orders values (1, 'secret')")
    assert (rows(database_url), len(heard)) == ([], 1)


def test_partitions_that_are_attached_and_detached(connection: Connection, database_url: str) -> None:
    """A partition's columns may stand in another order, and are renamed with its parent's; detached, it is silent."""
    c = connection
    c.execute("create table reading (at int, place text, value int, primary key (at)) partition by range (at)")
    c.execute("select headrace.publish_changes('reading', 'place:{place}', columns => '{at,value}')")
    c.execute("create table other (gone int, value int, place text, at int not null)")
    c.execute("alter table other drop column gone")
    c.execute("alter table reading attach partition other for values from (0) to (10)")
    c.execute("alter table reading rename column place to site")
    c.execute("alter table reading rename column value to amount")
    c.execute("insert into reading values (1, 'a', 2)")
    c.execute("insert into reading values (2, 'a', 2) on conflict do nothing")
    c.execute("select headrace.set_max_payload_bytes(1000)")
    c.execute("update reading set site = repeat('a', 2000) where at = 2")
    c.execute("alter table reading detach partition other")
    c.execute("insert into other (at, site) values (3, 'a')")
    assert changes(database_url)[0][2] | {"op": None} == {
        "op": None,
        "schema": "public",
        "table": "reading",
        "row": {"at": 1, "amount": 2},
    }
    assert [type_ for _, type_, _ in changes(database_url)] == ["insert", "insert", "delete"]


def test_children_of_a_table_are_named_when_it_is_published(connection: Connection, database_url: str) -> None:
    """Triggers are not inherited: the call says which tables' rows are not told of."""
    c = connection
    heard = warnings(c)
    c.execute("create table animal (name text)")
    c.execute("create table dog () inherits (animal)")
    c.execute("select headrace.publish_changes('dog', 'animals')")
    assert heard == []
    c.execute("select headrace.publish_changes('animal', 'animals')")
    ((message, hint),) = heard
    assert message == "changes of rows in the children of the table public.animal are not published: public.dog"
    assert "for each child" in hint
    c.execute("insert into dog values ('rex')")
    c.execute("insert into animal values ('tom')")
    assert [payload["table"] for _, _, payload in changes(database_url)] == ["dog", "animal"]


def test_a_session_of_logical_replication(superuser: Connection, database_url: str) -> None:
    """Its changes are not published, unless the trigger is enabled for them, which a further call leaves so."""
    c = superuser
    c.autocommit = True
    c.execute("create table orders (id int)")
    c.execute("select headrace.publish_changes('orders', 'orders')")
    c.execute("set session_replication_role = replica")
    c.execute("insert into orders values (1)")
    (name,) = c.execute(
        "select tgname from pg_trigger where tgname like 'headrace_%' and tgname not like '%truncate'"
    ).fetchone() or ("",)
    c.execute(sql.SQL("alter table orders enable always trigger {}").format(sql.Identifier(name)))
    c.execute("insert into orders values (2)")
    c.execute("select headrace.publish_changes('orders', 'orders', old => true)")
    c.execute("insert into orders values (3)")
    assert [row for _, _, row in rows(database_url)] == [{"id": 2}, {"id": 3}]


SETTINGS = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-5",
    "bytea_output": "escape",
    "quote_all_identifiers": "on",
    "search_path": "other",
}


def test_settings_of_a_session_change_neither_a_row_nor_its_stream(
    connection: Connection, database_url: str, postgres: EmbeddedPostgres
) -> None:
    """Whoever writes a row: the same text, in the same stream."""
    c = connection
    c.execute("create schema other")
    c.execute(
        "create table public.thing (at timestamptz, span tstzrange, days daterange, took interval, f float8, g real,"
        " raw bytea, kind regclass, moment timestamp)"
    )
    names = [column.name for column in c.execute("select * from public.thing").description or ()]
    template = "/".join(f"{{{name}}}" for name in names)
    c.execute("select headrace.publish_changes('public.thing', %s)", [template])
    c.execute("select headrace.publish_changes('public.thing', %s, columns => %s)", [template + "/some", names])
    insert = (
        "insert into public.thing select v, tstzrange(v, null), daterange('2026-02-03', '2026-02-04'), '1 day 2:03',"
        " 0.1::float8 + 0.2, 1.1, '\\x00ff', 'public.thing', '2026-02-03 04:05:06'"
        " from (select timestamptz '2026-02-03 04:05:06+00' as v) v"
    )
    c.execute(insert.encode())
    for name, setting in SETTINGS.items():
        c.execute("select set_config(%s, %s, false)", [name, setting])
    c.execute(insert.replace("'2026-02-03', '2026-02-04'", "'2026-02-03'::date, '2026-02-04'::date").encode())
    for name in SETTINGS:
        c.execute(sql.SQL("reset {}").format(sql.Identifier(name)))
    told = events(database_url)
    assert len(told) == 4
    assert len({data for _, _, data, _, _ in told}) == 1
    assert len({stream for stream, _, _, _, _ in told}) == 2
    assert json.loads(told[0][2])["row"]["at"] == "2026-02-03T04:05:06+00:00"


def test_triggers_of_earlier_releases_get_the_better_function(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What version 0.2 made goes on, and no longer fails a write."""
    known = migrations.migrations()
    with monkeypatch.context() as before, psycopg.connect(empty_database_url, autocommit=True) as c:
        before.setattr(migrations, "migrations", lambda: known[:12])
        migrations.migrate(empty_database_url)
        c.execute("create table page (id int, body text)")
        c.execute("select headrace.publish_changes('page', 'pages', old => true)")
        c.execute("select headrace.publish_changes('page', 'page:{id}', columns => '{body}')")
        c.execute("insert into page values (1, 'before')")
    migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as c:
        heard = warnings(c)
        c.execute("update page set body = 'after'")
        c.execute("insert into page values (2, repeat('x', 1 << 20))")
        assert heard == []
        c.execute("alter table page rename column id to number")
        c.execute("update page set body = 'renamed' where number = 1")
        assert "its stream is named by id, which is no longer there" in heard[0][0]
    assert rows(empty_database_url) == [
        ("page:1", "insert", {"body": "before"}),
        ("page:1", "update", {"body": "after"}),
        ("page:2", "insert", {}),
        ("pages", "insert", {"id": 1, "body": "before"}),
        ("pages", "update", {"id": 1, "body": "after"}),
        ("pages", "insert", {}),
        ("pages", "update", {"number": 1, "body": "renamed"}),
    ]


@pytest.mark.parametrize("template", ["all", "doc:{kind}"])
def test_what_is_prepared_for_a_trigger_changes_no_event(
    connection: Connection, database_url: str, template: str
) -> None:
    """A trigger whose only argument are its options, as version 0.2 made it, publishes the same events."""
    c = connection
    c.execute("create schema away")
    for prepared in (True, False):
        c.execute("create table doc (id int primary key, kind text, at timestamptz, note text)")
        c.execute("select headrace.publish_changes('doc', %s, visible_to => 'staff')", [template])
        name, arguments, options = value(
            c,
            "select array[tgname::text, tgnargs::text, split_part(encode(tgargs, 'escape'), chr(92) || '000', 1)]"
            " from pg_trigger where tgrelid = 'doc'::regclass and tgtype & 1 = 1",
        )
        assert int(arguments) > 5
        if not prepared:
            c.execute(
                sql.SQL(
                    "create or replace trigger {} after insert or update or delete on doc for each row"
                    " execute function headrace.publish_change({})"
                ).format(sql.Identifier(name), options)
            )
        c.execute("insert into doc values (1, 'a', '2026-02-03 04:05:06+07', 'x'), (2, null, null, null)")
        c.execute("update doc set note = '\"op\": null' where id = 1")
        c.execute("update doc set note = note")
        c.execute("update doc set kind = 'b', note = repeat('y', 2000) where id = 1")
        c.execute("update doc set kind = repeat('z', 600) where id = 2")
        c.execute("alter table doc rename note to remark")
        c.execute("alter table doc add more jsonb default '{\"k\": [1, 2.50]}'")
        c.execute("update doc set remark = 'r' where id = 1")
        c.execute("alter table doc set schema away")
        c.execute("update away.doc set remark = 's' where id = 1")
        c.execute("alter table away.doc rename to paper")
        c.execute("update away.paper set remark = 't' where id = 1")
        c.execute("alter table away.paper rename kind to sort")
        c.execute("update away.paper set remark = 'u' where id = 1")
        c.execute("delete from away.paper")
        c.execute("drop table away.paper")
    found = [(stream, data, type_, visible_to) for stream, _, data, type_, visible_to in events(database_url)]
    for stream in {event[0] for event in found}:
        told = [event for event in found if event[0] == stream]
        assert told[: len(told) // 2] == told[len(told) // 2 :]
    assert len(found) == 2 * (11 if template == "all" else 9)
