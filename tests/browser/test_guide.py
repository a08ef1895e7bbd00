"""The pages and the TypeScript of README and the guide, as they stand there, in Chromium and on a real stream."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

import headrace
from tests.browser.test_package import compile_typescript
from tests.fixtures.guide import DOCS, IN_BROWSER, block
from tests.fixtures.shard import Database
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import wait_until

STREAM = "order:42"
TURBO = """<script type="importmap">{"imports": {"@hotwired/turbo": "/turbo.js"}}</script>"""
HTMX_2 = '<script src="/htmx.js"></script><script src="/sse.js"></script>'
HTMX_4 = '<script src="/htmx4.js"></script><script src="/hx-sse.js"></script>'
LIBRARIES = {
    "turbo.js": "@hotwired/turbo/dist/turbo.es2017-esm.js",
    "htmx.js": "htmx.org/dist/htmx.js",
    "sse.js": "htmx-ext-sse/dist/sse.js",
    "htmx4.js": "htmx4/dist/htmx.js",
    "hx-sse.js": "htmx4/dist/ext/hx-sse.js",
}
README = block("../README.md", "Follow", "html")
PLAIN = block("guide/pages.md", "A stream in a page", "html")
ELEMENT = block("guide/element.md", "The browser element", "html")
ON_TURBO = block("guide/libraries.md", "Turbo", "html")
ON_HTMX = [block("guide/libraries.md", "htmx", "html", number) for number in range(3)]
PRESENCE = block("guide/presence.md", "Presence", "html")
TYPESCRIPT = block("guide/typescript.md", "npm and TypeScript", "ts")

Open = Callable[..., Page]


@pytest.fixture
def open_page(start_stack: StartStack, context: BrowserContext, packages: Path) -> Open:
    """Opens a page of the guide, as it is where an application has put in the address of the streams."""
    stack = start_stack(1)
    assert stack.router is not None
    origin = f"http://127.0.0.1:{stack.router.port}"
    for name, file in LIBRARIES.items():
        context.route(f"{origin}/{name}", partial(Route.fulfill, path=packages / file))

    def open_page(html: str, head: str = "", streams: tuple[str, ...] = (STREAM,), **token: object) -> Page:
        path = stack.path(*streams, since=token.pop("since", 0), **token)
        body = f"<!doctype html>{head}{html.replace('{{ stream_url }}', path)}"
        context.route(f"{origin}/page", partial(Route.fulfill, body=body, content_type="text/html"))
        page = context.new_page()
        page.goto(f"{origin}/page")
        context.unroute(f"{origin}/page")
        return page

    return open_page


def test_every_page_of_the_guide_is_opened() -> None:
    """No block of HTML or TypeScript is without a test in this file."""
    assert {README, PLAIN, ELEMENT, ON_TURBO, *ON_HTMX, PRESENCE, TYPESCRIPT} == set(IN_BROWSER)


def test_plain_pages_show_what_is_published(open_page: Open, database: Database, context: BrowserContext) -> None:
    """README's page shows the last state, and the first page of the guide writes every event to the console."""
    said: list[str] = []
    context.on("console", lambda message: said.append(message.text))
    database.publish(STREAM, "paid")
    readme = open_page(README.text.replace("{{ state }}", "new"))
    open_page(PLAIN.text)
    expect(readme.locator("#state")).to_have_text("paid")
    database.publish(STREAM, "shipped")
    expect(readme.locator("#state")).to_have_text("shipped")
    wait_until(
        lambda: readme.evaluate("true") and [text for text in said if text[0].isdigit()] == ["1 paid", "2 shipped"],
        "the console shows both",
    )


# Five pages: a browser opens six connections to a host, for all tabs together.
def test_pages_show_what_is_published(open_page: Open, database: Database) -> None:
    """Each page gets the event that is there and the one that comes, once; so do all of them at the end."""
    database.publish(STREAM, "<li>one</li>")
    element = open_page(ELEMENT.text)
    turbo = open_page(ON_TURBO.text, TURBO)
    htmx = list(map(open_page, [each.text for each in ON_HTMX], [HTMX_2, HTMX_4, HTMX_2]))
    publish = block("guide/libraries.md", "Turbo", "python")
    exec(publish.text, {"connection": database.connection})
    expect(element.locator("#orders li")).to_have_text([f"{STREAM} 1: <li>one</li>", re.compile("2: <turbo-stream")])
    expect(turbo.locator("#messages li")).to_have_text(["Hello"])
    for page in htmx:
        expect(page.locator("ol > li")).to_have_text(["one"])
        expect(page.locator("ol > turbo-stream")).to_have_count(1)
    assert element.locator("headrace-stream[state=open]:not([gap])").count() == 1


def test_a_page_shows_joins(open_page: Open) -> None:
    """The page of the chapter on presence shows the user who opens it."""
    streams = ("room:1", headrace.presence_stream("room:1"))
    page = open_page(PRESENCE.text, streams=streams, since="0.0", user="ada", presence=["room:1"])
    expect(page.locator("#members li")).to_have_text(["ada joined: 1 here"])


def test_the_typescript_is_right(packages: Path, tmp_path: Path) -> None:
    """The compiler, strict, has nothing to say."""
    assert compile_typescript(packages, tmp_path, TYPESCRIPT.text) == ""


def test_every_attribute_and_event_is_named() -> None:
    """The tables are of what the module reads, sets and dispatches."""
    page = (DOCS / "guide" / "element.md").read_text()
    module = (Path(headrace.__file__).parent / "static" / "headrace.js").read_text()
    rows = set(re.findall(r"`([a-z-]+)`", " ".join(re.findall(r"^\| (`[^|]*)\|", page, re.MULTILINE))))
    attributes = set(re.findall(r"Attribute\(\"([a-z-]+)\"", module))
    assert attributes - {"src", "cursor"} <= rows
    for name in re.findall(r"const SHOWN = \[(.*?)\]", module)[0].replace('"', "").split(", "):
        assert name in rows
