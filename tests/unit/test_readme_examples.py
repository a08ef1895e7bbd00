"""The code in the README is that of the examples, which run."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUOTED = re.findall(r"<!-- from (examples/\S+) -->\n```\w+\n(.*?)```\n", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(("file", "code"), QUOTED, ids=[file for file, _ in QUOTED])
def test_what_the_readme_quotes_is_in_the_example(file: str, code: str) -> None:
    """Each block that names an example is there, line by line, at some indentation."""
    lines = (ROOT / file).read_text().splitlines()
    length = len(code.splitlines())
    windows = (textwrap.dedent("\n".join(lines[i : i + length])) for i in range(len(lines)))
    assert code.rstrip("\n") in windows


def test_every_example_is_quoted() -> None:
    """No example is without its chapter."""
    assert {file.split("/")[1] for file, _ in QUOTED} == {app.parent.name for app in ROOT.glob("examples/*/app.py")}
