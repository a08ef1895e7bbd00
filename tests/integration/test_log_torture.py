"""loadtests/log_torture: a short run breaks no promise of the log, and every schema broken on purpose is caught."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.log_torture.broken_schemas import BREAKS

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


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_schema_is_caught(name: str) -> None:
    """A schema that is broken on purpose does not get past the judge."""
    done = torture("--break", name, "--seconds", "5", "--seeds", "8")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
