"""The browser element, and a plain EventSource, against the real thing: PostgreSQL, shards and router, in Chromium."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import BrowserContext, Page, Route

from headrace.stream import slot
from headrace.tokens import sign
from tests.browser.conftest import TIMEOUT_MS
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import LOCAL, Database, Shard, tcp_sockets
from tests.fixtures.stack import Stack
from tests.fixtures.up import Up, searchable_directory
from tests.fixtures.waiting import wait_until

RECORD = """
    window.seen = [];
    const record = (name) => (event) => seen.push({ name, ...event.detail });
    for (const element of document.querySelectorAll("headrace-stream")) {
        for (const name of ["event", "gap", "reset"]) element.addEventListener(name, record(name));
    }
"""


def serve_page(context: BrowserContext, origin: str, render: Callable[[], str]) -> str:
    """Have the browser find a page with the element's module beside the real streams; return its address."""

    def fulfill(route: Route) -> None:
        script = f"<script type='module'>import '/headrace.js'; {RECORD}</script>"
        route.fulfill(body=f"<!doctype html>{render()}{script}", content_type="text/html; charset=utf-8")

    context.route(f"{origin}/page", fulfill)
    return f"{origin}/page"


def open_page(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    page.wait_for_function(
        "[...document.querySelectorAll('headrace-stream')].every((each) => each.lastEventId)", timeout=TIMEOUT_MS
    )
    return page


def element(path: str, **attributes: str) -> str:
    written = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<headrace-stream src="{path}"{written}></headrace-stream>'


def wait_for_events(page: Page, count: int) -> list[dict[str, Any]]:
    """Wait for so many events, at least; return all that there are."""
    page.wait_for_function(
        "n => seen.filter(({ name }) => name === 'event').length >= n", arg=count, timeout=TIMEOUT_MS
    )
    return [each for each in page.evaluate("seen") if each["name"] == "event"]


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    """The database of the stack: each test has streams of its own."""
    database = Database(module_database_url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def stack(database: Database) -> Iterator[Stack]:
    """Two shards behind a router, which ask clients to come back soon."""
    redis = RedisServer()
    redis.start()
    stack = Stack(database, redis, 2, retry_ms=50)
    try:
        yield stack.start()
    finally:
        stack.remove()
        redis.remove()


def origin(stack: Stack) -> str:
    assert stack.router is not None
    return f"http://127.0.0.1:{stack.router.port}"


def browsers(stack: Stack, shard: Shard) -> int:
    """How many connections a shard holds that came to the router's port."""
    assert stack.router is not None
    return tcp_sockets(shard.pid, LOCAL, stack.router.port)


def test_six_streams_on_one_page(stack: Stack, database: Database, context: BrowserContext):
    """Six elements, each with its stream, and six streams of one element: every event once, with its stream and id."""
    names = [f"six:{n}" for n in range(6)]
    for layout in (names, [names]):
        tags = "".join(element(stack.path(*([each] if isinstance(each, str) else each))) for each in layout)
        page = open_page(context, serve_page(context, origin(stack), lambda tags=tags: tags))  # type: ignore[misc]
        before = {name: database.head(name) for name in names}
        for number in range(3):
            for name in names:
                database.publish(name, f"{name} {number}")
        seen = wait_for_events(page, 18)
        for name in names:
            assert [(e["id"], e["data"]) for e in seen if e["stream"] == name] == [
                (str(before[name] + 1 + number), f"{name} {number}") for number in range(3)
            ]
        page.close()


EVENT_SOURCE = """url => {
    window.heard = [];
    window.opened = 0;
    window.source = new EventSource(url);
    source.addEventListener("open", () => opened++);
    source.addEventListener("message", ({ data, lastEventId }) => heard.push([data, lastEventId]));
}"""


def test_a_plain_event_source_follows_sixty_four_streams(stack: Stack, database: Database, context: BrowserContext):
    """Streams of many slots and both shards on one EventSource: through a killed shard each event arrives once."""
    names = [f"many {n} ü" for n in range(64)]
    assert len({slot(name) for name in names}) > 50
    page = context.new_page()
    page.goto(f"{origin(stack)}/healthz")
    page.evaluate(EVENT_SOURCE, stack.path(*names, since="all"))
    page.wait_for_function("opened === 1", timeout=TIMEOUT_MS)

    def publish(text: str) -> None:
        for name in names:
            database.publish(name, f"{name}|{text}")

    def wait_for(count: int) -> list[tuple[str, str]]:
        page.wait_for_function("n => heard.length >= n", arg=count, timeout=TIMEOUT_MS)
        return [tuple(each) for each in page.evaluate("heard")]

    publish("first")
    wait_for(64)

    def holders() -> list[Shard]:
        return [shard for shard in stack.shards if browsers(stack, shard)]

    # What an earlier test's pages had may be closed a moment later.
    (holder,) = wait_until(lambda: (found := holders()) and len(found) == 1 and found, "one shard has the page") or []
    holder.kill()
    holder.launch()
    publish("second")
    page.wait_for_function("opened === 2", timeout=TIMEOUT_MS)
    publish("third")
    heard = wait_for(3 * 64)
    assert len(heard) == 3 * 64
    cursor = [0] * 64
    for data, last_id in heard:
        ids, _, index = last_id.partition("/")
        cursor[int(index)] += 1
        assert list(map(int, ids.split("."))) == cursor
        name, text = data.split("|")
        assert (name, text) == (names[int(index)], ["first", "second", "third"][cursor[int(index)] - 1])


def test_gap_and_reset_are_told_for_the_streams_that_they_are_of(
    stack: Stack, database: Database, context: BrowserContext
):
    """Of three streams of one connection one has a gap and one is reset; each is named, and the third just goes on."""
    for name in ("pruned", "whole", "restored"):
        database.publish_count(name, 5)
    database.trim("pruned", 2)
    tag = element(stack.path("pruned", "whole", "restored", since="1.3.99"))
    page = open_page(context, serve_page(context, origin(stack), lambda: tag))
    page.wait_for_function("seen.some(({ name }) => name === 'reset')", timeout=TIMEOUT_MS)
    database.publish("restored", "after")
    page.wait_for_function("seen.length >= 7", timeout=TIMEOUT_MS)
    seen = page.evaluate("seen")
    assert sorted((each for each in seen if each["name"] != "event"), key=lambda each: each["name"]) == [
        {"name": "gap", "stream": "pruned", "missed_from": 2, "missed_to": 3},
        {"name": "reset", "stream": "restored", "head": 5},
    ]
    events = {(each["stream"], each["id"], each["data"]) for each in seen if each["name"] == "event"}
    assert events == {
        ("pruned", "4", "4"),
        ("pruned", "5", "5"),
        ("whole", "4", "4"),
        ("whole", "5", "5"),
        ("restored", "6", "after"),
    }
    assert len(seen) == 7
    assert page.locator("headrace-stream[gap][reset]").count() == 1


def test_a_token_that_expires_is_renewed(stack: Stack, database: Database, context: BrowserContext):
    """When its token's time is over the element asks `refresh` for another and goes on; without it, it is closed."""
    tags = "".join(
        element(stack.path("brief", since=0, ttl_s=1), **given) for given in ({"refresh": "/stream-url"}, {})
    )
    context.route(
        f"{origin(stack)}/stream-url", lambda route: route.fulfill(json={"src": stack.path("brief", since="now")})
    )
    page = open_page(context, serve_page(context, origin(stack), lambda: tags))
    page.wait_for_function("document.querySelector('headrace-stream[state=closed]')", timeout=TIMEOUT_MS)
    database.publish("brief", "later")
    assert [each["data"] for each in wait_for_events(page, 1)] == ["later"]
    assert page.locator("headrace-stream[refresh][state=open]").count() == 1


@contextmanager
def publishing(database: Database, stream: str) -> Iterator[None]:
    """Publish numbers, from 1, all the while."""
    done = threading.Event()

    def publish() -> None:
        with psycopg.connect(database.url, autocommit=True) as connection:
            number = 0
            while not done.wait(0.005):
                number += 1
                connection.execute("select headrace.publish(%s, %s)", [stream, str(number)])

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


APPEND = """<script>
    addEventListener("DOMContentLoaded", () => document.querySelector("headrace-stream").addEventListener(
        "event", ({ detail }) => document.querySelector("p").append(` ${detail.data}`)));
</script>"""


def test_a_page_reloaded_under_load_equals_the_log(stack: Stack, database: Database, context: BrowserContext):
    """Reloaded again and again while events are committed, the page with its stream shows each once, in order."""

    def render() -> str:
        with psycopg.connect(database.url) as connection:
            head = connection.execute("select headrace.head('page')").fetchone()
        assert head is not None
        shown = " ".join(map(str, range(1, head[0] + 1)))
        return f"{APPEND}<p>{shown}</p>{element(stack.path('page', since=head[0]))}"

    page = context.new_page()
    url = serve_page(context, origin(stack), render)
    with publishing(database, "page"):
        for _ in range(6):
            page.goto(url) if page.url == "about:blank" else page.reload()
            wait_for_events(page, 20)
    head = database.head("page")
    page.wait_for_function(
        "id => document.querySelector('headrace-stream').lastEventId === id", arg=str(head), timeout=TIMEOUT_MS
    )
    assert page.locator("p").inner_text().split() == [str(number) for number in range(1, head + 1)]


def test_tabs_share_while_their_leaders_come_and_go(stack: Stack, database: Database, context: BrowserContext):
    """Tabs of one user hold one connection between them; whichever closes, those that stay see every event once."""
    tag = element(stack.path("shared", since=0, user="ada"), share="")
    url = serve_page(context, origin(stack), lambda: tag)
    with publishing(database, "shared"):
        tabs = [open_page(context, url)]
        for _ in range(3):
            tabs.append(open_page(context, url))
            wait_for_events(tabs[-1], 30)
            tabs.pop(0).close()
        tabs.append(open_page(context, url))
        for tab in tabs:
            wait_for_events(tab, 60)
    head = database.head("shared")
    for tab in tabs:
        seen = wait_for_events(tab, head)
        assert [int(each["id"]) for each in seen] == list(range(1, head + 1))
    wait_until(lambda: sum(browsers(stack, shard) for shard in stack.shards) == 1, "the tabs have one connection")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where an `up` that is restarted has its data."""
    path = searchable_directory()
    yield path
    shutil.rmtree(path)


def test_a_restart_of_everything_is_a_pause(directory: Path, context: BrowserContext):
    """The server is stopped and started again, database and all: elements, old and reloaded, miss nothing."""
    up = Up(directory, "--port", "0", "--shards", "1", environ={"HEADRACE_RETRY_MS": "50"})
    try:
        address = up.ready()
        secrets = [up.environ["HEADRACE_SECRET"]]
        tag = element(f"/streams/{sign('news', secrets=secrets)}")
        page = open_page(context, serve_page(context, address, lambda: tag))

        def publish(text: str) -> None:
            with psycopg.connect(up.environ["HEADRACE_DATABASE_URL"]) as connection:
                connection.execute("select headrace.publish('news', %s)", [text])

        publish("before")
        wait_for_events(page, 1)
        up.end()
        page.wait_for_function("document.querySelector('headrace-stream[state=waiting]')", timeout=TIMEOUT_MS)
        up.close()
        up = Up(directory, "--port", address.rsplit(":", 1)[1], "--shards", "1", environ={"HEADRACE_RETRY_MS": "50"})
        up.ready()
        publish("after")
        assert [each["data"] for each in wait_for_events(page, 2)] == ["before", "after"]
    finally:
        up.close()
