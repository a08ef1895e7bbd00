"""The canary: the probe of each shard that goes all the way, from publishing to a client at the front door."""

import json
import signal
import time

import psycopg

from tests.fixtures.ports import free_port
from tests.fixtures.router import SECRET
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import DEADLINE_S, wait_until, wait_until_blocked
from tests.system.test_metrics import scrape, value, whole
from tests.system.test_placement import snapshot


def found(stack: Stack) -> dict[str, str]:
    """What the router knows of each shard's canary."""
    assert stack.router is not None
    return {shard["id"]: shard["canary"] for shard in stack.router.ready()["shards"]}


def test_each_shard_proves_that_events_go_all_the_way(start_stack: StartStack) -> None:
    """While all is well each shard's canary arrives, is measured and is nobody's client; when the router ends, each
    shard says once that it fails."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    stack = start_stack(shards=2, port=port, secret=SECRET, canary_interval_s=0.2, canary_url=address)
    router = stack.router
    assert router is not None
    wait_until(lambda: found(stack) == {"n1-0": "ok", "n1-1": "ok"}, "each canary has arrived")

    def well() -> bool:
        ready = router.ready()
        assert {shard["connections"] for shard in ready["shards"]} == {0}
        return bool((ready["status"], ready["canary"]["status"]) == ("ok", "ok"))

    wait_until(well, "the router says that all is well")
    samples = whole(router, {"n1-0", "n1-1"})
    for shard in stack.shards:
        assert value(samples, "headrace_canary_up", process=shard.id) == 1
        ok = value(samples, "headrace_canaries_total", process=shard.id, result="ok")
        assert value(samples, "headrace_canary_seconds_count", process=shard.id) == ok > 0
        assert 0 < value(samples, "headrace_canary_seconds_sum", process=shard.id) < 5 * ok
    streams = stack.database.column("select name from headrace.stream where name like 'headrace:canary:%%'")
    assert len(streams) == 2

    told = [shard.log.count("the canary failed") for shard in stack.shards]
    router.process.send_signal(signal.SIGTERM)
    router.process.wait(DEADLINE_S)
    for shard, before in zip(stack.shards, told, strict=True):
        wait_until(lambda: shard.log.count("the canary failed") == before + 1, "the shard says so")  # noqa: B023


def test_a_canary_is_nobodys_client(start_stack: StartStack) -> None:
    """While its event waits in PostgreSQL it is connected, and the shard tells of no connection and no stream."""
    port = free_port()
    stack = start_stack(
        shards=1, port=port, secret=SECRET, canary_interval_s=0.2, canary_url=f"http://127.0.0.1:{port}"
    )
    wait_until(lambda: found(stack) == {"n1-0": "ok"}, "the canary has arrived")
    with psycopg.connect(stack.database.url) as blocker:
        blocker.execute("lock table headrace.event in exclusive mode")
        (pid,) = stack.database.backends("canary")
        wait_until_blocked(stack.database.connection, pid)
        # For as long as several reports of the shard take.
        until = time.monotonic() + 1
        while time.monotonic() < until:
            (entry,) = snapshot(stack).shards
            assert (entry.connections, entry.streams) == (0, 0)
            time.sleep(0.05)


def test_a_front_door_that_leads_nowhere_is_named(start_stack: StartStack) -> None:
    """Each process may think itself well: the canary tells that no client gets through, and readiness says it."""
    stack = start_stack(shards=1, secret=SECRET, canary_interval_s=0.2, canary_url="http://127.0.0.1:1")
    assert stack.router is not None
    wait_until(lambda: found(stack) == {"n1-0": "unreachable"}, "the canary has failed")
    status, _, body = stack.router.get("/readyz")
    ready = json.loads(body)
    assert (status, ready["status"], ready["canary"]) == (
        200,
        "degraded",
        {"status": "failing", "found": ["unreachable"]},
    )
    samples = scrape(stack.router)
    assert value(samples, "headrace_canary_up") == 0
    assert value(samples, "headrace_canaries_total", result="unreachable") > 0
