"""The operations page against the real thing, in Chromium."""

import itertools
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from headrace.publish import publish
from headrace.tokens import sign
from tests.fixtures.proxy import Proxy
from tests.fixtures.shard import Database
from tests.fixtures.stack import StartStack
from tests.fixtures.up import OPS_TOKEN, Up
from tests.fixtures.waiting import DEADLINE_S, wait_until

STREAMS = 8
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
LOWEST_CONTRAST = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const linear = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = (colour) => {
        const [r, g, b] = channels(colour).map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return /, 0\\)$/.test(colour) && element.parentElement ? behind(element.parentElement) : colour;
    };
    const texts = [...document.querySelectorAll("body *")].filter((element) =>
        element.checkVisibility() && !element.disabled &&
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return Math.min(...texts.map((element) => {
        const style = getComputedStyle(element);
        const front = luminance(element instanceof SVGElement ? style.fill : style.color);
        const back = luminance(behind(element));
        return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    }));
}"""
"""Of all text that is shown, against what is behind it (WCAG 2.2, 1.4.3)."""


@pytest.fixture
def ops_url(running_up: Up) -> str:
    return f"{running_up.ready()}/ops"


@contextmanager
def clients(up: Up, a_stream: int = 3) -> Iterator[None]:
    """Clients of a few streams that are there for the block."""
    with ExitStack() as stack:
        for number in range(STREAMS * a_stream):
            token = sign(f"ops-test:{number % STREAMS}", secrets=[up.environ["HEADRACE_SECRET"]], user=f"user {number}")
            stack.enter_context(urllib.request.urlopen(f"{up.ready()}/streams/{token}", timeout=DEADLINE_S))
        yield


def publish_some(up: Up, rounds: int = 5) -> None:
    with psycopg.connect(up.environ["HEADRACE_DATABASE_URL"], autocommit=True) as connection:
        for number in range(rounds * STREAMS):
            publish(connection, f"ops-test:{number % STREAMS}", "x" * 200)


def status(up: Up) -> dict[str, Any]:
    request = urllib.request.Request(f"{up.ready()}/ops/status", headers={"Authorization": f"Bearer {OPS_TOKEN}"})
    with urllib.request.urlopen(request) as response:
        found: dict[str, Any] = json.load(response)
        return found


def shard(up: Up, id_: str) -> dict[str, Any]:
    (found,) = [shard for shard in status(up)["shards"] if shard["id"] == id_]
    return dict(found)


def sign_in(page: Page, url: str) -> None:
    """Open the page and sign in, with the keyboard alone, until it is live."""
    page.goto(url)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(OPS_TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#feed")).to_have_text("live")


def shown(page: Page, title: str) -> float:
    """The number that a graph shows now, the first of its lines."""
    text = page.locator("figure").filter(has_text=title).locator(".now").inner_text()
    return float(re.match(r"[\d.,]+|–", text).group().replace(",", "").replace("–", "0"))  # type: ignore[union-attr]


def points(page: Page) -> int:
    """How many overviews the line of the connections goes through."""
    line = page.get_by_role("img", name=re.compile("Connections, last five minutes")).locator("path")
    return len(re.findall("[ML]", line.get_attribute("d") or ""))


def test_numbers_and_graphs_follow_what_happens(context: BrowserContext, running_up: Up, ops_url: str) -> None:
    """The numbers change by themselves while clients come and publish; a second window begins with the history."""
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    page.goto(ops_url)
    page.get_by_label("Token").fill("not the token, but long enough")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("HEADRACE_OPS_TOKEN")
    sign_in(page, ops_url)
    expect(page.get_by_role("table", name="Shards").get_by_role("row")).to_have_count(3)
    before = shown(page, "Connections")
    with clients(running_up):

        def busy() -> bool:
            publish_some(running_up)
            return shown(page, "Connections") >= before + 24 and shown(page, "Per second") > 0

        wait_until(busy, "the page shows the clients and their events")
        expect(page.locator("figure").filter(has_text="Latency").locator(".now")).to_contain_text(
            re.compile(r"\d\s*p99")
        )
        wait_until(lambda: points(page) >= 4, "the line has grown")
        second = context.new_page()  # the session is the browser's
        second.goto(ops_url)
        expect(second.locator("#feed")).to_have_text("live")
        wait_until(lambda: points(second) >= 4, "the second window has the history")
    assert not [text for text in refused if "401" not in text]


def test_a_shard_is_drained_and_undrained_with_the_keyboard_alone(
    context: BrowserContext, running_up: Up, ops_url: str
) -> None:
    """The plan is shown first; Escape does nothing; confirmed, the shard is empty and its clients are elsewhere, still
    connected; undrained, it has its slots and its share of them again."""
    page = context.new_page()
    sign_in(page, ops_url)
    with clients(running_up):
        wait_until(lambda: shard(running_up, "n-0")["connections"] > 2, "n-0 has clients")
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="n-0", exact=True))
        button = page.get_by_role("button", name="Drain n-0…")
        dialog = page.get_by_role("dialog", name="Drain n-0")

        tab_to(page, button)
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("row").filter(has_text="n-0").get_by_role("cell").nth(1)).to_have_text("0")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(button).to_be_focused()
        assert shard(running_up, "n-0")["state"] == "up"

        page.keyboard.press("Enter")
        confirm = dialog.get_by_role("button", name="Drain n-0")
        expect(confirm).to_be_enabled()
        tab_to(page, confirm)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Drain n-0: done.")
        expect(row.get_by_role("cell").nth(1)).to_have_text("drained")
        expect(row.get_by_role("cell").nth(2)).to_have_text("0")
        wait_until(lambda: shard(running_up, "n-1")["connections"] >= 24, "n-1 has all clients")

        back = page.get_by_role("button", name="Undrain n-0…")
        tab_to(page, back)
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Undrain n-0")
        confirm = dialog.get_by_role("button", name="Undrain n-0")
        expect(confirm).to_be_enabled()
        tab_to(page, confirm)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Undrain n-0: done.")
        expect(row.get_by_role("cell").nth(1)).to_have_text("up")
        wait_until(lambda: shard(running_up, "n-0")["connections"] > 2, "n-0 has its clients again")
        assert shard(running_up, "n-0")["slots"] > 300
    page.get_by_role("button", name="Rebalance…").click()
    expect(page.get_by_role("dialog", name="Rebalance")).to_contain_text("nothing to move")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_focused()
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus, which is then seen."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            assert target.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
            return
    raise AssertionError(f"{target} cannot be reached with the keyboard")


def test_the_page_fits_phones_and_both_colour_schemes(
    browser: Browser, running_up: Up, ops_url: str, tmp_path: Path
) -> None:
    """Wide and narrow, light and dark: nothing scrolls sideways, all text has contrast; screenshots are for a look."""
    with clients(running_up):
        for scheme, size in itertools.product(SCHEMES, [(1280, 900), (360, 780)]):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce"
            )
            page = context.new_page()
            sign_in(page, ops_url)
            publish_some(running_up)
            wait_until(lambda page=page: points(page) >= 3, "the line has grown")  # type: ignore[misc]
            page.screenshot(path=tmp_path / f"{scheme}-{size[0]}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{size} scrolls sideways"
            assert page.evaluate(LOWEST_CONTRAST) >= 4.5
            page.get_by_role("button", name="Drain n-1…").click()
            expect(page.get_by_role("dialog").get_by_role("row")).to_have_count(3)
            page.screenshot(path=tmp_path / f"{scheme}-{size[0]}-plan.png")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")
            context.close()


def test_the_page_says_what_is_away(
    context: BrowserContext, start_stack: StartStack, database: Database, postgres_proxy: Proxy
) -> None:
    """When shards lose PostgreSQL the page names it, and the error, until it is back; when the stream itself cannot be
    had, the router is asked instead."""
    stack = start_stack(1, ops_token=OPS_TOKEN, listen_database_url=postgres_proxy.url(database.url))
    assert stack.router is not None
    page = context.new_page()
    sign_in(page, f"http://127.0.0.1:{stack.router.port}/ops")
    trouble = page.get_by_role("alert").filter(visible=True)
    expect(trouble).to_have_count(0)
    postgres_proxy.cut()
    expect(trouble).to_contain_text("PostgreSQL is away or refuses, as n1-0 found")
    expect(page.get_by_role("table", name="Last errors")).to_contain_text("n1-0")
    postgres_proxy.resume()
    expect(trouble).to_have_count(0)
    page.route("**/streams/**", lambda route: route.abort())
    page.reload()
    expect(page.locator("#feed")).to_have_text("the stream is silent; asking the router")
    expect(page.get_by_role("table", name="Shards")).to_contain_text("n1-0")
