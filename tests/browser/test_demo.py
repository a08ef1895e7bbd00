"""The demo page against the real thing, in Chromium."""

import re
from pathlib import Path

from playwright.sync_api import APIResponse, BrowserContext, Page, Route, expect

from tests.fixtures.waiting import wait_until

PHONE = {"width": 390, "height": 844}


def open_demo(context: BrowserContext, demo_url: str) -> Page:
    """A window with the demo, its three streams live."""
    page = context.new_page()
    page.goto(demo_url)
    expect(page.locator(".wire[data-state=open]")).to_have_count(3)
    return page


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


def test_a_message_appears_in_both_windows_once_and_in_order(context: BrowserContext, demo_url: str):
    """What one window posts appears in both, once, in the same order, as the text it is."""
    first, second = open_demo(context, demo_url), open_demo(context, demo_url)
    markup = "<img src=x onerror=alert(1)> & <b>bold</b>"
    for page, text in [(first, "in-order one"), (second, "in-order two"), (first, f"in-order {markup}")]:
        say(page, text)
    for page in (first, second):
        messages = page.locator("#chat-log li p").filter(has_text="in-order")
        expect(messages).to_have_text(["in-order one", "in-order two", f"in-order {markup}"])
    assert first.locator("#chat-log img").count() == 0


def test_a_like_counts_once_in_every_window(context: BrowserContext, demo_url: str):
    """Each press of the button adds one to the number in both windows."""
    first, second = open_demo(context, demo_url), open_demo(context, demo_url)
    expect(first.locator("#likes-count")).to_have_text(re.compile(r"^\d+$"))
    before = int(first.locator("#likes-count").inner_text())
    for page in (first, second, first):
        page.get_by_role("button", name="Like", exact=True).click()
    for page in (first, second):
        expect(page.locator("#likes-count")).to_have_text(str(before + 3))


def test_a_reload_shows_the_same_state(context: BrowserContext, demo_url: str):
    """Messages, notes where they were moved, and likes are the same after a reload."""
    page = open_demo(context, demo_url)
    say(page, "before the reload")
    page.get_by_label("New note").fill("a note that moves")
    page.get_by_role("button", name="Add note").click()
    page.get_by_role("button", name="Move to Doing: a note that moves").click()
    moved = page.get_by_role("list", name="Doing").get_by_text("a note that moves", exact=True)
    expect(moved).to_have_count(1)
    page.get_by_role("button", name="Like", exact=True).click()
    expect(page.locator("#likes-wire")).to_contain_text("round trip")
    states = ["#chat-log li p", "#columns li", "#likes-count"]
    before = [page.locator(each).all_inner_texts() for each in states]
    page.reload()
    for each, texts in zip(states, before, strict=True):
        expect(page.locator(each)).to_have_text([re.compile(re.escape(text.split("\n")[0])) for text in texts])
    expect(moved).to_have_count(1)


def test_the_board_can_be_used_with_the_keyboard(context: BrowserContext, demo_url: str):
    """A note is added, moved twice and removed without a pointer; the focus stays with the note."""
    page = open_demo(context, demo_url)
    page.get_by_label("New note").press_sequentially("by keyboard")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Move to Doing: by keyboard").press("Enter")
    expect(page.get_by_role("button", name="Move to Done: by keyboard")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("list", name="Done").get_by_text("by keyboard")).to_have_count(1)
    page.get_by_role("button", name="Remove: by keyboard").press("Enter")
    expect(page.get_by_text("by keyboard", exact=True)).to_have_count(0)


def test_a_late_answer_does_not_take_the_focus(context: BrowserContext, demo_url: str):
    """When the answer to a post comes after its event, the focus stays where the visitor has put it by then."""
    page = open_demo(context, demo_url)
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/demo/publish", lambda route: held.append((route, route.fetch())))
    page.get_by_label("New note").press_sequentially("answered late")
    page.keyboard.press("Enter")
    button = page.get_by_role("button", name="Move to Doing: answered late")
    button.focus()
    # The event may be here before the answer is; a round trip, in which playwright hears of it.
    wait_until(lambda: page.evaluate("1") and held, "the answer has come")
    for route, response in held:
        route.fulfill(response=response)
    expect(page.get_by_label("New note")).to_have_value("")
    expect(button).to_be_focused()


def test_the_page_fits_wide_and_narrow_windows(context: BrowserContext, demo_url: str, tmp_path: Path):
    """Neither a desktop nor a phone window scrolls sideways; screenshots are kept for a look."""
    page = open_demo(context, demo_url)
    say(page, "w" * 300)
    expect(page.locator("#chat-log")).to_contain_text("w" * 300)
    for name, size in [("wide", {"width": 1280, "height": 900}), ("narrow", PHONE)]:
        page.set_viewport_size(size)
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
