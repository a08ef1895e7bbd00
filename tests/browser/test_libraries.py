"""Turbo and htmx as npm has them, fed from streams, in Chromium."""

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.feed import Feed
from tests.fixtures.scripted_sse import ScriptedServer, plays, refuses

S = "/streams/7.token"
FILES = {
    "/turbo.js": "@hotwired/turbo/dist/turbo.es2017-umd.js",
    "/htmx.js": "htmx.org/dist/htmx.js",
    "/sse.js": "htmx-ext-sse/dist/sse.js",
    "/htmx4.js": "htmx4/dist/htmx.js",
    "/hx-sse.js": "htmx4/dist/ext/hx-sse.js",
}


@pytest.fixture
def site(server: ScriptedServer, packages: Path) -> ScriptedServer:
    """The scripted server with the libraries' files."""
    for path, file in FILES.items():
        server.files[path] = ("text/javascript", (packages / file).read_bytes())
    return server


def open_page(site: ScriptedServer, context: BrowserContext, head: str, body: str) -> Page:
    site.files["/page"] = ("text/html", f"<!doctype html><html><head>{head}</head><body>{body}</body></html>".encode())
    page = context.new_page()
    page.goto(f"{site.url}/page")
    return page


def turbo_append(text: str) -> str:
    return f'<turbo-stream action="append" target="log"><template><li>{text}</li></template></turbo-stream>'


TURBO = '<script src="/turbo.js" defer></script><script type="module" src="/headrace.js"></script>'
TURBO_BODY = f'<ol id="log"><li>a</li></ol><headrace-stream src="{S}?since=1" turbo></headrace-stream>'


def test_turbo_performs_what_a_stream_brings(site: ScriptedServer, context: BrowserContext):
    """Each `<turbo-stream>` payload is performed once, in order: append, update, remove."""
    feed = Feed(turbo_append("a"), turbo_append("b"))
    site.script(S, *[feed.script] * 9)
    page = open_page(site, context, TURBO, TURBO_BODY)
    feed.publish(
        turbo_append("c") + turbo_append("d"),
        '<turbo-stream action="update" targets="li:first-child"><template><b>A</b></template></turbo-stream>',
        '<turbo-stream action="remove" targets="li:nth-child(2)"></turbo-stream>',
    )
    expect(page.locator("li")).to_have_text(["A", "c", "d"])
    expect(page.locator("li b")).to_have_count(1)
    expect(page.locator("turbo-stream")).to_have_count(0)


def test_turbo_that_loads_late_misses_nothing(site: ScriptedServer, context: BrowserContext):
    """Events that come before Turbo has loaded are performed when it has, before later ones."""
    feed = Feed(turbo_append("a"), turbo_append("b"), turbo_append("c"))
    site.script(S, *[feed.script] * 9)
    head = '<script type="module" src="/headrace.js"></script>'
    page = open_page(site, context, head, TURBO_BODY)
    expect(page.locator("turbo-stream")).to_have_count(2)
    page.add_script_tag(url="/turbo.js")
    feed.publish(turbo_append("d"))
    expect(page.locator("li")).to_have_text(["a", "b", "c", "d"])


def test_turbos_snapshot_of_a_page_goes_on_where_it_was(site: ScriptedServer, context: BrowserContext):
    """A page that Turbo restores from its cache, without asking the server, shows each event once."""
    feed = Feed(turbo_append("a"))
    site.script(S, *[feed.script] * 9)
    site.files["/other"] = ("text/html", f"<!doctype html><html><head>{TURBO}</head><body>other</body></html>".encode())
    page = open_page(site, context, TURBO, TURBO_BODY + '<a href="/other">away</a>')
    feed.publish(turbo_append("b"))
    expect(page.locator("li")).to_have_text(["a", "b"])
    page.evaluate("window.same = true")
    page.get_by_role("link").click()
    expect(page.locator("body")).to_have_text("other")
    feed.publish(turbo_append("c"))
    page.evaluate("history.back()")
    expect(page.locator("li")).to_have_text(["a", "b", "c"])
    feed.publish(turbo_append("d"))
    expect(page.locator("li")).to_have_text(["a", "b", "c", "d"])
    assert page.evaluate("window.same"), "the page was loaded again, so Turbo's cache was not used"


@pytest.mark.parametrize("shown", [2, 4], ids=["behind", "ahead"])
def test_turbos_morph_to_a_new_rendering_begins_as_rendered(site: ScriptedServer, context: BrowserContext, shown: int):
    """When Turbo morphs the page into the server's latest rendering, the stream goes on from that one's content."""
    feed = Feed(turbo_append("a"))
    site.script(S, *[feed.script] * 9)
    head = f'<meta name="turbo-refresh-method" content="morph">{TURBO}'
    page = open_page(site, context, head, TURBO_BODY)
    feed.publish(turbo_append("b"), turbo_append("c"))
    expect(page.locator("li")).to_have_text(["a", "b", "c"])
    if shown == 4:
        # Committed while nobody hears of it.
        feed.log.append(turbo_append("d"))
    items = "".join(f"<li>{each}</li>" for each in "abcd"[:shown])
    body = TURBO_BODY.replace("<li>a</li>", items).replace("since=1", f"since={shown}")
    site.files["/page"] = ("text/html", f"<!doctype html><html><head>{head}</head><body>{body}</body></html>".encode())
    page.evaluate("window.same = document.querySelector('ol'); Turbo.session.refresh(location.href)")
    feed.publish(turbo_append("e"))
    expect(page.locator("li")).to_have_text(["a", "b", "c", *(["d"] if shown == 4 else []), "e"])
    assert page.evaluate("same === document.querySelector('ol')"), "the page was replaced, not morphed"


HTMX = '<script src="/htmx.js"></script><script src="/sse.js"></script>'


def test_htmx_follows_a_stream_unaided(site: ScriptedServer, context: BrowserContext):
    """htmx's sse extension swaps events in by type and triggers requests; when the server breaks off it resumes."""
    types = {1: "note", 2: "", 3: "note"}
    frames = [
        f"id: {id_}\n{f'event: {type_}' if type_ else ': untyped'}\ndata: <li>{id_}</li>\n\n".encode()
        for id_, type_ in types.items()
    ]
    site.script(S, plays(b"retry: 5\n\n", *frames[:2], hold=False), plays(frames[2]))
    site.files["/fragment"] = ("text/html", b"<b>fetched</b>")
    body = f"""<div hx-ext="sse" sse-connect="{S}?since=0">
        <ol sse-swap="note" hx-swap="beforeend"></ol>
        <p sse-swap="message"></p>
        <div hx-get="/fragment" hx-trigger="sse:note once"></div>
    </div>"""
    page = open_page(site, context, HTMX, body)
    expect(page.locator("ol li")).to_have_text(["1", "3"])
    expect(page.locator("p li")).to_have_text("2")
    expect(page.locator("b")).to_have_text("fetched")
    first, second = site.next_request(S), site.next_request(S)
    assert (first.since, second.headers["last-event-id"]) == ("0", "2")


def test_htmx_4_follows_a_stream_unaided(site: ScriptedServer, context: BrowserContext):
    """The sse extension of htmx 4 swaps in what has no type of its own, and resumes also after a refusal."""
    site.script(
        S,
        plays(b"id: 1\ndata: <li>1</li>\n\n", b"id: 2\nevent: note\ndata: x\n\n", hold=False),
        refuses(503),
        plays(b"id: 3\ndata: <li>3</li>\n\n"),
    )
    body = f"""<ol hx-sse:connect="{S}?since=0" hx-swap="beforeend"></ol><p></p><script>
        document.querySelector("ol").addEventListener("note", ({{ detail }}) =>
            document.querySelector("p").append(detail.data));
    </script>"""
    page = open_page(site, context, '<script src="/htmx4.js"></script><script src="/hx-sse.js"></script>', body)
    expect(page.locator("li")).to_have_text(["1", "3"])
    expect(page.locator("p")).to_have_text("x")
    assert [site.next_request(S).headers.get("last-event-id") for _ in range(3)] == [None, "2", "2"]


def test_htmx_with_the_element_outlives_refusals(site: ScriptedServer, context: BrowserContext):
    """Where an EventSource gives up, the element goes on, and htmx swaps in and requests what it is told to."""
    site.script(
        S,
        plays(b"retry: 5\n\n", b"id: 1\ndata: <li>1</li>\n\n", hold=False),
        refuses(503),
        plays(b"id: 2\ndata: <li hx-get='/fragment' hx-trigger='load'>2</li>\n\n"),
    )
    site.files["/fragment"] = ("text/html", b"<b>fetched</b>")
    script = """<script type="module">
        import "/headrace.js";
        document.querySelector("headrace-stream").addEventListener("event", ({ detail }) =>
            htmx.swap("#log", detail.data, { swapStyle: "beforeend" }));
    </script>"""
    body = f'<ol id="log"></ol><headrace-stream src="{S}?since=0"></headrace-stream>{script}'
    page = open_page(site, context, '<script src="/htmx.js"></script>', body)
    expect(page.locator("li")).to_have_text(["1", "fetched"])
    assert [site.next_request(S).since for _ in range(3)] == ["0", "1", "1"]
