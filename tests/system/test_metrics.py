"""What Prometheus is told of a node."""

import os
import re
import signal
import subprocess

from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures.client import Client
from tests.fixtures.programs import tool
from tests.fixtures.router import Router
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(router: Router) -> Samples:
    """The samples of /metrics, by name and labels; fails if one is there twice or a family is torn apart."""
    text = router.get("/metrics")[2].decode()
    headings = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the series of that name with at least these labels; there MUST be one."""
    found = [n for (key, has), n in samples.items() if key == name and labels.items() <= dict(has).items()]
    assert found, f"no {name} {labels}"
    return sum(found)


def test_one_scrape_tells_of_all_processes_of_a_node(start_stack: StartStack) -> None:
    """Any of a node's router workers answers for all of them and all shards, with what was really delivered."""
    stack = start_stack(shards=3, workers=2, heartbeat_interval_s=0.2)
    router = stack.router
    assert router is not None
    wait_until(lambda: value(scrape(router), "headrace_router_shards", state="up") == 6, "both workers know all shards")
    clients = [stack.subscribe(f"room:{number}", since="all") for number in range(12)]
    for number, client in enumerate(clients):
        stack.database.publish(f"room:{number}", "one", "two")
        client.wait_for(2)
    wait_until(lambda: _held(scrape(router)) == _holders(stack, clients), "each connection is counted where it is")

    samples = scrape(router)
    shards = {shard.id for shard in stack.shards}
    assert _processes(samples, "process_open_fds") == shards | {"router-0", "router-1"}
    assert _processes(samples, "headrace_scrape_up") >= shards
    for name in ("scrape_up", "postgresql_up", "redis_up", "listen_connected", "presence_up"):
        assert {n for (key, _), n in samples.items() if key == f"headrace_{name}"} == {1}
    assert value(samples, "headrace_streams") == 12
    moved = value(samples, "headrace_moves_here_total")
    assert value(samples, "headrace_handoffs_total", answer="accepted") - moved == 12
    assert value(samples, "headrace_router_handoffs_total", outcome="accepted") == 12
    assert value(samples, "headrace_router_handoff_seconds_count") == 12
    assert value(samples, "headrace_events_total") == 24
    assert value(samples, "headrace_deliveries_total") == 24
    assert value(samples, "headrace_sent_bytes_total") >= sum(len(client.raw) for client in clients)
    assert value(samples, "headrace_publish_to_socket_seconds_count") == 24
    assert 0 < value(samples, "headrace_publish_to_socket_seconds_sum") < 24 * 5
    assert value(samples, "headrace_read_seconds_count", lane="live") >= 12
    assert value(samples, "headrace_read_events_sum", lane="live") >= 24
    assert value(samples, "headrace_notifications_total") >= 12
    assert value(samples, "headrace_loop_lag_seconds_count") > 0

    # No series is of a stream or a connection.
    before = _shard_series(samples)
    stack.subscribe("room:extra")
    assert _shard_series(scrape(router)) == before


def _shard_series(samples: Samples) -> set[object]:
    return {key for key in samples if dict(key[1])["process"].startswith("n1-")}


def _processes(samples: Samples, name: str) -> set[str]:
    return {dict(labels)["process"] for key, labels in samples if key == name}


def _held(samples: Samples) -> dict[str, float]:
    """Live connections by shard."""
    labelled = {key: n for key, n in samples.items() if key[0] == "headrace_connections"}
    return {dict(has)["process"]: n for (_, has), n in labelled.items() if dict(has)["state"] == "live"}


def _holders(stack: Stack, clients: list[Client]) -> dict[str, float]:
    held = dict.fromkeys((shard.id for shard in stack.shards), 0.0)
    for client in clients:
        held[stack.holder(client).id] += 1
    return held


def test_a_shard_that_does_not_answer_is_named(start_stack: StartStack) -> None:
    """A stopped shard costs the scrape its patience, not the other numbers, and its absence is a number itself."""
    stack = start_stack(shards=2, directory_expiry_s=60)
    router = stack.router
    assert router is not None
    os.kill(stack.shards[1].pid, signal.SIGSTOP)
    try:
        samples = scrape(router)
    finally:
        os.kill(stack.shards[1].pid, signal.SIGCONT)
    assert value(samples, "headrace_scrape_up", process="n1-0") == 1
    assert value(samples, "headrace_scrape_up", process="n1-1") == 0
    assert value(samples, "headrace_connections", process="n1-0") == 0


def test_names_follow_the_conventions(start_stack: StartStack) -> None:
    """Prometheus' own linter has nothing to say about names, units and help."""
    promtool = tool("promtool")
    stack = start_stack(shards=1)
    assert stack.router is not None
    text = stack.router.get("/metrics")[2]
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=20, check=False)
    assert (checked.returncode, checked.stderr + checked.stdout) == (0, b"")
