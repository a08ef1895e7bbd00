"""Chromium for the browser tests: one process for each file, a fresh profile for each test."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.fixtures.scripted_sse import ScriptedServer, scripted_server
from tests.fixtures.up import Up

# Without the last four, Chromium calls home, which a closed network answers slowly.
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 60_000
"""Of all waiting. The element itself waits up to 8 s between two tries, and a busy machine takes its time."""
# One for all files: each that sets its own sets it for the others of the process.
expect.set_options(timeout=TIMEOUT_MS)
STATIC = Path(__file__).parents[2] / "headrace" / "static"


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Chromium's program."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not on PATH; install Debian's package `chromium`")
        pytest.skip("chromium is not on PATH")
    return path


# Not for the session: while it is there, playwright's event loop runs in this thread, and Django refuses to work.
@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path,
            args=ARGUMENTS,
            timeout=2 * TIMEOUT_MS,
            ignore_default_args=["--disable-back-forward-cache"],  # a visitor's browser has it
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile: its pages share storage, locks and connections, as windows of one user do."""
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """Scripts to be played, and the element's module."""
    module = (STATIC / "headrace.js").read_bytes()
    with scripted_server({"/headrace.js": ("text/javascript", module)}) as server:
        yield server


class Listener:
    """A `<headrace-stream>` in a page, and a record of the DOM events that it dispatched."""

    START = """async (attributes) => {
        await customElements.whenDefined("headrace-stream");
        const element = document.createElement("headrace-stream");
        window.seen = [];
        const names = ["event", "cursor", "gap", "reset", "goodbye", "open", "error", "message", "order"];
        for (const name of names) {
            element.addEventListener(name, ({ type, detail }) => window.seen.push({ name: type, ...detail }));
        }
        for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
        document.body.append(element);
        window.element = element;
    }"""

    def __init__(self, page: Page, url: str, attributes: dict[str, str]) -> None:
        self.page = page
        page.goto(url)
        page.evaluate(self.START, attributes)

    def named(self, *names: str) -> list[dict[str, object]]:
        return [each for each in self.page.evaluate("seen") if each["name"] in names]

    def data(self) -> list[object]:
        return [each["data"] for each in self.named("event")]

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression over `seen` and `element` is true."""
        self.page.wait_for_function(condition, timeout=TIMEOUT_MS)

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, object]]:
        """Wait for so many DOM events of this name; return all of them."""
        self.wait(f"seen.filter(({{ name }}) => name === {name!r}).length >= {count}")
        return self.named(name)


Listen = Callable[..., Listener]


@pytest.fixture
def listen(context: BrowserContext, server: ScriptedServer) -> Listen:
    """Open a page with one element with these attributes; `with_credentials` means `with-credentials`."""

    def listen(**attributes: str) -> Listener:
        named = {name.replace("_", "-"): value for name, value in attributes.items()}
        return Listener(context.new_page(), server.url, named)

    return listen


@pytest.fixture
def demo_url(running_up: Up) -> str:
    """The demo page of the real thing."""
    return f"{running_up.ready()}/"
