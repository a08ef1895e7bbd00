"""The code of the README's chapter on the element, as it stands there, on real pages and a real stream."""

import re
from functools import partial
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, Route, expect

import headrace
from tests.browser.test_package import compile_typescript
from tests.fixtures.shard import Database
from tests.fixtures.stack import StartStack

README = (Path(__file__).parents[2] / "README.md").read_text()
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


def blocks(language: str, heading: str) -> list[str]:
    """The code of a language below a heading, up to the next of the same level or above."""
    level = heading.split()[0]
    _, found, rest = README.partition(f"\n{heading}\n")
    assert found, heading
    chapter = re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", chapter, re.DOTALL | re.MULTILINE)


def test_the_pages_of_the_readme_work(
    start_stack: StartStack, database: Database, context: BrowserContext, packages: Path
):
    """Each page gets the event that is there and the one that comes, once; so do all of them at the end."""
    stack = start_stack(1)
    assert stack.router is not None
    origin = f"http://127.0.0.1:{stack.router.port}"
    for name, file in LIBRARIES.items():
        context.route(f"{origin}/{name}", partial(Route.fulfill, path=packages / file))

    def open_page(html: str, head: str = "") -> Page:
        body = f"<!doctype html>{head}{html.replace('{{ stream_url }}', stack.path(STREAM, since=0))}"
        context.route(f"{origin}/page", partial(Route.fulfill, body=body, content_type="text/html"))
        page = context.new_page()
        page.goto(f"{origin}/page")
        context.unroute(f"{origin}/page")
        return page

    database.publish(STREAM, "<li>one</li>")
    plain = open_page(blocks("html", "## The browser element")[0])
    (turbo,) = blocks("html", "### Turbo")
    turbo_page = open_page(turbo, TURBO)
    htmx_blocks = blocks("html", "### htmx")
    htmx_pages = list(map(open_page, htmx_blocks, [HTMX_2, HTMX_4, HTMX_2]))
    (publish,) = blocks("python", "### Turbo")
    exec(publish, {"headrace": headrace, "connection": database.connection})
    expect(plain.locator("#orders li")).to_have_text([f"{STREAM} 1: <li>one</li>", re.compile("2: <turbo-stream")])
    expect(turbo_page.locator("#messages li")).to_have_text(["Hello"])
    for page in htmx_pages:
        expect(page.locator("ol > li")).to_have_text(["one"])
        expect(page.locator("ol > turbo-stream")).to_have_count(1)
    assert plain.locator("headrace-stream[state=open]:not([gap])").count() == 1


def test_the_typescript_of_the_readme_is_right(packages: Path, tmp_path: Path):
    """The compiler, strict, has nothing to say."""
    (source,) = blocks("ts", "### npm and TypeScript")
    assert compile_typescript(packages, tmp_path, source) == ""


def test_the_readme_names_every_attribute_and_event():
    """The tables are of what the module reads, sets and dispatches."""
    module = (Path(headrace.__file__).parent / "static" / "headrace.js").read_text()
    rows = set(re.findall(r"`([a-z-]+)`", " ".join(re.findall(r"^\| (`[^|]*)\|", README, re.MULTILINE))))
    attributes = set(re.findall(r"Attribute\(\"([a-z-]+)\"", module))
    assert attributes - {"src", "cursor"} <= rows
    for name in re.findall(r"const SHOWN = \[(.*?)\]", module)[0].replace('"', "").split(", "):
        assert name in rows
