"""How the browser element comes back: after outages, in old browsers, and from a module that is loaded oddly."""

import json

import pytest
from playwright.sync_api import BrowserContext

from tests.browser.conftest import Listen, Listener
from tests.browser.feed import RETRY, Feed
from tests.fixtures.scripted_sse import Connection, ScriptedServer, plays, refuses
from tests.fixtures.waiting import DEADLINE_S

S = "/streams/7.token"
# What Chrome and Edge 90, Firefox 90 and Safari 15 do not all have, as far as the element or its like might use it.
NEWER = {
    "AbortSignal.any": "delete AbortSignal.any; delete AbortSignal.timeout; delete AbortSignal.abort",
    "DecompressionStream": "delete globalThis.DecompressionStream",
    "BroadcastChannel": "delete globalThis.BroadcastChannel",
    "Web Locks": "delete Navigator.prototype.locks",
    "navigation timing": "performance.getEntriesByType = () => []",
    "newer methods": """for (const [owner, names] of [
            [Array.prototype, ["at", "findLast", "toSorted", "toSpliced", "with"]],
            [String.prototype, ["at", "isWellFormed", "toWellFormed"]],
            [Object, ["hasOwn", "groupBy"]],
            [Promise, ["withResolvers", "try"]],
            [ReadableStream.prototype, [Symbol.asyncIterator, "values"]],
            [ReadableStream, ["from"]],
            [URL, ["canParse", "parse"]],
            [Set.prototype, ["union", "difference"]],
            [globalThis, ["structuredClone", "Iterator", "scheduler", "navigation"]],
        ]) for (const name of names) delete owner[name]""",
}


def says_away(connection: Connection) -> None:
    """What deploy/nginx.conf and deploy/haproxy.cfg answer while no host does."""
    connection.respond(200, b"retry: 5\n", Content_Type="text/event-stream; charset=utf-8")


def test_a_proxys_word_that_nobody_is_there_is_an_outage(server: ScriptedServer, listen: Listen):
    """200 with `retry:` alone is told as an error 503, never as `open`, and the element goes on at its cursor."""
    server.script(S, plays(RETRY, b"id: 1\ndata: x\n\n", hold=False), says_away, says_away)
    server.script(S, plays(b"id: 2\ndata: y\n\n"))
    listener = listen(src=f"{S}?since=0")
    listener.wait_for("event", 2)
    assert [server.next_request(S).since for _ in range(4)] == ["0", "1", "1", "1"]
    assert [each.get("status") for each in listener.named("open", "error")] == [None, 200, 503, 503, None]


def test_tries_never_lie_far_apart(server: ScriptedServer, context: BrowserContext):
    """However long an outage lasts, a page is back within 8 s of its end, and the first tries are quick."""
    context.add_init_script(
        """Math.random = () => 1;
        const later = setTimeout;
        globalThis.setTimeout = (then, ms) => later(then, ms <= 8_000 ? 1 : ms);"""
    )
    server.script(S, *[refuses(502)] * 12, plays(b"id: 1\ndata: x\n\n"))
    listener = Listener(context.new_page(), server.url, {"src": S})
    listener.wait_for("event")
    assert [each["wait"] for each in listener.named("error")] == [1000, 2000, 4000] + [8000] * 9


def test_tries_are_as_far_apart_as_the_server_asks(server: ScriptedServer, listen: Listen):
    """A `retry:` above what the element itself waits at most is kept to, and Retry-After up to an hour."""
    server.script(S, plays(b"retry: 60000\n\n", hold=False))
    server.script("/streams/8.other", refuses(503, Retry_After="Wed, 21 Oct 2099 07:28:00 GMT"))
    (error,) = listen(src=S).wait_for("error")
    assert isinstance(error["wait"], float)
    assert error["wait"] <= 60_000
    (error,) = listen(src="/streams/8.other").wait_for("error")
    assert isinstance(error["wait"], float)
    assert 3_600_000 <= error["wait"] <= 3_601_000


def test_retry_of_nothing_is_no_rush(server: ScriptedServer, listen: Listen):
    """`retry: 0` does not make the element ask without a pause for ever: the pauses grow."""
    server.script(S, plays(b"retry: 0\n\n", hold=False), *[refuses(502)] * 6, plays(b"id: 1\ndata: x\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    assert all(isinstance(each["wait"], float) and each["wait"] > 0 for each in listener.named("error"))


def test_a_page_that_is_shown_again_tries_at_once(server: ScriptedServer, listen: Listen):
    """Who comes back to a tab does not look at a wait that began while it was hidden."""
    server.script(S, refuses(503, Retry_After="600"), plays(b"id: 1\ndata: x\n\n"))
    listener = listen(src=S)
    listener.wait_for("error")
    listener.page.evaluate("void document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))")
    listener.wait_for("event")


def test_offline_is_told_at_once_and_online_ends_the_wait(server: ScriptedServer, listen: Listen):
    """Offline the element says so and keeps trying; when the network is back it connects at once and misses nothing."""
    feed = Feed("one")
    server.script(S, *[feed.script] * 9)
    listener = listen(src=f"{S}?since=all")
    listener.wait_for("event")
    listener.page.context.set_offline(True)
    listener.page.evaluate(
        "void dispatchEvent(new Event('offline'))"
    )  # not every Chromium says so when it is made offline
    listener.wait("element.state === 'waiting' && element.matches('[error]')")
    feed.publish("two")
    listener.page.context.set_offline(False)
    listener.page.evaluate("void dispatchEvent(new Event('online'))")
    listener.wait_for("event", 2)
    assert listener.data() == ["one", "two"]


def test_online_ends_a_long_wait(server: ScriptedServer, listen: Listen):
    """A wait of minutes, asked for by Retry-After, ends when the network comes back, perhaps another one."""
    server.script(S, refuses(503, Retry_After="600"), plays(b"id: 1\ndata: x\n\n"))
    listener = listen(src=S)
    listener.wait_for("error")
    listener.page.evaluate("void dispatchEvent(new Event('online'))")
    listener.wait_for("event")


def test_an_answer_that_does_not_begin_is_given_up(server: ScriptedServer, context: BrowserContext):
    """A server that takes a request and says nothing costs 15 s, not the time that a stream may be silent."""
    context.add_init_script(
        """const later = setTimeout;
        globalThis.setTimeout = (then, ms) => later(then, ms === 15_000 ? 100 : ms);"""
    )
    server.script(S, lambda connection: connection.hold(), *[plays(b"id: 1\ndata: x\n\n")] * 9)
    listener = Listener(context.new_page(), server.url, {"src": S})
    listener.wait_for("event")
    assert listener.named("error")[0]["status"] == 0
    assert server.next_request(S).gone.wait(DEADLINE_S)


def test_an_address_that_is_none_is_told(server: ScriptedServer, listen: Listen):
    """A refresh that answers with what is no URL ends in errors that say so, not in silence."""
    server.script(S, refuses(403))
    server.script("/token", lambda connection: connection.respond(200, b'{"src": "http://["}'))
    listener = listen(src=S, refresh="/token")
    (error,) = listener.wait_for("error")
    assert error["status"] == 0
    listener.wait("element.state === 'waiting'")


def test_what_nobody_foresaw_is_told(server: ScriptedServer, context: BrowserContext):
    """An exception within the element's own work closes it with an error; it does not stay `connecting`."""
    context.add_init_script("performance.getEntriesByType = () => { throw new Error('forbidden') }")
    server.script(S, plays(b"id: 1\ndata: x\n\n"))
    listener = Listener(context.new_page(), server.url, {"src": S})
    (error,) = listener.wait_for("error")
    assert error["wait"] is None
    assert listener.page.evaluate("element.state") == "closed"


@pytest.mark.parametrize("removed", [[name] for name in NEWER] + [list(NEWER)], ids=[*NEWER, "all"])
def test_it_works_in_the_oldest_browsers(server: ScriptedServer, context: BrowserContext, removed: list[str]):
    """Without what browsers of 2021 lack, two sharing tabs get every event once, through a cut and a reload."""
    for name in removed:
        context.add_init_script(NEWER[name])
    feed = Feed("a")
    server.script(S, plays(RETRY, b"id: 1\ndata: a\n\n", hold=False), *[feed.script] * 20)
    attributes = {"src": f"{S}?since=0", "share": "", "streams": "chat"}
    tabs = [Listener(context.new_page(), server.url, attributes | {"share": "all"}) for _ in range(2)]
    feed.publish("b")
    for tab in tabs:
        tab.wait_for("event", 2)
    tabs[0].page.reload()
    tabs[0].page.evaluate(Listener.START, {"src": f"{S}?since=2", "share": "all", "streams": "chat"})
    feed.publish("c")
    assert [each["data"] for each in tabs[0].wait_for("event")] == ["c"]
    tabs[1].wait_for("event", 3)
    assert tabs[1].data() == ["a", "b", "c"]
    assert {each["stream"] for each in tabs[1].named("event")} == {"chat"}


@pytest.mark.parametrize("rewound", ["5", "5.9"])
def test_sentinels_may_carry_the_cursor(server: ScriptedServer, listen: Listen, rewound: str):
    """An id in a gap or a reset is where the element goes on, lower ids too; types it does not know are passed over."""
    rest = rewound[1:]
    gap = json.dumps({"stream": "a", "missed_from": 3, "missed_to": 9})
    server.script(
        S,
        plays(RETRY, f"id: 9{rest}\nevent: headrace:gap\ndata: {gap}\n\n".encode(), hold=False),
        plays(f'id: {rewound}\nevent: headrace:reset\ndata: {{"stream":"a","head":5}}\n\n'.encode(), hold=False),
        plays(f"id: 7{rest}\nevent: headrace:cursor\ndata: {{}}\n\n".encode(), hold=False),
        plays(
            f"id: 8{rest}{rest and '/0'}\ndata: x\n\n".encode(), b'event: headrace:goodbye\ndata: {"reason":"r"}\n\n'
        ),
    )
    listener = listen(src=f"{S}?since=2{rest}")
    listener.wait_for("goodbye")
    assert [server.next_request(S).since for _ in range(4)] == [f"2{rest}", f"9{rest}", rewound, f"7{rest}"]
    told = listener.named("gap", "reset", "goodbye", "event")
    assert [each["name"] for each in told] == ["gap", "reset", "event", "goodbye"]
    assert listener.page.evaluate("element.lastEventId") == f"8{rest}"


def test_a_second_copy_of_the_module_is_the_first(server: ScriptedServer, listen: Listen):
    """A page that loads the module twice has one element, which both export, and no error."""
    server.script(S, plays(b"id: 1\ndata: x\n\n"))
    listener = listen(src=S)
    assert listener.page.evaluate(
        """async () => {
            const [one, two] = await Promise.all([import("/headrace.js"), import("/headrace.js?copy")]);
            return one !== two && one.HeadraceStream === two.HeadraceStream && element instanceof two.HeadraceStream;
        }"""
    )
    listener.wait_for("event")


def test_a_worker_can_import_it(server: ScriptedServer, listen: Listen):
    """Code that pages share with a worker may import the module there: it defines nothing, and does not throw."""
    server.files["/worker.js"] = (
        "text/javascript",
        b'import { HeadraceStream } from "/headrace.js"; postMessage(typeof HeadraceStream);',
    )
    page = listen().page
    answer = """() => new Promise((resolve, reject) => {
        const worker = new Worker("/worker.js", { type: "module" });
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = reject;
    })"""
    assert page.evaluate(answer) == "function"
