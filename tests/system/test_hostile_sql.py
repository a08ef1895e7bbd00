"""A stranger who may create in `public`: nothing of theirs ever runs with the rights of headrace's database user."""

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import psycopg2
import pytest
from click.testing import CliRunner

import headrace
from headrace.cli import main
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.publisher_tokens import sign_publisher
from headrace.schema.migrations import migrate
from tests.fixtures.hostile_schema import HostileSchema
from tests.fixtures.ports import free_port
from tests.fixtures.postgres import superuser_url
from tests.fixtures.router import SECRET
from tests.fixtures.shard import Database
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until
from tests.system.test_sequencer import Writers, in_office


def hostile_in(postgres: EmbeddedPostgres, url: str) -> HostileSchema:
    return HostileSchema(superuser_url(postgres, url))


@pytest.fixture
def hostile(postgres: EmbeddedPostgres, database: Database) -> Iterator[HostileSchema]:
    """A stranger's work in the test's database, which the test's own connection does not see."""
    database.connection.execute("set search_path = pg_catalog")
    with contextlib.closing(hostile_in(postgres, database.url)) as made:
        yield made


def caught_in(hostile: HostileSchema, url: str, statement: str) -> int:
    """How often something of the stranger's runs in this statement."""
    before = hostile.caught()[0]
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode())
    return hostile.caught()[0] - before


def test_the_trap_catches(hostile: HostileSchema, database: Database) -> None:
    """Functions, operators, aggregates, types and relations that a statement does not qualify are the stranger's."""
    functions, operators, relations = hostile.made()
    assert functions > 1000 and operators > 400 and relations > 5
    for statement in (
        "select pg_relation_size('headrace.stage')",
        "select to_jsonb(m) from headrace.migration m",
        "select 1 = 1",
        "select count(*) from headrace.migration",
        "select 'x'::text",
        "select pid from pg_locks",
    ):
        assert caught_in(hostile, database.url, statement) > 0, statement
    assert caught_in(hostile, database.url, "select pg_catalog.now()") == 0


def commands(database: Database, stack: Stack) -> None:
    """Each command that asks PostgreSQL something."""
    assert stack.router is not None
    environ = {
        "HEADRACE_DATABASE_URL": database.url,
        "HEADRACE_REDIS_URL": stack.redis.url,
        "HEADRACE_SECRET": SECRET,
        "HEADRACE_NODE": "n1",
        "HEADRACE_PUBLIC_URL": f"http://127.0.0.1:{stack.router.port}",
    }
    for words in (
        ["migrate"],
        ["publish", "cli", "one", "--event", "note"],
        ["members", "room"],
        ["members", "room", "--count"],
        ["disconnect", "--user", "nobody"],
        ["disconnect", "--stream", "empty"],
        ["status"],
        ["doctor", "--json"],
    ):
        result = CliRunner().invoke(main, words, env=environ)
        if words[0] == "doctor":
            found = {entry["check"]: entry for entry in json.loads(result.stdout)}
            for check in ("postgresql version", "schema", "open transactions", "listen", "front door"):
                assert found[check]["level"] != "fail", found[check]
        else:
            assert result.exit_code == 0, (words, result.output)


def applications(url: str) -> None:
    """Each call of the Python interface, over a connection that has the stranger's search path."""
    with psycopg.connect(url, autocommit=True) as connection:
        headrace.publish(connection, "app", "one")
        headrace.publish_now(connection, "app", "two", visible_to="staff")
        headrace.publish_many(connection, ["app", "app"], ["three", "four"], visible_to=[None, "staff"])
        wait_until(lambda: headrace.watermark(connection, "app") == "4", "a shard has numbered the four events")
        assert headrace.head(connection, "app") == 4
        assert headrace.members(connection, "app") == []
        assert headrace.member_count(connection, "app") == 0
        headrace.disconnect(connection, user="nobody", skew_s=1.5)
        headrace.set_retention(connection, "app*", timedelta(minutes=1), 3)
        with headrace.snapshot(connection) as page:
            assert page.head("app") == 4
        with connection.transaction(), headrace.snapshot(connection) as page:
            assert page.head("app") == 4
    with contextlib.closing(psycopg2.connect(url)) as other:
        headrace.publish_many(other, ["app"], ["five"])
        other.commit()
        with psycopg.connect(url, autocommit=True) as connection:
            wait_until(lambda: headrace.watermark(connection, "app") == "5", "a shard has numbered the fifth event")
        with headrace.snapshot(other) as page:
            assert page.head("app") == 5


def test_nothing_of_a_strangers_runs_in_a_node(
    start_stack: StartStack, database: Database, hostile: HostileSchema
) -> None:
    """Shards with announcer, pruner, presence, revocations, canary and history, the router, all commands and the Python
    interface do their work, and call no function, operator, type or relation of the stranger's."""
    headrace.set_retention(database.connection, "*", timedelta(milliseconds=100))
    port = free_port()
    stack = start_stack(
        shards=1,
        port=port,
        secret=SECRET,
        demo=1,
        canary_interval_s=0.2,
        canary_url=f"http://127.0.0.1:{port}",
        announce_above_per_s=1,
        prune_interval_s=0.1,
        sweep_interval_s=0.2,
        presence_interval_s=0.05,
        presence_grace_s=0.1,
        log_level="info",
    )
    router, (shard,) = stack.router, stack.shards
    assert router is not None
    with Writers(database.url, count=3) as writers:
        wait_until(lambda: in_office(shard), "the shard is in office")
        client = stack.subscribe("room", "s", user="ada", presence=["room"])
        client.wait(lambda: client.events, "an event")
        wait_until(lambda: headrace.members(database.connection, "room") == ["ada"], "ada is present")
        token = sign_publisher("*", secrets=[SECRET])
        for body in (b'{"stream": "http", "data": "x"}', b'[{"stream": "http", "data": "y"}]'):
            for _ in range(2):
                answer = router.get(
                    "/publish",
                    method="POST",
                    body=body,
                    Authorization=f"Bearer {token}",
                    Idempotency_Key=f"k{len(body)}",
                )
                assert answer[0] == 200, answer
        demo = b'{"stream": "chat", "data": "x", "event": "message"}'
        assert router.get("/demo/publish", method="POST", body=demo)[0] == 204
        assert router.get(stack.path("http") + "/events?limit=10")[0] == 200
        commands(database, stack)
        applications(database.url)
        headrace.disconnect(database.connection, user="ada")
        client.wait(lambda: client.ended, "the end that the revocation brings")
        for counter in ("pruned_events", "announced_transactions", "presence_reports"):
            wait_until(lambda counter=counter: shard.counted(counter) > 0, f"{counter} are counted")  # type: ignore[misc]
        wait_until(lambda: not headrace.members(database.connection, "room"), "ada has left")
        wait_until(lambda: router.ready()["canary"]["status"] == "ok", "the canary arrives")
    assert not writers.faults
    shard.terminate()
    assert shard.exit_status() == 0
    assert hostile.caught() == (0, [])


def test_nothing_of_a_strangers_runs_in_a_migration(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    """A new schema is made, and seen to be up to date, without calling anything of the stranger's."""
    with contextlib.closing(hostile_in(postgres, empty_database_url)) as hostile:
        assert migrate(empty_database_url)
        assert migrate(empty_database_url) == []
        assert hostile.caught() == (0, [])
