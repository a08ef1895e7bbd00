"""CONTRIBUTING.md, SECURITY.md and .editorconfig say what holds: files, make targets, settings, whitespace."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from headrace.settings import Settings

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAPERS = {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "SECURITY.md")}
PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|sql|lua|yaml|json|toml|lock)))`")


@pytest.mark.parametrize("name", PAPERS)
def test_named_files_exist(name: str) -> None:
    """A path is from the top of the repository; in a table's row also from the folder that begins the row."""
    found = 0
    for line in PAPERS[name].splitlines():
        folder = re.match(r"\| `([\w/.]+/)`", line)
        for path in PATH.findall(line):
            found += 1
            places = [ROOT, *([ROOT / folder[1]] if folder else [])]
            assert any((place / path).exists() for place in places), f"{name} names {path}, which is not there"
    assert found > 5


def test_named_targets_exist() -> None:
    """CONTRIBUTING names every target that `make help` shows, and no other."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w.%-]+):(?!=)", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make ([\w.-]+)", CONTRIBUTING, re.MULTILINE))
    examples = {f"example-{path.name}" for path in (ROOT / "examples").iterdir() if path.is_dir()}
    assert named & {"test", "up", "check"}
    for target in named:
        assert target in targets or target in examples, f"there is no `make {target}`"
    told = set(re.findall(r"^\t@echo \"make ([\w.-]+)", makefile, re.MULTILINE))
    assert {target for target in told if not target.startswith("example-")} <= named


def test_named_settings_exist() -> None:
    """SECURITY names settings as they are called."""
    names = {f"HEADRACE_{field.name.upper()}" for field in fields(Settings)}
    assert set(re.findall(r"HEADRACE_[A-Z_]+\b", PAPERS["SECURITY.md"])) <= names


def test_folders_of_the_house_are_told() -> None:
    """CONTRIBUTING has a line for every folder with code, apart from those whose line is their parent's."""
    told = set(re.findall(r"`([\w/]+)/`", CONTRIBUTING))
    for top in ("headrace", "router", "shard"):
        for folder in (ROOT / top, *(ROOT / top).rglob("*/")):
            if not folder.is_symlink() and any(folder.glob("*.py")):
                assert str(folder.relative_to(ROOT)).removesuffix("/templatetags") in told


def test_files_are_as_editors_are_told() -> None:
    """Text files end with a line break, no line of theirs ends with a blank, and only the Makefile has tabs."""
    if not (ROOT / ".git").exists() or not (git := shutil.which("git")):
        pytest.skip("this is no clone, or there is no git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.exists() or path.suffix in (".lock", ".png", ".whl"):
            continue
        text = path.read_text()
        assert not text or text.endswith("\n"), f"{name} has no line break at its end"
        assert "\r" not in text, f"{name} has carriage returns"
        assert name == "Makefile" or "\t" not in text, f"{name} has a tab"
        for number, line in enumerate(text.split("\n"), 1):
            assert line == line.rstrip(" "), f"{name}:{number} ends with a blank"
