"""Where the browser element begins: whatever becomes of a page, its content and its stream meet, in Chromium.

Each page here shows the data of the stream's events: those that it was rendered with, then those that its element has
appended. Right is what equals the log.
"""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.conftest import ARGUMENTS, TIMEOUT_MS, Listen
from tests.browser.feed import Feed
from tests.fixtures.scripted_sse import ScriptedServer, plays, refuses
from tests.fixtures.waiting import DEADLINE_S, wait_until

S = "/streams/7.token"
OTHER = ("text/html", b"<!doctype html><title>elsewhere</title><a href='/page'>back by a link</a>")


class Site:
    """A page that is rendered from a feed, as an application would, and another to go to."""

    def __init__(self, server: ScriptedServer, context: BrowserContext) -> None:
        self.server = server
        self.context = context
        self.feed = Feed("a", "b")
        server.script(S, *[self.feed.script] * 30)
        server.files["/other"] = OTHER

    def element(self, since: object, **attributes: str) -> str:
        """The tag, with its content before it, as of an id; a word says that the content shows nothing."""
        shown = self.feed.log[: int(str(since))] if str(since).isdigit() else []
        written = "".join(f' {name}="{value}"' for name, value in attributes.items())
        return (
            f"<main><ol>{''.join(f'<li>{each}</li>' for each in shown)}</ol>"
            f'<headrace-stream src="{S}?since={since}"{written}></headrace-stream></main>'
        )

    def render(self, since: object = None, **attributes: str) -> None:
        """Render the page as of an id, the head if None."""
        tag = self.element(len(self.feed.log) if since is None else since, **attributes)
        script = """
        import "/headrace.js";
        window.append = ({ target, detail }) => {
            const item = document.createElement("li");
            item.textContent = detail.data;
            target.previousElementSibling.append(item);
        };
        document.querySelector("headrace-stream").addEventListener("event", append);
        addEventListener("pageshow", ({ persisted }) => (window.persisted = persisted));
        """
        self.server.files["/page"] = (
            "text/html",
            f"<!doctype html>{tag}<script type=module>{script}</script>".encode(),
        )

    def open(self, log: list[str] | None = None) -> Page:
        page = self.context.new_page()
        page.goto(f"{self.server.url}/page")
        self.shows(page, log)
        return page

    def back_from_the_cache(self, page: Page) -> None:
        """Go back in a tab's history, to a page that has not been loaded again."""
        page.evaluate("history.back()")  # playwright's own waits for a load, which does not come
        page.wait_for_function("window.persisted === true", timeout=TIMEOUT_MS)

    def shows(self, page: Page, log: list[str] | None = None) -> None:
        """Wait until the page is connected and has heard of the head; it then shows this log, the whole if None."""
        page.wait_for_function(
            """head => {
                const element = document.querySelector("headrace-stream");
                return element?.state === "open" && element.lastEventId === String(head);
            }""",
            arg=len(self.feed.log),
            timeout=TIMEOUT_MS,
        )
        assert page.locator("li").all_inner_texts() == (self.feed.log if log is None else log)


@pytest.fixture
def site(server: ScriptedServer, context: BrowserContext) -> Site:
    return Site(server, context)


@pytest.mark.parametrize("newer", [True, False], ids=["rendered newer", "from a cache"])
def test_a_reloaded_page_goes_on_from_its_own_content(site: Site, newer: bool):
    """Rendered anew or as old as before, a reloaded page shows each event once: its `since` wins over what was seen."""
    site.render()
    page = site.open()
    site.feed.publish("c")
    site.shows(page)
    if newer:
        site.feed.publish("d")
        site.render()
    page.reload()
    site.feed.publish("e")
    site.shows(page)


def test_a_page_out_of_the_back_forward_cache_goes_on_where_it_was(site: Site):
    """A page that was left and is shown again has no connection meanwhile, and then gets what it has missed, once."""
    site.render()
    page = site.open()
    site.feed.publish("c")
    site.shows(page)
    page.goto(f"{site.server.url}/other")
    assert site.server.next_request(S).gone.wait(DEADLINE_S)
    site.feed.publish("d")
    site.back_from_the_cache(page)
    site.feed.publish("e")
    site.shows(page)


def test_a_sharing_page_can_go_into_the_back_forward_cache(site: Site):
    """Leading other tabs does not keep a page out of the cache: another tab leads meanwhile, and neither misses any."""
    site.render(share="all")
    first = site.open()
    second = site.open()
    first.goto(f"{site.server.url}/other")
    site.feed.publish("c")
    site.shows(second)
    site.back_from_the_cache(first)
    site.feed.publish("d")
    for page in (first, second):
        site.shows(page)


@pytest.mark.parametrize("newer", [True, False], ids=["rendered newer", "from a cache"])
def test_a_duplicated_tab_goes_on_from_its_own_content(site: Site, newer: bool):
    """A duplicate has a copy of the tab's storage but not of its content, which decides."""
    site.render(resume="place")
    page = site.open()
    site.feed.publish("c")
    site.shows(page)
    if newer:
        site.render(resume="place")
    with page.expect_popup() as popup:
        page.evaluate("void open(location.href)")
    site.feed.publish("d")
    site.shows(popup.value)
    site.shows(page)


def test_duplicated_tabs_without_content_part_ways(site: Site):
    """Where the content shows nothing, a duplicate goes on where its original was; then each has its own place."""
    site.render("now", resume="place")
    page = site.open([])
    site.feed.publish("c")
    site.shows(page, ["c"])
    with page.expect_popup() as popup:
        page.evaluate("void open(location.href)")
    duplicate = popup.value
    site.shows(duplicate, [])
    duplicate.goto(f"{site.server.url}/other")
    site.feed.publish("d")
    site.shows(page, ["c", "d"])
    duplicate.goto(f"{site.server.url}/page")
    site.shows(duplicate, ["d"])


def test_a_reload_of_a_page_that_shows_nothing_misses_nothing(site: Site):
    """With `now` a reloaded page gets what it has missed; coming by a link it begins at the head."""
    site.render("now")
    page = site.open([])
    site.feed.publish("c")
    site.shows(page, ["c"])
    # While it is away from the stream, as in a reload that takes its time.
    page.goto(f"{site.server.url}/other")
    site.feed.publish("d")
    page.get_by_role("link").click()
    site.shows(page, [])
    page.evaluate("document.querySelector('headrace-stream').src = 'about:blank'")
    site.feed.publish("e")
    page.reload()
    site.shows(page, ["e"])


def test_a_restored_tab_misses_nothing(site: Site, browser: Browser, browser_path: str, tmp_path: Path):
    """A browser that is closed and started again restores the tab, and the element goes on where the tab was."""

    def start() -> BrowserContext:
        return browser.browser_type.launch_persistent_context(
            tmp_path,
            executable_path=browser_path,
            args=[*ARGUMENTS, "--restore-last-session"],
            timeout=2 * TIMEOUT_MS,
        )

    site.render("now")
    with start() as first:
        first.set_default_timeout(TIMEOUT_MS)
        page = first.new_page()
        page.goto(f"{site.server.url}/page")
        site.shows(page, [])
        site.feed.publish("c")
        site.shows(page, ["c"])
    site.feed.publish("d")
    with start() as second:

        def restored() -> list[Page]:
            second.cookies()  # a round trip, in which playwright hears of new pages
            return [page for page in second.pages if page.url.startswith(site.server.url)]

        site.shows(wait_until(restored, "the tab is restored")[0], ["d"])


def test_a_page_without_resume_begins_at_the_head(site: Site):
    """`resume="off"` has each load begin at src's own `since`."""
    site.render("now", resume="off")
    page = site.open([])
    site.feed.publish("c")
    site.shows(page, ["c"])
    page.reload()
    site.shows(page, [])


def test_a_reload_of_a_page_that_asks_for_all_shows_all(site: Site):
    """With `all` the stream is the content: each load gets it from the beginning, once."""
    site.render("all")
    page = site.open()
    page.reload()
    site.feed.publish("c")
    site.shows(page)


RESTORE = {
    "a clone": "window.kept = document.querySelector('main').cloneNode(true)",
    "its HTML": """window.kept = document.createElement("main");
        kept.innerHTML = document.querySelector("main").innerHTML""",
}


@pytest.mark.parametrize("way", RESTORE.values(), ids=RESTORE)
def test_a_snapshot_of_the_page_goes_on_where_its_content_ends(site: Site, way: str):
    """A copy of content and element, as Turbo and htmx keep of pages, is put back and shows each event once."""
    site.render()
    page = site.open()
    site.feed.publish("c")
    site.shows(page)
    page.evaluate(f"{way}; document.querySelector('main').remove()")
    site.feed.publish("d")
    page.evaluate("""document.body.append(kept);
        document.querySelector("headrace-stream").addEventListener("event", append)""")
    site.feed.publish("e")
    site.shows(page)


@pytest.mark.parametrize("rendered_as_of", [2, 3, 4], ids=["behind", "where it is", "ahead"])
def test_a_morph_to_newly_rendered_html_begins_as_rendered(site: Site, rendered_as_of: int):
    """Attributes and content made those of a new rendering: the element begins there, whatever it had seen."""
    site.render()
    page = site.open()
    site.feed.publish("c", "d")
    site.shows(page)
    page.evaluate(
        """html => {
            const rendered = new DOMParser().parseFromString(html, "text/html").querySelector("main");
            document.querySelector("ol").replaceWith(rendered.querySelector("ol"));
            const [from, to] = [rendered.querySelector("headrace-stream"), document.querySelector("headrace-stream")];
            for (const { name, value } of from.attributes) {
                if (to.getAttribute(name) !== value) to.setAttribute(name, value);
            }
            for (const { name } of [...to.attributes]) from.hasAttribute(name) || to.removeAttribute(name);
        }""",
        site.element(rendered_as_of),
    )
    site.feed.publish("e")
    site.shows(page)


def test_with_resume_a_reload_misses_nothing(server: ScriptedServer, listen: Listen):
    """With `resume` a reloaded page goes on after the last event that it handled, also under a new token."""
    server.script(S, plays(b"id: 8\ndata: x\n\n"))
    server.script("/streams/7.later", plays(b"id: 9\ndata: y\n\n"))
    listener = listen(src=f"{S}?since=now", resume="chat")
    listener.wait_for("event")
    listener.page.reload()
    listener.page.evaluate(listener.START, {"src": "/streams/7.later?since=now", "resume": "chat"})
    listener.wait_for("event")
    assert server.next_request("/streams/7.later").since == "8"


def test_with_resume_the_pages_own_watermark_wins(server: ScriptedServer, listen: Listen):
    """A page rendered as of an id begins after that id, whatever an earlier page of the tab had seen."""
    server.script(S, plays(b"id: 8\ndata: x\n\n"), plays(b"id: 6\ndata: y\n\n"))
    listener = listen(src=f"{S}?since=7", resume="chat")
    listener.wait_for("event")
    listener.page.reload()
    listener.page.evaluate(listener.START, {"src": f"{S}?since=5", "resume": "chat"})
    listener.wait_for("event")
    assert [server.next_request(S).since, server.next_request(S).since] == ["7", "5"]


def test_a_remembered_cursor_that_does_not_fit_is_dropped(server: ScriptedServer, listen: Listen):
    """When the server calls a remembered cursor malformed, the element says `reset` and begins as src says."""
    server.script(S, plays(b"id: 8\ndata: x\n\n"), refuses(400), plays(b"id: 1.1/0\ndata: y\n\n"))
    listener = listen(src=f"{S}?since=all", resume="chat")
    listener.wait_for("event")
    listener.page.reload()
    listener.page.evaluate(listener.START, {"src": f"{S}?since=all", "resume": "chat"})
    listener.wait_for("event")
    assert [server.next_request(S).since for _ in range(3)] == ["all", "8", "all"]
    assert len(listener.named("reset")) == 1
