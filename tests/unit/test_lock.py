"""The lock files: what they pin is what pyproject.toml allows, of everything that it asks for, by hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {"requirements.lock": ("dev",), "deploy/requirements.lock": ("server",)}


def pinned(lock: str) -> dict[str, set[Version]]:
    """The versions of each package: several where a newer one does not run on every Python."""
    text = (ROOT / lock).read_text()
    pattern = r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)(?: ;.*?)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+$"
    found: dict[str, set[Version]] = {}
    for name, version in (pins := re.findall(pattern, text, re.MULTILINE)):
        found.setdefault(canonicalize_name(name), set()).add(Version(version))
    assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)), "some package has no hash"
    return found


def asked(requirements: list[str]) -> list[Requirement]:
    """These requirements, those of our own extras in place of their names."""
    found: list[Requirement] = []
    for requirement in map(Requirement, requirements):
        if requirement.name != PROJECT["name"]:
            found.append(requirement)
        for extra in requirement.extras if requirement.name == PROJECT["name"] else ():
            found += asked(PROJECT["optional-dependencies"][extra])
    return found


@pytest.mark.parametrize(("lock", "extras"), LOCKS.items())
def test_it_satisfies_what_the_project_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    """Each requirement has a version that it allows: after a change in pyproject.toml, `make lock` sees to it."""
    versions = pinned(lock)
    for requirement in asked([*PROJECT["dependencies"], *(f"headrace[{extra}]" for extra in extras)]):
        found = versions.get(canonicalize_name(requirement.name))
        assert found, f"{requirement} is not in {lock}: run `make lock`"
        for version in found:
            assert requirement.specifier.contains(version), f"{lock} has {requirement.name} {version}: run `make lock`"


def test_the_image_has_what_the_tests_have() -> None:
    """The image's versions are among those of the other lock."""
    tested = pinned("requirements.lock")
    for name, versions in pinned("deploy/requirements.lock").items():
        assert versions <= tested[name], f"{name}: run `make lock`"


def test_the_image_and_make_take_nothing_else() -> None:
    """Both install by hash."""
    assert (
        '"--require-hashes", "--wheel-dir", "/wheels", "--requirement"' in (ROOT / "deploy/Containerfile").read_text()
    )
    assert "--require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()
