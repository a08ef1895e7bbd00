"""A node whose database, role and environment have settings that nobody foresaw, and whose sessions end while idle."""

import psycopg
import pytest

import headrace
from headrace.publisher_tokens import sign_publisher
from tests.fixtures.ports import free_port
from tests.fixtures.router import SECRET
from tests.fixtures.shard import Database
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import wait_until
from tests.system.test_history import Pages
from tests.system.test_metrics import scrape, value

NAME = "ж€ \\ room"
TEXTS = ["Ω € ж", "back\\slash", "'quoted' \"twice\"", "\\u20ac\\", "{NULL,€}"]
ODD = {
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "row_security": "off",
    "client_encoding": "LATIN1",
    "lock_timeout": "100ms",
    "statement_timeout": "100ms",
    "idle_in_transaction_session_timeout": "100ms",
}


def alter(database: Database, **settings: str) -> None:
    """The settings of sessions that begin from now on."""
    for name, text in settings.items():
        quoted = text if "," in text else f"'{text}'"
        database.connection.execute(f"alter database {database.connection.info.dbname} set {name} = {quoted}".encode())


def test_no_setting_changes_what_is_delivered(
    start_stack: StartStack, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live events, those over HTTP, history and presence carry any text, and a wait longer than the timeouts that are
    inherited is no failure."""
    alter(database, **ODD)
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    stack = start_stack(
        shards=1,
        secret=SECRET,
        presence_interval_s=0.05,
        prune_interval_s=0.1,
        sweep_interval_s=0.1,
        publish_deadline_s=60,
        read_deadline_s=60,
        log_level="info",
    )
    router, (shard,) = stack.router, stack.shards
    assert router is not None
    client = stack.subscribe(NAME, user="ж€", presence=[NAME])
    for text in TEXTS:
        database.publish(NAME, text)
    client.wait_for(len(TEXTS))
    token = sign_publisher("*", secrets=[SECRET])
    body = '[{"stream": "%s", "data": "€ over HTTP \\\\"}, {"stream": "x", "data": "y", "visible_to": "staff"}]'
    answer = router.get(
        "/publish",
        method="POST",
        body=(body % NAME.replace("\\", "\\\\")).encode(),
        Authorization=f"Bearer {token}",
        Idempotency_Key="k",
    )
    assert answer[0] == 200, answer
    # What waits for this lock waits longer than the timeouts above.
    forever = "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"
    with psycopg.connect(database.url, options=forever) as holder:
        holder.execute("lock table headrace.stream in access exclusive mode")
        waiting = (
            "select count(*) from pg_stat_activity where application_name like '%%reader%%'"
            " and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '0.3 s'"
        )
        wait_until(lambda: database.one(waiting), "a read waits for longer than the timeouts")
    client.wait_for(len(TEXTS) + 1)
    assert [frame.data for frame in client.events] == [*TEXTS, "€ over HTTP \\"]
    assert Pages(stack).data(NAME, query={"since": 0}) == [*TEXTS, "€ over HTTP \\"]
    wait_until(lambda: headrace.members(database.connection, NAME) == ["ж€"], "the user is present")
    assert shard.counted("read_reconnects") == 0
    for words in ("PostgreSQL is away", "could not be read", "presence cannot be told"):
        assert words not in shard.log


def test_sessions_that_end_while_idle_are_seen_by_nobody(start_stack: StartStack, database: Database) -> None:
    """Sessions of a node are ended: the next page and the next events, live and over HTTP, come all the same."""
    stack = start_stack(
        shards=1,
        secret=SECRET,
        publish_deadline_s=60,
        read_deadline_s=60,
        ping_deadline_s=60,
        log_level="info",
    )
    router, (shard,), pages = stack.router, stack.shards, Pages(stack)
    assert router is not None
    token = sign_publisher("*", secrets=[SECRET])

    def post() -> int:
        body = b'{"stream": "room", "data": "posted"}'
        return int(router.get("/publish", method="POST", body=body, Authorization=f"Bearer {token}")[0])

    client = stack.subscribe("room")
    assert post() == 200
    client.wait_for(1)
    kept = ("history 0", "history 1", "reader 0", "headrace router")
    wait_until(lambda: pages.data("room") and all(map(database.backends, kept)), "all keep a session")
    # The listener's own would be missed: what it hears is how clients are woken.
    ended = [pid for name in kept for pid in database.backends(name)]
    assert database.column("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", ended) == [True] * len(ended)
    alive = "select count(*) from pg_stat_activity where pid = any (%s)"
    wait_until(lambda: database.one(alive, ended) == 0, "they have ended")
    for _ in range(4):
        status, _ = pages.get("room")
        assert status == 200
    assert post() == 200
    client.wait_for(2)
    for words in ("PostgreSQL is away", "could not be read"):
        assert words not in shard.log


def test_an_idle_session_timeout_is_no_failure(start_stack: StartStack, database: Database) -> None:
    """What is used less often than the timeout allows is connected anew, unnoticed; what listens is not ended."""
    alter(database, idle_session_timeout="200ms")
    port = free_port()
    stack = start_stack(
        shards=1,
        port=port,
        secret=SECRET,
        canary_interval_s=0.5,
        canary_url=f"http://127.0.0.1:{port}",
        read_deadline_s=60,
        ping_deadline_s=60,
        log_level="info",
    )
    router, (shard,) = stack.router, stack.shards
    assert router is not None
    wait_until(lambda: value(scrape(router), "headrace_canaries_total", result="ok") >= 3, "canaries arrive")
    assert value(scrape(router), "headrace_canaries_total", result="no database") == 0
    assert shard.counted("listen_reconnects") == 0
    assert "LISTEN connection lost" not in shard.log
