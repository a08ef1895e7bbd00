"""The example applications, each started with its one command, in Chromium."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import TIMEOUT_MS
from tests.fixtures.ports import free_port
from tests.fixtures.up import ENVIRON, READY_S, STOP_S, searchable_directory
from tests.fixtures.waiting import wait_until

ROOT = Path(__file__).parents[2]
NAMES = ("sql", "django", "flask", "fastapi")

# The element is defined, and so connects, only when the test says so.
HOLD = """
    const define = customElements.define.bind(customElements);
    customElements.define = (...element) => { window.release = () => define(...element); };
"""


class Examples:
    """All examples in one directory. The first brings headrace along, the others find it there. Owned by the module."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._headrace_port = free_port()
        self.addresses = {name: f"http://127.0.0.1:{free_port()}" for name in NAMES}
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._lines: dict[str, list[str]] = {}

    def start(self) -> None:
        first, *others = NAMES
        self._start(first)
        self._ready(first)
        for name in others:
            self._start(name)
        for name in others:
            self._ready(name)

    def stop(self) -> None:
        """End all with Ctrl-C, the one that brought headrace last."""
        for name in reversed(NAMES):
            if name in self._running:
                process = self._running.pop(name)
                process.send_signal(signal.SIGINT)
                process.wait(STOP_S)

    def elsewhere(self, name: str) -> subprocess.CompletedProcess[str]:
        """One of them at a port that the headrace here was not told of, until it ends."""
        return subprocess.run(
            [sys.executable, "-m", "examples", name, "--port", str(free_port())],
            cwd=self._directory,
            env=ENVIRON | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=READY_S,
        )

    def _start(self, name: str) -> None:
        port = self.addresses[name].rpartition(":")[2]
        environ = {"PYTHONPATH": str(ROOT), "HEADRACE_ALLOWED_ORIGINS": ",".join(self.addresses.values())}
        process = subprocess.Popen(
            [sys.executable, "-m", "examples", name, "--port", port, "--headrace-port", str(self._headrace_port)],
            cwd=self._directory,
            env=ENVIRON | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running[name] = process
        said = self._lines[name] = []

        def read() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                said.extend(lines)

        threading.Thread(target=read, daemon=True).start()

    def _ready(self, name: str) -> None:
        def ready() -> bool:
            assert self._running[name].poll() is None, "".join(self._lines[name])
            return f"example ready {self.addresses[name]}\n" in self._lines[name]

        wait_until(ready, f"the example {name} is ready", READY_S)


@pytest.fixture(scope="module")
def examples() -> Iterator[Examples]:
    if os.environ.get("CI") is None and shutil.which("chromium") is None:
        pytest.skip("chromium is not on PATH")
    directory = searchable_directory()
    examples = Examples(directory)
    try:
        examples.start()
        yield examples
    finally:
        examples.stop()
        shutil.rmtree(directory)


def open_window(context: BrowserContext, address: str) -> Page:
    """A window whose stream is live."""
    page = context.new_page()
    page.goto(address)
    expect(page.locator("headrace-stream[state=open]")).to_have_count(1)
    return page


def add(context: BrowserContext, address: str, text: str, button: str = "Add") -> None:
    """Post a note from a window of its own, which stays open."""
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Note").fill(text)
    with page.expect_response(lambda response: response.request.method == "POST"):
        page.get_by_role("button", name=button, exact=True).click()
    expect(page.get_by_label("Note")).to_have_value("")


def shows(page: Page, *texts: str) -> None:
    """The last notes are these, and none of them is there twice."""
    expect(page.locator("li").last).to_have_text(texts[-1])
    items = page.locator("li").all_inner_texts()
    assert items[-len(texts) :] == list(texts)
    assert [items.count(text) for text in texts] == [1] * len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_appears_in_two_windows(context: BrowserContext, examples: Examples, name: str) -> None:
    """A note appears in both open windows once; one that is rolled back in neither, nor after a reload."""
    address = examples.addresses[name]
    windows = [open_window(context, address) for _ in range(2)]
    add(context, address, "first <b>")
    add(context, address, "rolled back", "Add, then roll back")
    add(context, address, "second")
    for window in windows:
        shows(window, "first <b>", "second")
        assert window.get_by_text("rolled back", exact=True).count() == 0
        window.reload()
        shows(window, "first <b>", "second")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_published_before_the_page_connects_appears_once(
    context: BrowserContext, examples: Examples, name: str
) -> None:
    """A note that commits after the page was rendered and before its stream connects is there once."""
    address = examples.addresses[name]
    add(context, address, "on the page")
    late = context.new_page()
    late.add_init_script(HOLD)
    late.goto(address)
    shows(late, "on the page")
    add(context, address, "in between")
    late.wait_for_function("!!window.release")
    assert late.get_by_text("in between").count() == 0
    late.evaluate("release()")
    shows(late, "on the page", "in between")


def test_an_example_says_that_headrace_would_refuse_its_pages(examples: Examples) -> None:
    """At an origin that the running headrace does not allow it ends, with what to do, instead of a dead page."""
    done = examples.elsewhere("sql")
    assert done.returncode == 1
    assert "HEADRACE_ALLOWED_ORIGINS=http://127.0.0.1:" in done.stderr


def test_nothing_is_missed_over_a_restart_of_everything(browser: Browser, examples: Examples) -> None:
    """After headrace, its servers and the applications have all restarted, open windows show what came since, once."""
    # Each in a profile of its own, as browsers open six connections to a host at most.
    profiles = [browser.new_context() for _ in NAMES]
    for profile in profiles:
        profile.set_default_timeout(TIMEOUT_MS)
    windows = {
        name: [open_window(profile, address) for _ in range(2)]
        for profile, (name, address) in zip(profiles, examples.addresses.items(), strict=True)
    }
    for profile, address in zip(profiles, examples.addresses.values(), strict=True):
        add(profile, address, "before the restart")
    examples.stop()
    examples.start()
    for profile, (name, address) in zip(profiles, examples.addresses.items(), strict=True):
        add(profile, address, "after the restart")
        for window in windows[name]:
            shows(window, "before the restart", "after the restart")
    for profile in profiles:
        profile.close()
