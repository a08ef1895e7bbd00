"""The packages of pyproject.toml: all that there are, with all their files, under one name, for every tool."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from mypy.main import process_options

from loadtests.bench import uncounted
from loadtests.torture import broken

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"(-P[\"', ]+)?-m[\"', ]+(?:headrace\.|gunicorn\b)")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files(folder: str) -> list[Path]:
    """What lies in a folder of the checkout, relative to the checkout, links followed."""
    found: list[Path] = []
    for path in sorted((ROOT / folder).iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            found += files(str(path.relative_to(ROOT)))
        elif path.is_file():
            found.append(path.relative_to(ROOT))
    return found


def test_every_package_is_named() -> None:
    """Each folder with a Python file is a package of the wheel."""
    folders = {".".join(path.parent.parts) for path in files("headrace") if path.suffix == ".py"}
    assert sorted(folders) == SETUPTOOLS["packages"]


def test_every_other_file_is_data() -> None:
    """SQL, Lua, the element and the pages are in the wheel with the packages that read them."""
    patterns = [f"headrace/{pattern}" for pattern in SETUPTOOLS["package-data"]["headrace"]]
    for path in files("headrace"):
        if path.suffix != ".py":
            assert any(fnmatch(str(path), pattern) for pattern in patterns), f"{path} is not in the wheel"


def test_mypy_reads_every_file() -> None:
    """The types of each module are checked, those behind the links headrace/shard and headrace/router too."""
    sources, _ = process_options(["--config-file", str(ROOT / "pyproject.toml")])
    paths = [Path(source.path) for source in sources if source.path]
    read = {path.relative_to(ROOT) for path in paths if path.suffix == ".py"}  # folders of data count as packages, too
    there = {path for folder in ("headrace", "loadtests") for path in files(folder) if path.suffix == ".py"}
    assert read == there


def test_no_process_looks_for_modules_in_its_directory_first() -> None:
    """No command line of ours lets Python look for modules first in the working directory: each has the option -P."""
    commands = 0
    for folder in ("headrace", "shard", "router", "deploy", "docs", "examples", "loadtests", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".yaml", ".service", ".conf"} and "_build" not in path.parts:
                for match in COMMAND.finditer(path.read_text()):
                    assert match[1], f"{path.relative_to(ROOT)}: {match[0]}"
                    commands += 1
    assert commands > 20


@pytest.mark.parametrize("copy", [broken.copy, uncounted.copy], ids=["broken.py", "uncounted.py"])
def test_a_copy_runs_its_own_files(copy: Callable[[Path], None], tmp_path: Path) -> None:
    """A process that is started from the torture's or the bench's changed copy imports the changed files."""
    copy(tmp_path)
    program = "import headrace.errors, headrace.shard.delivery, headrace.router.auth, os\n"
    program += "for each in (headrace.errors, headrace.shard.delivery, headrace.router.auth):\n"
    program += "    print(os.path.realpath(each.__file__))"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [tmp_path / name for name in ("headrace/errors.py", "shard/delivery.py", "router/auth.py")]
    assert ran.stdout.splitlines() == [str(path) for path in expected]
    for name in ("headrace/shard", "headrace/router"):
        assert (tmp_path / name).is_symlink()
