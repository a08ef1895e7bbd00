"""deploy/RUNBOOK.md: its table names, for every fault, what the processes really show; its SQL runs."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loadtests.torture.faults import FAULTS
from tests.fixtures.client import Client
from tests.fixtures.deployment import DEPLOY, ROUTER, SHARD, Host, get, sign
from tests.fixtures.proxy import Proxy
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database
from tests.fixtures.waiting import wait_until

RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text()
ROWS = {
    fault: [cell.strip() for cell in row.split("|")[1:-1]]
    for row in re.findall(r"^\| `.*$", RUNBOOK, re.MULTILINE)
    for fault in re.findall(r"`([a-z-]+)`", row.split("|")[1])
}
MARKED = [fault for fault, row in ROWS.items() if row[0].endswith("*")]
STREAMS = [f"room:{number}" for number in range(12)]


class Node:
    """One host with two shards, whose wires to PostgreSQL and Redis can be cut. Owned by the test thread."""

    def __init__(self, host: Host, wire: Proxy, redis: RedisServer, database: Database) -> None:
        self.host = host
        self.wire = wire
        self.redis = redis
        self.database = database
        self.clients: list[Client] = []

    def come(self, *streams: str, query: str = "") -> None:
        """Clients of these streams ask to be served, whatever becomes of them."""
        self.clients += [Client(get(self.host.port, sign(self.host, stream) + query)) for stream in streams]

    def metrics(self) -> str:
        with get(self.host.port, "/metrics") as client:
            data = b""
            while piece := client.recv(65536):
                data += piece
        return data.decode()

    def ready(self) -> dict[str, Any]:
        with get(self.host.port, "/readyz") as client:
            data = b""
            while piece := client.recv(65536):
                data += piece
        found: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])
        return found

    def examined(self) -> list[tuple[str, str]]:
        """What `headrace doctor` finds, each check with its level."""
        command = [sys.executable, "-P", "-m", "headrace.cli", "doctor", "--json"]
        environ = {name: value for name, value in self.host.environ.items() if name.startswith("HEADRACE_")}
        environ |= {"HEADRACE_PUBLIC_URL": f"http://127.0.0.1:{self.host.port}", "HEADRACE_NODE": self.host.name}
        ran = subprocess.run(command, cwd=self.host.directory, env=environ, capture_output=True, text=True, timeout=60)
        return [(entry["check"], entry["level"]) for entry in json.loads(ran.stdout)]

    def well(self) -> bool:
        """Whether both shards are up and nothing is away."""
        try:
            ready = self.ready()
        except (OSError, ValueError):
            return False
        return ready["status"] == "ok" and [shard["state"] for shard in ready["shards"]] == ["up", "up"]

    def shows(self, condition: str) -> bool:
        """Whether a condition of the table holds now."""
        if match := re.fullmatch(r"readyz ([\w.]+) == (\w+)", condition):
            value: Any = self.ready()
            for name in match.group(1).split("."):
                value = value[name]
            return bool(value == match.group(2))
        if match := re.fullmatch(r"doctor ([\w ]+) == (\w+)", condition):
            return match.groups() in self.examined()
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})?(?: (==|>) (\d+)| (absent))", condition)
        assert match, f"not understood: {condition!r}"
        name, labels, comparison, number, absent = match.groups()
        values = [
            float(value)
            for series, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self.metrics(), re.MULTILINE)
            if not labels or labels in series
        ]
        if absent:
            return not values
        return any(value == float(number) if comparison == "==" else value > float(number) for value in values)


@contextmanager
def shard_kill(node: Node) -> Iterator[None]:
    node.host.kill(SHARD, "0")
    node.come(*STREAMS)
    yield
    node.host.start(SHARD, "0")


@contextmanager
def shard_pause(node: Node) -> Iterator[None]:
    pid = node.host.main[SHARD + "0"]
    os.kill(pid, signal.SIGSTOP)
    node.come(*STREAMS)
    yield
    os.kill(pid, signal.SIGCONT)


@contextmanager
def redis_restart(node: Node) -> Iterator[None]:
    node.redis.kill()
    yield
    node.redis.start()


@contextmanager
def postgres_stop(node: Node) -> Iterator[None]:
    node.wire.cut()
    yield
    node.wire.resume()


@contextmanager
def postgres_pause(node: Node) -> Iterator[None]:
    node.wire.deafen()
    yield
    node.wire.resume()


@contextmanager
def retention(node: Node) -> Iterator[None]:
    node.database.publish("brief", *"12345")
    node.database.trim("brief", 1)
    node.come("brief", query="?since=1")
    yield


INJECTIONS: dict[str, Callable[[Node], Any]] = {
    "shard-kill": shard_kill,
    "shard-pause": shard_pause,
    "redis-restart": redis_restart,
    "postgres-stop": postgres_stop,
    "postgres-pause": postgres_pause,
    "retention": retention,
}


@pytest.fixture
def node(database: Database, postgres_proxy: Proxy, own_redis: RedisServer) -> Iterator[Node]:
    url = postgres_proxy.url(database.url)
    quick = {"DIRECTORY_INTERVAL_S": 0.2, "DIRECTORY_EXPIRY_S": 1, "SWEEP_INTERVAL_S": 0.5, "READ_DEADLINE_S": 1}
    quick |= {"PING_INTERVAL_S": 0.3, "PING_DEADLINE_S": 0.3, "HANDOFF_DEADLINE_S": 0.5}
    environ = {"HEADRACE_DATABASE_URL": url, "HEADRACE_LISTEN_DATABASE_URL": url, "HEADRACE_REDIS_URL": own_redis.url}
    host = Host("web1", environ, **{f"HEADRACE_{name}": str(value) for name, value in quick.items()})
    made = Node(host, postgres_proxy, own_redis, database)
    try:
        for instance in ("0", "1"):
            host.start(SHARD, instance)
        host.start(ROUTER)
        wait_until(lambda: made.well(), f"{host} is well; see its logs", 20)
        yield made
    finally:
        for client in made.clients:
            client.close()
        print(host, *(file.read_text() for file in host.directory.glob("*.log")), sep="\n")  # noqa: T201
        host.remove()


def conditions(fault: str) -> list[list[str]]:
    """What the table says is seen: each clause a choice of conditions, without the alerts."""
    clauses = [re.findall(r"`([^`]*)`", clause) for clause in ROWS[fault][1].split(";")]
    return [clause for clause in clauses if clause and not clause[0].startswith("Headrace")]


def test_the_table_has_every_fault() -> None:
    """Each fault of the torture run has its row, and those marked are those that are injected here."""
    assert ROWS.keys() == FAULTS.keys()
    assert sorted(MARKED) == sorted(INJECTIONS)


def test_the_table_names_alerts_and_chapters_that_there_are() -> None:
    """Alerts in the table are among the rules, and its links lead to chapters."""
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    for alert in re.findall(r"`(Headrace\w+)`", RUNBOOK):
        assert f"alert: {alert}\n" in rules
    chapters = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", RUNBOOK, re.MULTILINE)}
    assert set(re.findall(r"\(#([\w-]+)\)", RUNBOOK)) <= chapters


@pytest.mark.parametrize("fault", INJECTIONS)
def test_a_fault_is_seen_where_the_table_says(node: Node, fault: str) -> None:
    """While a fault lasts each of its symptoms shows, none did before, and the node is well again afterwards."""
    expected = conditions(fault)
    assert expected
    for clause in expected:
        assert not any(node.shows(condition) for condition in clause)
    with INJECTIONS[fault](node):
        for clause in expected:
            wait_until(
                lambda clause=clause: any(map(node.shows, clause)), f"{fault} shows as {' or '.join(clause)}", 20
            )
    wait_until(node.well, "the node is well again", 20)


def test_the_runbooks_sql_runs(database: Database) -> None:
    """Every statement that the runbook gives runs on a database of this version."""
    statements = re.findall(r"```sql\n(.*?)```", RUNBOOK, re.DOTALL)
    assert len(statements) == 3
    for statement in statements:
        assert database.connection.execute(statement.encode()).fetchall()
