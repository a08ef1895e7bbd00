"""The bench itself: a run small enough for every day. Whether headrace is fast is not asked here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.bench.tools import BESIDE_CHECKOUT

ROOT = Path(__file__).parents[2]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
TOOLS = Path(os.environ.get("BENCH_TOOLS") or BESIDE_CHECKOUT)


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "loadtests.bench", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=480, check=False)


@pytest.mark.skipif(
    not os.environ.get("CI") and not Path("/usr/include/liburing.h").exists(), reason="liburing-dev is not installed"
)
@pytest.mark.skipif(not (TOOLS / "ssebench.c").is_file(), reason=f"the bench's tools are not in {TOOLS}")
def test_a_small_run_measures_both(tmp_path: Path) -> None:
    """200 connections for 1 s: a table, and figures of headrace and of what it is beside, above zero."""
    figures = tmp_path / "figures.json"
    done = bench(
        "--n",
        "200",
        "--seconds",
        "2",
        "--repeat",
        "1",
        "--json",
        str(figures),
        "--scenario",
        "fanout",
        "latency",
        "metrics",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "| fanout " in done.stdout
    found = {(row["scenario"], row["name"]): row for row in json.loads(figures.read_text())["rows"]}
    deliveries = found["fanout", "deliveries"]
    assert deliveries["headrace"]["median"] > 0
    assert deliveries["floor"]["median"] > 0
    assert found["latency", "publish to receipt, p50"]["headrace"]["median"] > 0
    beside = found["metrics", "deliveries; beside without metrics"]
    assert beside["headrace"]["median"] > 0
    assert beside["floor"]["median"] > 0


def test_missing_tools_are_explained(tmp_path: Path) -> None:
    """Without the tools it says where it has looked and how to name their place; an unknown scenario is refused."""
    missing = bench("--tools", str(tmp_path), "latency")
    assert missing.returncode == 1
    assert str(tmp_path) in missing.stderr
    assert "BENCH_TOOLS" in missing.stderr
    unknown = bench("earthquake")
    assert unknown.returncode == 2
    assert "fanout" in unknown.stderr
