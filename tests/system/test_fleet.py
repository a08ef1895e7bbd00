"""The simulation of a fleet: a run small enough for every day. What an event costs is not asked here."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def fleet(*options: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "loadtests.fleet", "--seconds", "1", "--settle", "0.5", *options]
    return subprocess.run(argv, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=300, check=False)


def test_a_fleet_of_two_is_measured() -> None:
    """Both sizes have costs, no subscriber has lost an event, and the arithmetic to a larger fleet is shown."""
    done = fleet("--shards", "1", "--shards", "2", "--rate", "40", "--to", "400", "--json", "--bus", "on")
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["problems"] == {}
    assert [figure["shards"] for figure in told["figures"]] == [1, 2]
    for figure in told["figures"]:
        assert figure["reached"] > 0
        assert figure["shard_event_ms"] > 0
        assert figure["redis_idle"] > 0
    assert any("PostgreSQL, 400 shards, 40 events/s" in line for line in told["extrapolation"])
