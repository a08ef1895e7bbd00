"""What is published: the wheel, the sdist and an editable installation, each with the same files under one name."""

import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.fixtures.wheel import build

VERSION = metadata.version("headrace")
DIST_INFO = f"headrace-{VERSION}.dist-info"

pytestmark = pytest.mark.slow


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel; the list of their hashes is one of them, and its order says nothing."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    record = f"{DIST_INFO}/RECORD"
    return found | {record: b"\n".join(sorted(found[record].splitlines()))}


def test_the_wheel_has_one_name(wheel: Path) -> None:
    """An installation puts `headrace` alone into site-packages, with the shard's and the router's modules in it."""
    files = contents(wheel)
    assert {name.partition("/")[0] for name in files} == {"headrace", DIST_INFO}
    assert files[f"{DIST_INFO}/top_level.txt"] == b"headrace\n"
    assert {"headrace/shard/__main__.py", "headrace/router/app.py", "headrace/node/lua/keys.lua"} <= files.keys()


def test_the_wheel_describes_itself(wheel: Path) -> None:
    """Its licence, its addresses, and one requirement without an extra."""
    files = contents(wheel)
    assert b"Permission is hereby granted" in files[f"{DIST_INFO}/licenses/LICENSE"]
    lines = files[f"{DIST_INFO}/METADATA"].decode().splitlines()
    assert "License-Expression: MIT" in lines
    assert "Project-URL: Source, https://github.com/headrace/headrace" in lines
    required = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert required == ["Requires-Dist: itsdangerous<3,>=2.2"]


def test_the_sdist_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    """A wheel that is built from the sdist, in which links have become folders, has the same files."""
    (tmp_path / "sdist").mkdir()
    (tmp_path / "wheel").mkdir()
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    assert contents(build("wheel", tmp_path / f"headrace-{VERSION}", tmp_path / "wheel")) == contents(wheel)


def test_an_editable_installation_is_a_path(source: Path, tmp_path: Path) -> None:
    """It is one line in a .pth file, the checkout's, which every tool that reads paths follows."""
    with zipfile.ZipFile(build("editable", source, tmp_path)) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".pth")]
        assert archive.read(path).decode().strip() == str(source)
        assert not [name for name in archive.namelist() if name.endswith(".py")]
