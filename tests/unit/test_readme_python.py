"""The Python of the README can be typed in as it stands: it compiles, and what it takes from headrace is imported."""

import ast
import builtins
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from tests.fixtures import django

README = (Path(__file__).parents[2] / "README.md").read_text()
APPLICATION = {"AsyncSession", "DATABASE_URL", "HttpRequest", "HttpResponse", "Note", "STAFF", "Session", "connection"}
APPLICATION |= {
    "engine",
    "note",
    "order",
    "page",
    "psycopg",
    "render",
    "render_template",
    "request",
    "select",
    "session",
}
APPLICATION |= {"templates", "transaction", "url"}
"""Names that a reader knows for those of the application, of its framework or of its libraries."""


def chapters() -> dict[str, list[str]]:
    """The blocks of Python below each heading of the second level."""
    parts = re.split(r"^## ([^\n]*)$", README, flags=re.MULTILINE)
    blocks = {
        heading: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {heading: found for heading, found in blocks.items() if found}


def parsed(block: str) -> ast.Module:
    """The block, also one that is a part of an asynchronous function."""
    source = "async def block():\n" + "".join(f"    {line}" for line in block.splitlines(keepends=True))
    compile(source, "README.md", "exec")
    return ast.parse(source)


@pytest.mark.parametrize("chapter", chapters())
def test_each_name_is_imported_or_the_applications(chapter: str) -> None:
    """What a block uses of headrace is imported by a block before it in its chapter, and is there."""
    assert django.settings.configured
    known = {"headrace"} | APPLICATION | set(dir(builtins))  # the first chapter with Python imports headrace
    modules = {"headrace"}
    for block in chapters()[chapter]:
        tree = parsed(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)
                known |= {alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                known |= {node.name, *(argument.arg for argument in node.args.args)}
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                known.add(node.id)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert used <= known
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("headrace."):
                owner, _, name = ast.unparse(node).rpartition(".")
                if ast.unparse(node) in modules:
                    importlib.import_module(ast.unparse(node))
                else:
                    assert owner in modules, f"{owner} is not imported"
                    assert hasattr(importlib.import_module(owner), name)


def test_the_first_python_imports_headrace() -> None:
    """Every later block may use the module by its name."""
    assert next(iter(chapters().values()))[0].startswith("import headrace\n")


@pytest.mark.parametrize("name", ["asyncio", "django", "jinja", "sqlalchemy"])
def test_a_module_that_was_not_imported_is_named(name: str) -> None:
    """`import headrace` alone brings none of them; using one says which import is missing."""
    code = f"import headrace\ntry: headrace.{name}.publish\nexcept AttributeError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"headrace.{name} is not imported; write `import headrace.{name}` first\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = headrace.nothing


def test_the_tags_of_django_are_loaded() -> None:
    """The template that the README shows loads the tags that it uses."""
    loaded, used = README.index("{% load headrace %}"), README.index('{% headrace_stream "django:notes" %}')
    assert loaded < used
