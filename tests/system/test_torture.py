"""The torture itself: a short run with a fixed seed, small enough for every day."""

import json
import os
import subprocess
import sys
from pathlib import Path

from loadtests.torture.broken import BREAKS
from loadtests.torture.broken import torture as torture_broken

ROOT = Path(__file__).parents[2]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def torture(*arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "loadtests.torture", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=240, check=False)


def test_no_promise_is_broken_under_faults() -> None:
    """60 clients and all faults for 30 s: nothing is lost, repeated or disordered, nobody is cut off without cause."""
    done = torture(
        "--seed", "7", "--seconds", "30", "--subscribers", "60", "--shards", "2", "--publishers", "6", "--json"
    )
    assert done.stdout, done.stderr[-4000:]
    verdict = json.loads(done.stdout)
    assert done.returncode == 0, "\n".join(verdict["accounts"])
    assert verdict["violations"] == []
    assert verdict["events"] > 300
    assert verdict["deliveries"] > 1000
    assert len({fault["name"] for fault in verdict["faults"]}) > 5


def test_a_broken_copy_is_caught() -> None:
    """A copy of headrace that drops the rest of cut frames does not get past the judge."""
    verdict = torture_broken(BREAKS["tail-dropped"], seconds=8, subscribers=60)
    assert {"lost", "altered", "malformed"} & {violation["kind"] for violation in verdict["violations"]}


def test_the_faults_are_explained() -> None:
    """--list-faults says of each fault what it does, and an unknown one is refused with that hint."""
    listed = torture("--list-faults").stdout.splitlines()
    assert len(listed) >= 20
    assert all(len(line.split()) > 2 or "FLUSHALL" in line for line in listed)
    refused = torture("--faults", "earthquake")
    assert refused.returncode == 2
    assert "earthquake" in refused.stderr
    assert "--list-faults" in refused.stderr
