"""The npm packages of `tests/browser/npm`, at the versions and hashes of its lock file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parent / "npm"
INSTALLED = DIRECTORY / "node_modules"
INSTALL_S = 180


def npm(*arguments: str, cwd: Path) -> str:
    """Run npm; what it writes to stdout."""
    done = subprocess.run(["npm", *arguments], cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def missing(reason: str) -> None:
    """A missing service skips at home and fails where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node() -> None:
    """Node and npm are here."""
    if not (shutil.which("node") and shutil.which("npm")):
        missing("node and npm are not on PATH; install Debian's packages `nodejs` and `npm`")


@pytest.fixture(scope="session")
def packages(node: None) -> Path:
    """The directory `node_modules`. It is kept from one run to the next, until the lock file changes."""
    lock = (DIRECTORY / "package-lock.json").read_text()
    stamp = INSTALLED / ".headrace-lock"
    if not stamp.exists() or stamp.read_text() != lock:
        try:
            npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=DIRECTORY)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            missing(f"npm could not install the packages: {error}")
        stamp.write_text(lock)
    return INSTALLED
