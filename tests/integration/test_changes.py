"""Tables whose changes are published by triggers that one call makes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from headrace.embedded.postgres import EmbeddedPostgres
from tests.fixtures.postgres import execute, superuser_url
from tests.integration.test_publish import events


def changes(url: str) -> list[tuple[str, str, Any]]:
    """(stream, type, payload) of each event so far, streams in the order of their names."""
    return [(stream, type_, json.loads(data)) for stream, _, data, type_, _ in events(url)]


@contextmanager
def connect(url: str, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True, **options) as connection:
        yield connection


def test_every_change_is_published_with_its_transaction(database_url: str) -> None:
    """Rows arrive as JSON, in order, when the transaction commits; updates that change nothing and rollbacks do not."""
    with connect(database_url) as c:
        c.execute("create table orders (id int primary key, state text, total numeric)")
        c.execute("select headrace.publish_changes('orders', 'order:{id}', old => true)")
        c.execute("select headrace.publish_changes('orders', stream => 'orders')")
        with c.transaction():
            c.execute("insert into orders values (1, 'new', 1.50), (2, 'new', null)")
            c.execute("update orders set state = state")
            assert changes(database_url) == []
        with c.transaction(force_rollback=True):
            c.execute("delete from orders")
        c.execute("update orders set state = 'sent' where id = 1")
        c.execute("delete from orders where id = 2")
        c.execute("truncate orders")
    base = {"schema": "public", "table": "orders"}
    one, two = {"id": 1, "state": "new", "total": 1.5}, {"id": 2, "state": "new", "total": None}
    sent = one | {"state": "sent"}
    assert changes(database_url) == [
        ("order:1", "insert", base | {"op": "insert", "row": one}),
        ("order:1", "update", base | {"op": "update", "row": sent, "old": one}),
        ("order:2", "insert", base | {"op": "insert", "row": two}),
        ("order:2", "delete", base | {"op": "delete", "row": two}),
        ("orders", "insert", base | {"op": "insert", "row": one}),
        ("orders", "insert", base | {"op": "insert", "row": two}),
        ("orders", "update", base | {"op": "update", "row": sent}),
        ("orders", "delete", base | {"op": "delete", "row": two}),
        ("orders", "truncate", base | {"op": "truncate"}),
    ]


def test_a_row_moves_between_the_streams_of_a_template(database_url: str) -> None:
    """A stream shows its rows as a view would: one that leaves is deleted there, and a null is in no stream."""
    with connect(database_url) as c:
        c.execute("create table job (id int, worker text)")
        c.execute("select headrace.publish_changes('job', 'worker:{worker}/{{jobs}}', columns => '{id}')")
        c.execute("insert into job values (1, null)")
        for worker in ("ada", "bob", None):
            c.execute("update job set worker = %s", [worker])
    assert [(stream, type_, payload["row"]) for stream, type_, payload in changes(database_url)] == [
        ("worker:ada/{jobs}", "insert", {"id": 1}),
        ("worker:ada/{jobs}", "delete", {"id": 1}),
        ("worker:bob/{jobs}", "insert", {"id": 1}),
        ("worker:bob/{jobs}", "delete", {"id": 1}),
    ]


NAMES = ["plain", "r", 'Quo"ted', "it's", "a b;--", "{brace}", "}", "éé", "%s%I", "new"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_table_and_a_column(database_url: str, name: str) -> None:
    """Schemas, tables and columns may be called anything; braces are doubled in a template."""
    identifier = sql.Identifier(name)
    template = "t:{" + name.replace("{", "{{").replace("}", "}}") + "}"
    with connect(database_url) as c:
        c.execute(sql.SQL("create schema {0}").format(identifier) if name != "public" else b"select")
        c.execute(sql.SQL("create table {0}.{0} ({0} text, other int)").format(identifier))
        table = sql.SQL("{0}.{0}").format(identifier).as_string(c)
        for _ in range(2):
            c.execute("select headrace.publish_changes(%s, %s, array[%s])", [table, template, name])
        c.execute(sql.SQL("insert into {0}.{0} values ('it''s {{other}}', 1)").format(identifier))
        c.execute("select headrace.unpublish_changes(%s, %s)", [table, template])
        c.execute(sql.SQL("insert into {0}.{0} values ('x', 1)").format(identifier))
    payload = {"op": "insert", "schema": name, "table": name, "row": {name: "it's {other}"}}
    assert changes(database_url) == [("t:it's {other}", "insert", payload)]


def test_partitioned_tables(database_url: str) -> None:
    """Rows of partitions, also of those made later, are told of under the name of the partitioned table."""
    with connect(database_url) as c:
        c.execute("create table reading (at int, value int) partition by range (at)")
        c.execute("create table reading_1 partition of reading for values from (0) to (10) partition by list (at)")
        c.execute("create table reading_1_default partition of reading_1 default")
        for old in (False, True):
            c.execute("select headrace.publish_changes('reading', 'readings', old => %s)", [old])
        c.execute("create table reading_2 partition of reading for values from (10) to (20)")
        c.execute("insert into reading values (1, 1), (11, 2)")
        c.execute("update reading set value = 3 where at = 1")
        c.execute("update reading set at = 12 where at = 1")
        c.execute("truncate reading")
        c.execute("select headrace.unpublish_changes('reading')")
        c.execute("insert into reading values (1, 1), (11, 2)")
        assert c.execute("select count(*) from pg_trigger where tgname like 'headrace_%'").fetchone() == (0,)
    seen = changes(database_url)
    assert {payload["table"] for _, _, payload in seen} == {"reading"}
    assert [type_ for _, type_, _ in seen] == ["insert", "insert", "update", "delete", "insert", "truncate"]


def test_options_are_replaced_and_templates_add_up(database_url: str) -> None:
    """The same template again replaces its options; removing one template leaves the others."""
    with connect(database_url) as c:
        c.execute("create table orders (id int primary key, secret text)")
        c.execute("select headrace.publish_changes('orders', 'orders')")
        c.execute("select headrace.publish_changes('orders', 'orders', array['id'], visible_to => 'staff')")
        c.execute("select headrace.publish_changes('orders', 'order:{id}', array['id'])")
        c.execute("insert into orders values (1, 'x')")
        c.execute("select headrace.unpublish_changes('orders', 'orders')")
        c.execute("update orders set secret = 'y'")
        c.execute("select headrace.unpublish_changes('orders', 'unknown')")
    assert [(stream, json.loads(data)["op"], label) for stream, _, data, _, label in events(database_url)] == [
        ("order:1", "insert", None),
        ("order:1", "update", None),
        ("orders", "insert", "staff"),
    ]
    assert all("secret" not in payload["row"] for _, _, payload in changes(database_url))


def test_a_row_that_is_too_large_is_told_of_by_its_key(database_url: str) -> None:
    """No write fails because of the payload's limit: its event has the primary key alone, and says so."""
    with connect(database_url) as c:
        c.execute("create table page (a int, b text, body text, primary key (a, b))")
        c.execute("select headrace.publish_changes('page', 'pages', old => true)")
        c.execute("insert into page values (1, 'é', repeat('x', 1 << 20))")
        c.execute("update page set body = 'small'")
        c.execute("select headrace.set_max_payload_bytes(1000)")
        c.execute("update page set body = repeat('y', 900)")
        c.execute("delete from page")
    base = {"schema": "public", "table": "page", "row": {"a": 1, "b": "é"}, "too_large": True}
    inserted, updated, again, deleted = [payload for _, _, payload in changes(database_url)]
    assert inserted == base | {"op": "insert"}
    assert updated == base | {"op": "update"}
    assert again == base | {"op": "update"}
    assert deleted == {"op": "delete", "schema": "public", "table": "page", "row": base["row"] | {"body": "y" * 900}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("'orders', 'o:{nothing}'", "has no column nothing"),
        ("'orders', 'o', array['nothing']", "has no column nothing"),
        ("'orders', 'o:{xmin}'", "has no column xmin"),
        ("'orders', 'o:{id'", "write {{ and }}"),
        ("'orders', 'o:id}'", "write {{ and }}"),
        ("'orders', 'o:{}'", "write {{ and }}"),
        ("'orders', ''", "write {{ and }}"),
        ("'orders', null", "write {{ and }}"),
        ("null, 'o'", "name a table"),
        ("'orders', 'o', visible_to => ''", "audience label"),
        ("'orders', repeat('o', 513)", "those of the template have at least 513"),
        ("'orders', repeat('o', 300) || '{id}' || repeat('o', 213)", "those of the template have at least 513"),
        ("'orders', 'headrace:{id}'", "headrace's own"),
        ("'headrace.event', 'o'", "a table of headrace itself"),
        ("'nothing', 'o'", 'relation "nothing" does not exist'),
    ],
)
def test_what_cannot_be_is_refused_at_once(module_database_url: str, call: str, message: str) -> None:
    """A wrong call raises and changes nothing, instead of making every later write fail."""
    with connect(module_database_url) as c:
        c.execute("create table if not exists orders (id int)")
        with pytest.raises(psycopg.Error) as caught:
            c.execute(f"select headrace.publish_changes({call})".encode())
        assert message in str(caught.value)
        c.execute("insert into orders values (1)")
    assert events(module_database_url) == []


def test_rights(postgres: EmbeddedPostgres, database_url: str) -> None:
    """The table's owner makes the trigger, whoever writes publishes as himself, and nobody gets another's rights."""
    roles = ("changes_owner", "changes_writer", "changes_stranger")
    for role in roles:
        execute(postgres, f"drop role if exists {role}")
        execute(postgres, f"create role {role} login password 'x'")
    try:
        execute(postgres, "grant headrace_publisher to changes_owner, changes_writer")
        with connect(superuser_url(postgres, database_url)) as c:
            c.execute("create schema shop authorization changes_owner")
        owner, writer, stranger = (psycopg.conninfo.make_conninfo(database_url, user=r, password="x") for r in roles)
        with connect(owner) as c:
            c.execute("create type shop.money as enum ('cheap')")
            c.execute(
                "create function shop.who(shop.money) returns json language sql as 'select to_json(current_user)'"
            )
            c.execute("create cast (shop.money as json) with function shop.who(shop.money)")
            c.execute("create table shop.orders (id int, price shop.money, note text)")
            c.execute("grant usage on schema shop to changes_writer, changes_stranger")
            c.execute("grant insert, select on shop.orders to changes_writer, changes_stranger")
            c.execute("select headrace.publish_changes('shop.orders', 'orders')")
        with connect(writer) as c:
            c.execute("insert into shop.orders values (1, 'cheap')")
            c.execute("insert into shop.orders values (2, 'cheap', repeat('x', 1 << 20))")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table orders"):
                c.execute("select headrace.publish_changes('shop.orders', 'mine')")
        with connect(owner) as c:
            c.execute("select headrace.publish_changes('shop.orders', 'orders', columns => '{id}')")
            c.execute("alter table shop.orders rename column id to number")
        with connect(writer) as c:
            c.execute("insert into shop.orders values (3, 'cheap')")
        with connect(stranger) as c:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="headrace"):
                c.execute("insert into shop.orders values (2, null)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for schema headrace"):
                c.execute("select headrace.publish_changes('shop.orders', 'mine')")
        assert [payload["row"] for _, _, payload in changes(database_url)] == [
            {"id": 1, "price": "changes_writer", "note": None},
            {},
            {"number": 3},
        ]
    finally:
        with connect(superuser_url(postgres, database_url)) as c:
            c.execute("drop schema if exists shop cascade")
        for role in roles:
            execute(postgres, f"drop role {role}")
