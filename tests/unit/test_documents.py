"""The documents agree with the code, and with each other, where each of them says the same thing in its own words."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.cli import main
from headrace.disconnect import DEFAULT_REASON
from headrace.doctor.postgresql import CONNECTIONS_BESIDE_READERS
from headrace.settings import Settings
from headrace.shard import history
from loadtests.torture import runbook

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DEPLOY = (DOCS / "operate" / "deploy.md").read_text()
HTTP = (DOCS / "reference" / "http.md").read_text()
RUNBOOK = (DOCS / "operate" / "runbook.md").read_text()
SIZING = (DOCS / "operate" / "sizing.md").read_text()
WATCH = (DOCS / "operate" / "watch.md").read_text()
WORDS = dict(enumerate(("eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"), start=8))
SHARD = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "shard").rglob("*.py"))}


def texts(method: str, place: int) -> set[str]:
    """What stands in the source as an argument of every call of the method."""
    found: set[str] = set()
    for tree in SHARD.values():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == method:
                for argument in call.args[place : place + 1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        found.add(argument.value)
    return found


def rows(document: str, heading: str) -> list[str]:
    """The first column of the table that begins with this heading."""
    table = re.split(r"\n(?!\|)", document.partition(f"\n| {heading}")[2], maxsplit=1)[0]
    return re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[1:]


def test_every_reason_of_a_goodbye_is_told() -> None:
    """The HTTP reference lists the reasons with which shards end a connection, the runbook those that they count."""
    said = texts("goodbye", 1) | texts("Stop", 0) | {DEFAULT_REASON}
    assert {"shutdown", "drain", "expired"} < said
    assert {cell.partition("`")[2].partition("`")[0] for cell in rows(HTTP, "reason of a goodbye")} == said
    counted = said | texts("goodbye", 2) | texts("close", 1)
    assert {cell.strip("`") for cell in rows(RUNBOOK, "reason | is")} == counted


def test_the_connections_of_a_shard_are_counted_once() -> None:
    """The doctor counts every session that the source gives a name, and both documents say the same number."""
    names = {name for path in SHARD for name in re.findall(r'f"headrace \{[\w.]+\} (\w+)', path.read_text())}
    # The feed of the operations page, and what reads for all over the bus, are one each of all shards'.
    assert len(names - {"reader", "operations", "history", "herald"}) + history.READERS == CONNECTIONS_BESIDE_READERS
    number = WORDS[Settings().readers + CONNECTIONS_BESIDE_READERS]
    for document in (SIZING, RUNBOOK):
        said = " ".join(document.split())
        assert re.search(
            rf"up to {number} connections[\w ]* \(`HEADRACE_READERS` \+ {CONNECTIONS_BESIDE_READERS}\)", said
        )
    (example,) = re.findall(r"; (\d+) shards need (\d+)$", WATCH, re.MULTILINE)
    assert int(example[1]) == int(example[0]) * (Settings().readers + CONNECTIONS_BESIDE_READERS) + 1


PAGES = [
    *(ROOT / name for name in ("README.md", "deploy/README.md", "loadtests/README.md", "tests/README.md")),
    *sorted(DOCS.rglob("*.md")),
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_and_commands_are_those_that_there_are(path: Path) -> None:
    """Every setting that a document names is one, with the default that it says; every command is one."""
    document = path.read_text()
    settings = {f"HEADRACE_{field.name.upper()}": field for field in fields(Settings)}
    assert set(re.findall(r"HEADRACE_[A-Z_]+", document)) <= settings.keys()
    for name, number, unit in re.findall(r"`(HEADRACE_[A-Z_]+)` \(([\d,]+(?:\.\d+)?)( ms)?\b", document):
        assert float(number.replace(",", "")) / (1000 if unit else 1) == settings[name].default, name
    commands = re.findall(r"(?:`|^\$ |^    |\$\()headrace ([a-z-]+)", document, re.MULTILINE)
    assert set(commands) <= main.commands.keys()


@pytest.mark.parametrize("document", [DEPLOY, RUNBOOK, CliRunner().invoke(main, ["up", "--help"]).output])
def test_where_servers_come_from_is_told(document: str) -> None:
    """The pages on deploying and the help name the extra that brings the servers of `headrace up`."""
    assert "[embedded]" in document


def test_every_path_and_frame_of_http_is_told() -> None:
    """The HTTP reference has a row for every path of the router, apart from those below another, and every sentinel."""
    source = (ROOT / "router" / "app.py").read_text()
    paths = set(re.findall(r'^ *(?:routes\[)?"(/[\w./]*)"\]?(?:: | = )Route\(', source, re.MULTILINE))
    assert {"/healthz", "/publish"} <= paths
    for path in paths:
        assert f"`{path}`" in HTTP or path.startswith(("/ops", "/demo")), path
    frames = (ROOT / "headrace" / "event.py").read_text()
    kinds = set(re.findall(r'_sentinel\("(\w+)"', frames))
    assert len(kinds) == 4
    assert set(re.findall(r"^\| `event: headrace:(\w+)`", HTTP, re.MULTILINE)) == kinds


def test_every_file_to_deploy_with_is_told() -> None:
    """The page in deploy/ lists the files that are there, and the tests that try them."""
    page = (ROOT / "deploy" / "README.md").read_text()
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "deploy").iterdir()} - {"README.md"}
    there = {name for name in there if not name.startswith((".", "__"))}
    named = {name for row in rows(page, "file | goes to") for name in re.findall(r"`([^`]+)`", row)}
    assert named == there


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(path: Path) -> None:
    """Every file of the repository, and every test, that stands in a page as code."""
    text = path.read_text()
    for name in re.findall(r"`((?:headrace|shard|router|tests|deploy|loadtests|docs)/[\w./@-]+)`", text):
        # `make docs` makes the site, which is not part of the repository.
        assert (ROOT / name).exists() or name.startswith("docs/_build/"), name
    for name in re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)`", text):
        assert list((ROOT / "tests").glob(name if "/" in name else f"**/{name}")), name


def test_faults_are_counted_right() -> None:
    """What pages say of how many faults the torture has, and of how many the tests try, is so."""
    faults = runbook.read(RUNBOOK)
    promises, tests = ((ROOT / path).read_text() for path in ("docs/judge/promises.md", "tests/README.md"))
    assert re.findall(r"lists the (\d+) faults", promises) == [str(len(faults))]
    assert re.findall(r"All (\d+),", tests) == [str(len(faults))]
    marked = sum(row.marked for row in faults.values())
    assert f"injects {WORDS[marked]} faults" in " ".join(tests.split())
