"""Every code block of README, the quickstart and the guide is held to the code by a test."""

import ast
import builtins
import importlib
import re
import textwrap

import pytest

from tests.fixtures import django
from tests.fixtures.guide import BLOCKS, DOCS, IN_BROWSER, NO_CODE, PAGES, QUOTED, ROOT, RUN, Block, blocks

APPLICATION = {"AsyncSession", "DATABASE_URL", "HERE", "HttpRequest", "HttpResponse", "Note", "ORIGIN", "Session"}
APPLICATION |= {
    "app",
    "connection",
    "engine",
    "escape",
    "note",
    "page",
    "psycopg",
    "render",
    "render_template",
    "request",
}
APPLICATION |= {"LiveServerTestCase", "SECRET_KEY", "TestCase", "Todo", "TodoList", "TransactionTestCase", "migrations"}
APPLICATION |= {"cls", "re", "self", "todo", "todolist"}
APPLICATION |= {"script", "select", "session", "templates", "transaction", "url", "notes", "html"}
"""Names that a reader knows for those of the application, of its framework or of its libraries."""


def test_every_block_belongs_to_a_test() -> None:
    """A block is quoted from an example, executed, opened in a browser or compiled; there is no other kind."""
    claimed = {*QUOTED, *RUN, *IN_BROWSER}
    assert [str(block) for block in BLOCKS if block not in claimed] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_seen(page: str) -> None:
    """No block escapes the tests by the way in which it is written: as a directive, indented, or in another fence."""
    text = (DOCS / page).read_text()
    fences = re.findall(r"^[ >]*(?:`{3,}|~{3,}|:{3,}).*$", text, re.MULTILINE)
    no_code = [fence.strip("`") for fence in fences if fence.strip("`") in NO_CODE]
    assert len(fences) == 2 * (len(blocks(page)) + len(no_code))
    assert "text" not in no_code or page == "../README.md"
    assert not re.search(r"(?:^|\n)\n {4,}(?![-*\d ])\S.*\n", text), "an indented block"


@pytest.mark.parametrize("block", QUOTED, ids=str)
def test_what_the_guide_quotes_is_in_the_example(block: Block) -> None:
    """Each block that names an example is there, line by line, at some indentation."""
    lines = (ROOT / block.source).read_text().splitlines()
    length = len(block.text.splitlines())
    windows = (textwrap.dedent("\n".join(lines[i : i + length])) for i in range(len(lines)))
    assert block.text.rstrip("\n") in windows


def test_every_example_is_quoted() -> None:
    """No example is without its chapter."""
    quoted = {block.source.split("/")[1] for block in QUOTED}
    examples = [*ROOT.glob("examples/*/app.py"), *ROOT.glob("examples/*/manage.py")]
    assert quoted == {program.parent.name for program in examples}


def parsed(text: str) -> ast.Module:
    """The code of a block, also one that is a part of an asynchronous function."""
    source = "async def block():\n" + "".join(f"    {line}" for line in text.splitlines(keepends=True))
    compile(source, "guide", "exec")
    return ast.parse(source)


@pytest.mark.parametrize("page", PAGES)
def test_each_name_is_imported_or_the_applications(page: str) -> None:
    """What a block of Python uses of headrace is imported by a block before it on its page, and is there."""
    assert django.settings.configured
    known = APPLICATION | set(dir(builtins))
    modules = {"headrace"} if page == "quickstart.md" else set()
    for block in blocks(page):
        if block.language != "python":
            continue
        tree = parsed(block.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
                known |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)
                known |= {alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                known |= {node.name, *(argument.arg for argument in node.args.args)}
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                known.add(node.id)
        quoted = {"headrace"} if block.source else set()
        assert {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} <= known | quoted, str(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("headrace."):
                owner, _, name = ast.unparse(node).rpartition(".")
                if ast.unparse(node) in modules:
                    importlib.import_module(ast.unparse(node))
                else:
                    assert owner in modules or block.source, f"{block}: {owner} is not imported"
                    assert hasattr(importlib.import_module(owner), name)


def test_the_tags_of_django_are_loaded() -> None:
    """The template that the guide shows loads the tags that it uses."""
    page = (DOCS / "guide" / "frameworks.md").read_text()
    assert page.index("{% load headrace %}") < page.index('{% headrace_stream "django:notes" %}')


def test_readme_is_short() -> None:
    """README is an entrance; everything else has its page."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
