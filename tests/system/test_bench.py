"""The bench itself: a run small enough for every day. Whether headrace is fast is not asked here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench.tools import BESIDE_CHECKOUT

ROOT = Path(__file__).parents[2]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
TOOLS = Path(os.environ.get("BENCH_TOOLS") or BESIDE_CHECKOUT)
needs_tools = pytest.mark.skipif(
    not (TOOLS / "ssebench.c").is_file() or (not os.environ.get("CI") and not Path("/usr/include/liburing.h").exists()),
    reason=f"the bench's tools are not in {TOOLS}, or liburing-dev is not installed",
)


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "loadtests.bench", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=480, check=False)


def small(figures: Path, *scenarios: str) -> dict[tuple[str, str], Any]:
    """Run scenarios once, with 200 connections for 2 s; returns the rows by scenario and figure."""
    options = ["--n", "200", "--seconds", "2", "--repeat", "1", "--json", str(figures)]
    done = bench(*options, "--scenario", *scenarios)
    assert done.returncode == 0, done.stderr[-4000:]
    assert all(f"| {scenario} " in done.stdout for scenario in scenarios)
    return {(row["scenario"], row["name"]): row for row in json.loads(figures.read_text())["rows"]}


@needs_tools
def test_a_small_run_measures_both(tmp_path: Path) -> None:
    """200 connections for 2 s: a table, and figures of headrace and of what it is beside, above zero."""
    found = small(tmp_path / "figures.json", "fanout", "latency", "metrics")
    deliveries = found["fanout", "deliveries"]
    assert deliveries["headrace"]["median"] > 0
    assert deliveries["floor"]["median"] > 0
    assert found["latency", "publish to receipt, p50"]["headrace"]["median"] > 0
    beside = found["metrics", "deliveries; beside without metrics"]
    assert beside["headrace"]["median"] > 0
    assert beside["floor"]["median"] > 0


@needs_tools
def test_new_clients_are_measured_beside_a_bare_worker(tmp_path: Path) -> None:
    """Processor time of a client is measured of the router, the shard and a bare worker, and of all who come back."""
    found = small(tmp_path / "figures.json", "new_client", "come_back")
    both = found["new_client", "router and shard, a client; beside a bare worker"]
    assert both["headrace"]["median"] > 0
    assert both["floor"]["median"] > 0
    assert found["come_back", "processor time, 400 clients come back"]["headrace"]["median"] > 0


@needs_tools
def test_publishing_is_measured_beside_plain_transactions(tmp_path: Path) -> None:
    """A pair has commits and latencies of both halves, and all events were received, or else it fails."""
    found = small(tmp_path / "figures.json", "hot_stream", "table_changes")
    for scenario in ("hot_stream", "table_changes"):
        for name in ("commits", "a transaction, p50", "a transaction, p99"):
            row = found[scenario, f"{name}; beside plain"]
            assert row["headrace"]["median"] > 0
            assert row["floor"]["median"] > 0
        assert found[scenario, "backlog after the last commit"]["headrace"]["median"] >= 0
        # The warm-up's events are among them, and its commits are not in the rate.
        commits = 2 * found[scenario, "commits; beside plain"]["headrace"]["median"]
        assert found[scenario, "events, each received once"]["headrace"]["median"] > commits


@pytest.mark.slow
@needs_tools
def test_publishing_to_many_streams_and_the_way_to_a_receipt_are_measured(tmp_path: Path) -> None:
    """1,000 streams have a subscriber each; latencies are measured while idle, and at a fixed rate of transactions."""
    found = small(tmp_path / "figures.json", "thousand_streams", "publish_latency")
    assert found["thousand_streams", "commits; beside plain"]["ratio"]["median"] > 0
    for name in ("idle", "meanwhile, one stream", "meanwhile, 1,000 streams"):
        p50, p99 = (found["publish_latency", f"{name}, {q}"]["headrace"]["median"] for q in ("p50", "p99"))
        assert 0 < p50 <= p99
    for name in ("one stream", "1,000 streams"):
        assert 0 < found["publish_latency", f"commits, of 2,000 wanted, to {name}"]["headrace"]["median"] < 3000


def test_missing_tools_are_explained(tmp_path: Path) -> None:
    """Without the tools it says where it has looked and how to name their place; an unknown scenario is refused."""
    missing = bench("--tools", str(tmp_path), "latency")
    assert missing.returncode == 1
    assert str(tmp_path) in missing.stderr
    assert "BENCH_TOOLS" in missing.stderr
    unknown = bench("earthquake")
    assert unknown.returncode == 2
    assert "fanout" in unknown.stderr
