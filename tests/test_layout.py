"""The shape of the house: who may import whom, that nothing runs in circles, and that what is public is explained."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"headrace": "headrace", "headrace.shard": "shard", "headrace.router": "router"}
"""By import name. The last two are links in the folder headrace, which `rglob` does not follow."""
FORBIDDEN = {
    "headrace": {"gevent", "gunicorn", "headrace.shard", "headrace.router"},
    "headrace.shard": {"headrace.router", "gunicorn"},
    "headrace.router": {"headrace.shard"},
}
MODULES = {
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, folder in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PYTHON = [
    path
    for folder in ("headrace", "shard", "router", "tests", "loadtests", "examples", "deploy")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
NAMED_BY_DJANGO = "headrace.django.migrations."
"""Each of these modules has a class `Migration`, as Django wants it."""
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def _package(module: str) -> str:
    """The innermost package that a module is in."""
    return max((package for package in FOLDERS if f"{module}.".startswith(f"{package}.")), key=len, default=module)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, for type checkers alone or when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module or ""
        else:
            yield from _imports(node)


@pytest.mark.parametrize("module", MODULES)
def test_packages_keep_apart(module: str) -> None:
    """headrace knows nothing of the processes, and these nothing of each other."""
    imported = set(_imports(ast.parse(MODULES[module].read_text())))
    roots = {name.split(".")[0] for name in imported} | {_package(name) for name in imported}
    assert not roots & FORBIDDEN[_package(module)]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_have_one_name(path: Path) -> None:
    """Nothing imports `shard` or `router`, by which a second copy of each module would come into a process."""
    roots = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()))}
    assert not roots & {"shard", "router"}


def test_links_lead_to_the_packages() -> None:
    """`headrace.shard` and `headrace.router` are the folders at the top level, for every tool that reads paths."""
    for package, folder in FOLDERS.items():
        assert list(importlib.import_module(package).__path__) == [str(ROOT.joinpath(*package.split(".")))]
        assert ROOT.joinpath(*package.split(".")).resolve() == ROOT / folder


def test_imports_form_a_ladder() -> None:
    """No module imports, over any number of steps, one that imports it."""
    graph = {
        module: {name for name in _imports(ast.parse(path.read_text())) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    # A package's front gathers its modules for others; they do not import it back.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    """No function imports anything, to dodge a circle or for any other reason."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inside, f"{module}.{node.name} imports inside"


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_explained(module: str) -> None:
    """Every module, public class and public function says what it is for."""
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    assert ast.get_docstring(inner), f"{module}.{node.name}.{inner.name} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_one_noun_one_file(module: str) -> None:
    """No file is a drawer for whatever has no place, and none has outgrown its noun."""
    name = module.split(".")[-1]
    assert name not in {"utils", "common", "helpers", "manager", "base", "misc"}
    assert len(MODULES[module].read_text().splitlines()) <= 400, f"{module} holds more than one noun"


def test_class_names_are_used_once() -> None:
    """No two public classes have one name, so that a name in a message or a traceback leads to one file."""
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if module.startswith(NAMED_BY_DJANGO):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def test_class_names_are_unique() -> None:
    """No two public classes of the product share a name, so that a name in a text or a traceback means one thing."""
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if module.startswith(NAMED_BY_DJANGO):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_patching_happens_in_one_place() -> None:
    """Only the shard's entry patches the standard library; in the router gunicorn's worker does."""
    patching = [module for module, path in MODULES.items() if "monkey.patch" in path.read_text()]
    assert patching == ["headrace.shard.__main__"]


def test_environment_is_read_in_entry_points_only() -> None:
    """Settings come from one place; modules do not look into the environment by themselves."""
    reading = {module for module, path in MODULES.items() if "os.environ" in path.read_text()}
    assert reading <= {
        "headrace.signing",
        "headrace.cli.command",
        "headrace.cli.up_and_scale",
        "headrace.shard.__main__",
        "headrace.router.app",
        "headrace.router.gunicorn_conf",
    }


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_say_what_they_show(path: Path) -> None:
    """Every test's docstring is the behaviour that it shows."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{path.name}::{node.name} has no docstring"


@pytest.mark.parametrize("page", ["docs/judge/promises.md", "tests/README.md"])
def test_named_tests_exist(page: str) -> None:
    """Each test that a page names is there: a file, or one test in it."""
    named = re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)(?:::(test_\w+))?`", (ROOT / page).read_text())
    assert len(named) > 10
    for file, test in named:
        matches = list((ROOT / "tests").glob(file if "/" in file else f"**/{file}"))
        assert matches, f"{page} names {file}, which is not there"
        assert not test or f"\ndef {test}(" in matches[0].read_text(), (
            f"{page} names {file}::{test}, which is not there"
        )


def test_frameworks_are_imported_by_their_own_modules_only() -> None:
    """Importing headrace brings along none of the libraries that applications use it with."""
    libraries = {"django", "sqlalchemy", "psycopg", "pytest", "jinja2", "flask", "starlette", "fastapi", "asyncpg"}
    modules = "headrace, headrace.asyncio, headrace.jinja, headrace.testing"
    program = f"import sys, {modules}; print(*{libraries | {'psycopg2'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT) == "\n"
