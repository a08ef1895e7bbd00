"""The tables of the documentation that are made of the code have everything in them, and say something of each."""

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from headrace.cli import main
from headrace.settings import Settings

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "docs" / "_ext"


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, ModuleType]]:
    """The modules that make the tables, as Sphinx finds them."""
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(EXTENSIONS))
    try:
        importlib.import_module("generated")
        yield {name: sys.modules[f"generated.{name}"] for name in ("settings", "commands", "metrics", "sql", "element")}
    finally:
        sys.path.remove(str(EXTENSIONS))


def rows(markdown: str) -> dict[str, list[str]]:
    """The cells of every row whose first cell is code, by that."""
    found = re.findall(r"^\| `([^`]+)` \| (.*) \|$", markdown, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in found}


def test_every_setting_is_told(made: dict[str, ModuleType]) -> None:
    """Each setting has a row with what it does and what is allowed."""
    told = rows(made["settings"].markdown())
    assert list(told) == [f"HEADRACE_{field.name.upper()}" for field in fields(Settings)]
    assert all(len(cells) == 3 and cells[1] and cells[2] for cells in told.values())


def test_every_command_is_told(made: dict[str, ModuleType]) -> None:
    """Each command has a heading and its help with an example."""
    chapters = made["commands"].markdown().split("## headrace ")[1:]
    assert [chapter.split("\n")[0] for chapter in chapters] == sorted(main.commands)
    assert all("Usage: headrace" in chapter and "Example:" in chapter for chapter in chapters)


def test_every_metric_is_told(made: dict[str, ModuleType]) -> None:
    """Every metric that the alerts ask for is in the tables, with what it says."""
    told = {name: text for name, _, _, text in made["metrics"].families()}
    assert all(told.values())
    rules = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bheadrace_\w+", rules)}
    assert asked - {"headrace_scrape_up"} <= told.keys()


def test_every_sql_function_of_a_publisher_is_told(made: dict[str, ModuleType]) -> None:
    """What the publisher's role may call is described, and so is every other function, in a table."""
    sql = made["sql"]
    known = sql.functions()
    assert set(sql.FOR_APPLICATIONS) <= known.keys() & sql.granted()
    assert all(comment for _, _, comment in known.values())
    text = sql.markdown()
    assert all(re.search(rf"(### headrace\.|\| `){name}\b", text) for name in known)


def test_every_event_of_the_element_is_told(made: dict[str, ModuleType]) -> None:
    """The events of the declarations are rows of the table."""
    declared = (ROOT / "headrace" / "static" / "headrace.d.ts").read_text().partition("HeadraceStreamEventMap {")[2]
    names = re.findall(r"^  (\w+): CustomEvent", declared.partition("\n}")[0], re.MULTILINE)
    assert len(names) > 5
    assert set(names) <= rows(made["element"].markdown()).keys()
