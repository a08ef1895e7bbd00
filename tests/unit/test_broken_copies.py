"""The breaks with which the torture is tried: each is still a change of the code as it is."""

import shutil
from pathlib import Path

import pytest

from loadtests.torture.broken import BREAKS, ROOT, Break


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_applies(name: str, tmp_path: Path) -> None:
    """What it replaces stands exactly once in its file, and the result is still a program."""
    broken = BREAKS[name]
    copy = tmp_path / broken.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / broken.file, copy)
    broken.apply(tmp_path)
    changed = copy.read_text()
    assert changed != (ROOT / broken.file).read_text()
    if copy.suffix == ".py":
        compile(changed, str(copy), "exec")


def test_a_break_that_no_longer_applies_is_told(tmp_path: Path) -> None:
    """Where the code has changed, the break says so instead of torturing what is not broken."""
    (tmp_path / "file.py").write_text("one two two")
    Break("file.py", "one", "none").apply(tmp_path)
    for text in ("two", "three"):
        with pytest.raises(LookupError, match=text):
            Break("file.py", text, "none").apply(tmp_path)
