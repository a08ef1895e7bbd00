"""loadtests/log_torture: a short run breaks no promise of the log, and every schema broken on purpose is caught."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.log_torture.broken_schemas import BREAKS, apply

ROOT = Path(__file__).parents[2]


def torture(*arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "loadtests.log_torture", *arguments]
    if binaries := os.environ.get("TEST_POSTGRES"):
        argv += ["--postgres", binaries]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_no_promise_is_broken() -> None:
    """Ten seconds of transactions of every kind, with kills of sessions and of the server, and all of it adds up."""
    done = torture("--seconds", "10", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    for what in ("servers killed", "offices", "pages", "prepared committed", "numbered by rounds"):
        assert f" {what}" in done.stdout, done.stdout


@pytest.mark.slow
def test_no_promise_is_broken_by_a_fail_over() -> None:
    """What a standby has is whole, and no id that the killed server gave out is used again."""
    done = torture("--seconds", "8", "--seed", "1", "--seeds", "2", "--failover")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("1 fail-overs") == 2


@pytest.mark.parametrize("name", BREAKS)
def test_what_a_break_changes_is_there(database_url: str, name: str) -> None:
    """Each break finds its text in the schema once, and the schema takes the change."""
    apply(database_url, name)


# Breaks that any few seconds show; `make log-torture ARGS="--break all"` has the others, of which some take minutes.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["order-of-calls", "set-left-out", "passed-over-forgotten", "no-look-at-commit"])
def test_a_broken_schema_is_caught(name: str) -> None:
    """A schema that is broken on purpose does not get past the judge."""
    done = torture("--break", name, "--seconds", "5", "--seeds", "20")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
