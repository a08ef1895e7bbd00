"""Operators at work while clients are connected: everything that can be done to a running node, one after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def test_nobody_notices_an_operator() -> None:
    """Move, drain, rebalance, restart, scale: no connection closes, and every event comes once, in order."""
    argv = [sys.executable, "-m", "loadtests.operations", "--clients", "150", "--streams", "10", "--rate", "50"]
    argv += ["--shards", "2", "--moves", "1", "--pause", "0.3", "--json"]
    done = subprocess.run(argv, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr[-4000:]
    verdict = json.loads(done.stdout)
    assert verdict["problems"] == {}, done.stderr
    names = " ".join(step["name"] for step in verdict["steps"])
    for operation in ("move", "drain", "undrain", "rebalance", "restart b-0", "restart of the routers", "scale 3"):
        assert operation in names
    assert verdict["deliveries"] > 5_000
