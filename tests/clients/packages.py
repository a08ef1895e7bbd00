"""The clients' packages, as `requirements.txt` and `npm/package-lock.json` say, beside this environment."""

import fcntl
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser.npm_packages import INSTALL_S, missing, npm

FOLDER = Path(__file__).parent
REQUIREMENTS = FOLDER / "requirements.txt"
# An environment of their own, as they would bring other versions of what headrace's tests use.
ENVIRONMENT = Path(sys.prefix) / "clients"
NPM = FOLDER / "npm"


@pytest.fixture(scope="session")
def python_packages() -> Path:
    """The interpreter that can import the clients of PyPI. It is kept from run to run, until the file changes."""
    stamp, wanted = ENVIRONMENT / ".headrace-requirements", REQUIREMENTS.read_text()
    with _alone("clients-python"):
        if not stamp.exists() or stamp.read_text() != wanted:
            try:
                venv.create(ENVIRONMENT, clear=True, with_pip=True)
                command = [ENVIRONMENT / "bin" / "pip", "install", "--quiet", "--no-deps", "-r", REQUIREMENTS]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
            except subprocess.SubprocessError as error:
                missing(f"pip could not install the clients: {error} {getattr(error, 'stderr', '')}")
            stamp.write_text(wanted)
    return ENVIRONMENT / "bin" / "python"


@pytest.fixture(scope="session")
def npm_clients(node: None) -> Path:
    """The folder with `node_modules`. It is kept from one run to the next, until the lock file changes."""
    stamp, wanted = NPM / "node_modules" / ".headrace-lock", (NPM / "package-lock.json").read_text()
    with _alone("clients-npm"):
        if not stamp.exists() or stamp.read_text() != wanted:
            try:
                npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=NPM)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                missing(f"npm could not install the clients: {error}")
            stamp.write_text(wanted)
    return NPM


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process of the test run at a time; the others find what it has installed."""
    with (Path(sys.prefix) / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
