"""The overview of a deployment, from a snapshot of its directory."""

import dataclasses
import json

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.overview import overview
from headrace.node.shard_entry import ShardEntry
from headrace.shard.connection import Connection
from headrace.shard.numbers.recent_performance import MOST_SLOW_CLIENTS, slowest
from headrace.tokens import Context

ENTRY = ShardEntry("n-0", "n", 10, "/run/n-0.sock", "up", 100, 3, 2, "0.2.0")


def test_an_overview_tells_of_every_shard_and_what_is_wrong() -> None:
    """Slots are counted by their owners, moves and slow clients are told one by one, and all of it is JSON."""
    worse = dataclasses.replace(
        ENTRY, id="n-1", state="draining", targets="n-0:7 n-2:", blocked=1, slowest="192.0.2.7:9 12 ada lovelace",
        last_error="it broke", database_error="no answer", latency_p99_ms=7.5,
    )  # fmt: skip
    snapshot = DirectorySnapshot(
        ("g", 3), (ENTRY, worse), {"n": {1: "n-0", 2: "n-1", 3: "n-1"}}, hot={"n": {"news": 5, "b": 9}}
    )
    found = json.loads(json.dumps(overview(snapshot)))
    assert [(shard["id"], shard["slots"], shard["blocked"]) for shard in found["shards"]] == [
        ("n-0", 1, 0),
        ("n-1", 2, 1),
    ]
    assert found["shards"][1]["database_error"] == "no answer"
    assert found["moves"] == [{"from": "n-1", "to": "n-0", "connections": 7}]
    assert found["slow_clients"] == [{"shard": "n-1", "peer": "192.0.2.7:9", "seconds": 12, "user": "ada lovelace"}]
    assert [hot["stream"] for hot in found["hot_streams"]] == ["b", "news"]


def blocked(number: int, user: str | None, since: float) -> Connection:
    connection = Connection(number, Context(user), "r", f"[2001:db8::{number}]:9")
    connection.blocked_at = since
    return connection


def test_the_slowest_clients_fit_a_directorys_entry() -> None:
    """The longest come first, of as many as fit; a name with a line break cannot pass for another client."""
    found = slowest([blocked(n, "x" * 500, 100.0 - n) for n in range(MOST_SLOW_CLIENTS + 5)], 200.0)
    assert len(found) < 300
    assert [line.split()[1] for line in found.splitlines()] == ["107", "106", "105"]
    entry = dataclasses.replace(
        ENTRY, slowest=slowest([blocked(1, "a\n192.0.2.1:1 99 b", 90.0), blocked(2, None, 95.0)], 100.0)
    )
    clients = overview(DirectorySnapshot(shards=(entry,)))["slow_clients"]
    assert [(client["peer"], client["seconds"]) for client in clients] == [
        ("[2001:db8::1]:9", 10),
        ("[2001:db8::2]:9", 5),
    ]
    assert clients[1]["user"] == ""
