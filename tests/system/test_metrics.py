"""What Prometheus is told of a node."""

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import headrace
from headrace.publisher_tokens import sign_publisher
from tests.fixtures.client import Client
from tests.fixtures.programs import tool
from tests.fixtures.router import SECRET, Router
from tests.fixtures.shard import LIBC, PR_SET_PDEATHSIG, Shard
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import DEADLINE_S, took_less, wait_until

DOCS = Path(__file__).parents[2] / "docs"
CROWD = """
from gevent import monkey; monkey.patch_all()
import os, sys, gevent
from headrace.node.directory import Directory
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.settings import Settings
from headrace.shard.process import Process
settings = Settings.from_environ(os.environ)
deployment = DeploymentIdentity(settings)
deployment.look()
directory = Directory.of(settings, deployment.required, resident=True)
gevent.joinall([gevent.spawn(Process(settings, id_, deployment, directory).run) for id_ in sys.argv[1:]])
"""
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


def whole(router: Router, shards: set[str]) -> Samples:
    """A scrape to which each of these shards has answered; on a machine that stands still one may be too late."""

    def scraped() -> Samples | None:
        samples = scrape(router)
        return samples if all(value(samples, "headrace_scrape_up", process=shard) == 1 for shard in shards) else None

    return wait_until(scraped, "all shards answer") or {}


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

    shards = {shard.id for shard in stack.shards}

    def well() -> Samples | None:
        samples = whole(router, shards)
        names = {f"headrace_{name}" for name in ("postgresql_up", "redis_up", "listen_connected", "presence_up")}
        assert names < {key for key, _ in samples}
        return samples if {n for (key, _), n in samples.items() if key in names} == {1} else None

    samples = wait_until(well, "all is well with each process") or {}
    assert _processes(samples, "process_open_fds") == shards | {"router-0", "router-1"}
    assert _processes(samples, "headrace_scrape_up") >= shards
    assert {n for (key, _), n in samples.items() if key == "headrace_scrape_up"} == {1}
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
    assert _shard_series(whole(router, shards)) == before


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


def test_publishing_pages_and_revocations_are_counted(start_stack: StartStack) -> None:
    """What comes over HTTP is counted by endpoint and status, pages and revocations by what came of them."""
    stack = start_stack(shards=1, revocation_interval_s=0.1)
    router = stack.router
    assert router is not None
    authorization = f"Bearer {sign_publisher('room:*', secrets=[SECRET])}"

    def post(stream: str, **headers: str) -> int:
        body = json.dumps([{"stream": stream, "data": "x"}] * 3).encode()
        return int(router.get("/publish", method="POST", body=body, **headers)[0])

    assert post("room:1", Authorization=authorization) == 200
    assert post("room:1") == 401
    assert post("other", Authorization=authorization) == 403
    page = stack.path("room:1", user="ada") + "/events"
    assert router.get(page)[0] == 200
    assert router.get(f"{page}?limit=none")[0] == 400
    client = stack.subscribe("room:1", user="ada")
    headrace.disconnect(stack.database.connection, user="ada")
    client.wait_for_end()
    assert router.get(page)[0] == 403

    samples = whole(router, {"n1-0"})
    responses = {dict(key[1])["status"] for key in samples if dict(key[1]).get("endpoint") == "publish"}
    assert responses == {"200", "401", "403"}
    assert value(samples, "headrace_router_published_events_total") == 3
    assert value(samples, "headrace_router_publish_seconds_count") == 1
    assert value(samples, "headrace_router_responses_total", endpoint="history", status="400") == 1
    assert value(samples, "headrace_router_responses_total", endpoint="history", status="403") == 1
    assert value(samples, "headrace_history_pages_total", result="sent") == 1
    assert value(samples, "headrace_handoffs_total", answer="revoked") == 1
    assert value(samples, "headrace_clients_closed_total", reason="disconnected") == 1
    assert value(samples, "headrace_revoked_users") == 1
    assert value(samples, "headrace_revocations_current") == 1


def test_the_documentation_lists_every_metric(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The families of a scrape, and their labels, are those of the page that is made of the code."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    listed = importlib.import_module("generated.metrics").families()
    stack = start_stack(shards=1)
    assert stack.router is not None
    whole(stack.router, {shard.id for shard in stack.shards})
    text = stack.router.get("/metrics")[2].decode()
    told = re.findall(r"^# TYPE (headrace_\S+) (\w+)", text, re.MULTILINE)
    kinds = {name: kind for name, kind, _, _ in listed}
    assert {name for name, _ in told} - {"headrace_scrape_up"} == kinds.keys()
    assert all(kind == kinds[name] or kinds[name] == "info" for name, kind in told if name in kinds)
    labels = {name: {*named, "process"} for name, _, named, _ in listed}
    for name, shown in re.findall(r"^(headrace_\w+)\{([^}]*)\}", text, re.MULTILINE):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if family in labels and family != "headrace_build_info":
            assert set(re.findall(r"(\w+)=", shown)) - {"le"} == labels[family], name


def test_the_shard_in_office_says_so(start_stack: StartStack) -> None:
    """While commits are many, one shard of two is in office, and counts the turns that it has numbered."""
    stack = start_stack(shards=2, announce_above_per_s=1)
    router = stack.router
    assert router is not None

    def now(name: str) -> float:
        return value(whole(router, {shard.id for shard in stack.shards}), name)

    assert now("headrace_announcer_in_office") == 0

    def in_office() -> bool:
        for _ in range(16):
            stack.database.publish("room:1", "x")
        return now("headrace_announcer_in_office") == 1

    wait_until(in_office, "a shard is in office")
    before = now("headrace_announced_transactions_total")
    for _ in range(5):
        stack.database.publish("room:1", "x")
    wait_until(lambda: now("headrace_announced_transactions_total") >= before + 5, "all five are numbered")


def test_a_shard_that_does_not_answer_is_named(start_stack: StartStack) -> None:
    """A stopped shard costs the scrape its patience, not the other numbers, and its absence is a number itself."""
    stack = start_stack(shards=2, directory_expiry_s=60)
    router = stack.router
    assert router is not None
    os.kill(stack.shards[1].pid, signal.SIGSTOP)
    try:
        samples = whole(router, {"n1-0"})
    finally:
        os.kill(stack.shards[1].pid, signal.SIGCONT)
    assert value(samples, "headrace_scrape_up", process="n1-0") == 1
    assert value(samples, "headrace_scrape_up", process="n1-1") == 0
    assert value(samples, "headrace_connections", process="n1-0") == 0


@contextlib.contextmanager
def crowd(shard: Shard, ids: list[str]) -> Iterator[None]:
    """More shards beside one, whole and with its settings, all in one process: one each would take a machine."""
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, *ids],
        cwd=shard.directory,
        env=shard.environ,
        preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def test_one_request_tells_of_twenty_shards(start_stack: StartStack) -> None:
    """A node with 20 shards answers one request with all of them; one that hangs is missed, and holds up no other."""
    # All of them in one process, which has to answer for each within the router's patience: they register seldom.
    stack = start_stack(shards=1, directory_expiry_s=60, directory_interval_s=2, tick_interval_s=1)
    router = stack.router
    assert router is not None
    others = [f"n1-{number}" for number in range(1, 20)]
    with crowd(stack.shards[0], others):
        router.knows("n1-0", *others)
        samples = whole(router, {"n1-0", *others})
        assert _processes(samples, "headrace_build_info") == {"n1-0", *others}
        assert {n for (key, _), n in samples.items() if key == "headrace_scrape_up"} == {1}
        each = Counter(dict(labels)["process"] for name, labels in samples if name != "headrace_scrape_up")
        assert min(each[id_] for id_ in others) > 200

        os.kill(stack.shards[0].pid, signal.SIGSTOP)
        try:

            def scraped() -> float:
                began = time.monotonic()
                scrape(router)
                return time.monotonic() - began

            # Much less than Prometheus waits for a scrape, which is 10 s.
            took_less(5, scraped)
            samples = whole(router, set(others))
        finally:
            os.kill(stack.shards[0].pid, signal.SIGCONT)
        assert value(samples, "headrace_scrape_up", process="n1-0") == 0
        assert _processes(samples, "headrace_build_info") == set(others)


def test_names_follow_the_conventions(start_stack: StartStack) -> None:
    """Prometheus' own linter has nothing to say about names, units and help."""
    promtool = tool("promtool")
    stack = start_stack(shards=1)
    assert stack.router is not None
    text = stack.router.get("/metrics")[2]
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=DEADLINE_S, check=False
    )
    assert (checked.returncode, checked.stderr + checked.stdout) == (0, b"")
