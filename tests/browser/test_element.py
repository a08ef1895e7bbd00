"""The browser element against scripted answers, in Chromium."""

import hashlib
import threading

import pytest
from playwright.sync_api import BrowserContext

from headrace.tokens import sign
from tests.browser.conftest import Listen
from tests.browser.feed import RETRY, Feed
from tests.fixtures.scripted_sse import Connection, ScriptedServer, plays, refuses
from tests.fixtures.waiting import DEADLINE_S, wait_until

S = "/streams/7.token"


def bytewise(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def test_every_event_becomes_a_dom_event_with_its_data_id_and_type(server: ScriptedServer, listen: Listen):
    """Each server event is dispatched as `event` and under its own type, with data, id and type."""
    server.script(S, plays(RETRY, b"id: 1\ndata: one\n\n", b"id: 2\nevent: order\ndata: shipped\n\n"))
    listener = listen(src=S)
    seen = listener.wait_for("event", 2)
    assert [(e["data"], e["id"], e["type"]) for e in seen] == [("one", "1", "message"), ("shipped", "2", "order")]
    assert [e["data"] for e in listener.named("message")] == ["one"]
    assert [e["data"] for e in listener.named("order")] == ["shipped"]
    assert listener.page.locator("headrace-stream").get_attribute("state") == "open"


def test_a_type_named_like_an_event_of_the_element_is_not_mistaken_for_it(server: ScriptedServer, listen: Listen):
    """A published event whose type is the name of one of the element's own reaches `event` listeners alone."""
    types = ["event", "cursor", "gap", "reset", "goodbye", "open", "error"]
    server.script(S, plays(*(f"id: {n}\nevent: {type_}\ndata: x\n\n".encode() for n, type_ in enumerate(types, 1))))
    listener = listen(src=S)
    assert [each["type"] for each in listener.wait_for("event", len(types))] == types
    assert not [each for each in listener.named(*types[1:]) if "data" in each]
    assert (
        listener.page.evaluate("['gap', 'reset', 'goodbye', 'error'].filter((name) => element.matches(`[${name}]`))")
        == []
    )


def test_bytes_may_be_cut_anywhere(server: ScriptedServer, listen: Listen):
    """Frames cut at every byte, within UTF-8 sequences and CRLF pairs, after a byte order mark, arrive whole."""
    first = "id: 1\rdata: zażółć 🌊\rdata:  two\r\r"
    second = "id: 2\r\nevent: order\r\ndata: \u2028b\r\n\r\n"
    text = f"\ufeffretry: 5\r\n\r\n{first}: note\n{second}"
    server.script(S, plays(*bytewise(text)))
    seen = listen(src=S).wait_for("event", 2)
    assert [(e["id"], e["type"], e["data"]) for e in seen] == [
        ("1", "message", "zażółć 🌊\n two"),
        ("2", "order", "\u2028b"),
    ]


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"data\n\n", [""]),
        (b"data\ndata\n\n", ["\n"]),
        (b"data:  two spaces\n\n", [" two spaces"]),
        (b"data:no space\n\n", ["no space"]),
        (b"event: order\n\ndata: typeless\n\n", ["typeless"]),
        (b"data: a: b\nunknown: x\n\n", ["a: b"]),
        (b": comment\n\n", []),
    ],
)
def test_fields_are_read_as_the_standard_says(
    server: ScriptedServer, listen: Listen, frame: bytes, expected: list[str]
):
    """Empty data, spaces, colons, comments and unknown fields are treated as in WHATWG HTML, 9.2.6."""
    server.script(S, plays(frame, b"id: 9\ndata: end\n\n"))
    listener = listen(src=S)
    listener.wait("element.lastEventId === '9' && seen.some(({ data }) => data === 'end')")
    assert listener.data() == [*expected, "end"]


def test_a_large_payload_arrives_unchanged(server: ScriptedServer, listen: Listen):
    """A payload of 1 MB in lines of many lengths is what was sent."""
    lines = ["é" * (i * 8 % 3000) for i in range(350)]
    payload = "\n".join(lines)
    assert len(payload.encode()) > 900_000
    frame = "id: 1\n" + "".join(f"data: {line}\n" for line in lines) + "\n"
    server.script(S, plays(frame.encode()))
    (event,) = listen(src=S).wait_for("event")
    assert hashlib.sha256(str(event["data"]).encode()).digest() == hashlib.sha256(payload.encode()).digest()


def test_after_a_break_in_a_frame_it_resumes_at_the_last_whole_event(server: ScriptedServer, listen: Listen):
    """A connection that ends within a frame resumes after the last whole one; nothing is lost or repeated."""
    server.script(
        S,
        plays(RETRY, b"id: 1\ndata: one\n\n", b"id: 2\ndata: tw", hold=False),
        plays(b"id: 1\n\n", b"id: 2\ndata: two\n\n"),
    )
    listener = listen(src=f"{S}?since=all")
    listener.wait_for("event", 2)
    assert server.next_request(S).since == "all"
    assert server.next_request(S).since == "1"
    assert listener.data() == ["one", "two"]


def test_an_id_without_data_moves_the_cursor(server: ScriptedServer, listen: Listen):
    """A frame of an `id:` line alone dispatches no event, is where a reconnect resumes, and is told as `cursor`."""
    server.script(S, plays(RETRY, b"id: 41\n\n", hold=False), plays(b"id: 42\ndata: x\n\n"))
    listener = listen(src=f"{S}?since=now")
    listener.wait_for("event")
    assert [server.next_request(S).since, server.next_request(S).since] == ["now", "41"]
    assert [e["id"] for e in listener.named("cursor")] == ["41", "42"]


def test_an_id_with_nul_is_ignored(server: ScriptedServer, listen: Listen):
    """An id that contains NUL changes nothing."""
    server.script(S, plays(b"id: 4\n\n", b"id: 5\0\ndata: x\n\n"))
    listener = listen(src=S)
    assert listener.wait_for("event")[0]["id"] == "4"


def test_repeated_events_are_dropped(server: ScriptedServer, listen: Listen):
    """An event with an id at or below the cursor is not dispatched again, whatever the server sends."""
    server.script(
        S,
        plays(RETRY, b"id: 9\ndata: nine\n\n", b"id: 10\ndata: ten\n\n", hold=False),
        plays(b"id: 9\ndata: nine\n\n", b"id: 10\ndata: ten\n\n", b"id: 11\ndata: eleven\n\n"),
    )
    listener = listen(src=S)
    listener.wait_for("event", 3)
    assert listener.data() == ["nine", "ten", "eleven"]


def test_ids_above_two_to_the_53rd_are_compared_exactly(server: ScriptedServer, listen: Listen):
    """Neighbouring ids that are the same floating-point number are different events."""
    server.script(S, plays(b"id: 9223372036854775805\ndata: a\n\n", b"id: 9223372036854775806\ndata: b\n\n"))
    listener = listen(src=S)
    listener.wait_for("event", 2)
    assert listener.data() == ["a", "b"]


def test_several_streams_on_one_connection_are_told_apart(server: ScriptedServer, listen: Listen):
    """With composite ids each event names its stream and its id there, and is de-duplicated in that stream."""
    server.script(
        S,
        plays(RETRY, b"id: 17.4/0\ndata: a\n\n", b"id: 17.5/1\ndata: b\n\n", hold=False),
        plays(b"id: 17.5/1\ndata: b\n\n", b"id: 18.5/0\ndata: c\n\n"),
    )
    listener = listen(src=f"{S}?since=16.4", streams="chat board")
    seen = listener.wait_for("event", 3)
    assert [(e["stream"], e["id"], e["data"]) for e in seen] == [
        ("chat", "17", "a"),
        ("board", "5", "b"),
        ("chat", "18", "c"),
    ]
    assert [server.next_request(S).since, server.next_request(S).since] == ["16.4", "17.5"]


def test_what_is_pending_goes_along_with_the_cursor(server: ScriptedServer, listen: Listen):
    """The page's watermark may name pending events; an event's id is its number alone, and a resume names the rest."""
    server.script(
        S,
        plays(RETRY, b"id: 17-81-3\n\n", b"id: 19-84\ndata: a\n\n", hold=False),
        plays(RETRY, b"id: 19-84\n\n", b"id: 19-84\ndata: a\n\n", b"id: 20-84\ndata: b\n\n", hold=False),
        plays(b"id: 20-84\n\n", b"id: 22\ndata: c\n\n"),
    )
    listener = listen(src=f"{S}?since=17-81-3")
    seen = listener.wait_for("event", 3)
    assert [(e["id"], e["data"]) for e in seen] == [("19", "a"), ("20", "b"), ("22", "c")]
    assert [server.next_request(S).since for _ in range(3)] == ["17-81-3", "19-84", "20-84"]
    assert [e["id"] for e in listener.named("cursor")] == ["19-84", "20-84", "22"]
    assert listener.page.evaluate("element.lastEventId") == "22"


def test_several_streams_have_pending_events(server: ScriptedServer, listen: Listen):
    """Each part of a composite cursor has its own; the stream that an event is not of keeps what is newest."""
    server.script(
        S,
        plays(RETRY, b"id: 17-81-3.5/1\ndata: a\n\n", b"id: 18-84.5/0\ndata: b\n\n", hold=False),
        plays(b"id: 20.5\n\n"),
    )
    listener = listen(src=f"{S}?since=17-81-3.4-82", streams="chat board")
    seen = listener.wait_for("event", 2)
    assert [(e["stream"], e["id"]) for e in seen] == [("board", "5"), ("chat", "18")]
    listener.wait("element.lastEventId === '20.5'")
    assert [server.next_request(S).since for _ in range(2)] == ["17-81-3.4-82", "18-84.5"]


@pytest.mark.parametrize("streams", [["a"], ["a room, with 1,000 seats", *map("stream {}".format, range(63))]])
def test_events_gaps_and_resets_tell_their_stream_by_name(server: ScriptedServer, listen: Listen, streams: list[str]):
    """The names are read from the token, compressed or not: an event says whose it is as a gap and a reset do."""
    path = f"/streams/{sign(streams, secrets=['s'], user='ada')}"
    last = len(streams) - 1
    ids = ["7"] * len(streams)
    index = f"/{last}" if last else ""
    ahead = ".".join([*ids[:-1], "8"])
    sentinel = 'event: headrace:{}\ndata: {{"stream":"{}","missed_from":8,"missed_to":9,"head":9}}\n\n'
    server.script(
        path,
        plays(
            f"id: {'.'.join(ids)}\n\n".encode(),
            f"id: {ahead}{index}\ndata: x\n\n".encode(),
            sentinel.format("gap", streams[last]).encode(),
            sentinel.format("reset", streams[0]).encode(),
        ),
    )
    listener = listen(src=path)
    assert listener.wait_for("reset")[0]["stream"] == streams[0]
    assert listener.named("gap")[0]["stream"] == streams[last]
    assert [(e["stream"], e["id"]) for e in listener.named("event")] == [(streams[last], "8")]


def test_a_refusal_for_lack_of_room_is_retried(server: ScriptedServer, listen: Listen):
    """After 503 with Retry-After the element waits at least that long, then connects by itself."""
    server.script(S, refuses(503, Retry_After="1"), plays(b"id: 1\ndata: x\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    (error,) = listener.named("error")
    assert error["status"] == 503
    assert isinstance(error["wait"], float)
    assert 1000 <= error["wait"] <= 2000


def test_any_failure_of_the_server_is_retried(server: ScriptedServer, listen: Listen):
    """Broken connections, 500, 502, 429 and a page that is no stream end in a further try."""

    def not_a_stream(connection: Connection) -> None:
        connection.respond(200, b"<h1>log in</h1>", Content_Type="text/html")

    def nothing(connection: Connection) -> None:
        pass

    server.script(S, plays(RETRY, hold=False), refuses(500), refuses(502), refuses(429), not_a_stream, nothing)
    server.script(S, plays(b"id: 1\ndata: x\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    assert [e["status"] for e in listener.named("error")] == [200, 500, 502, 429, 0, 0]


@pytest.mark.parametrize("status", [204, 403, 404, 405])
def test_a_final_refusal_is_not_retried(server: ScriptedServer, listen: Listen, status: int):
    """A refusal that asking again cannot cure closes the element, which says so."""
    server.script(S, refuses(status))
    listener = listen(src=S)
    (error,) = listener.wait_for("error")
    assert (error["status"], error["wait"]) == (status, None)
    assert listener.page.locator("headrace-stream").get_attribute("state") == "closed"


def test_a_refused_token_is_renewed_and_the_cursor_kept(server: ScriptedServer, listen: Listen):
    """After 403 the element asks the refresh URL for a new src and resumes there at its cursor."""
    fresh = "/streams/7.fresh"
    server.script(S, plays(RETRY, b"id: 3\ndata: x\n\n", hold=False), refuses(403))
    server.script("/token", lambda c: c.respond(200, b'{"src": "%s?since=now"}' % fresh.encode()))
    server.script(fresh, plays(b"id: 4\ndata: y\n\n"))
    listener = listen(src=S, refresh="/token")
    listener.wait_for("event", 2)
    assert server.next_request(fresh).since == "3"
    assert listener.data() == ["x", "y"]


def test_a_refresh_that_is_refused_closes(server: ScriptedServer, listen: Listen):
    """A user who may no longer read gets no further tries."""
    server.script(S, refuses(403))
    server.script("/token", refuses(403))
    listener = listen(src=S, refresh="/token")
    assert listener.wait_for("error")[0]["wait"] is None


def test_gap_reset_and_goodbye_are_told_and_are_no_events(server: ScriptedServer, listen: Listen):
    """The sentinels become DOM events of their own with the server's detail."""
    server.script(
        S,
        plays(
            RETRY,
            b'event: headrace:gap\ndata: {"stream":"a","missed_from":3,"missed_to":9}\n\nid: 9\n\n',
            b'event: headrace:goodbye\ndata: {"reason":"restart"}\n\n',
            hold=False,
        ),
        plays(b"id: 10\ndata: x\n\n"),
    )
    listener = listen(src=f"{S}?since=2")
    listener.wait_for("event")
    assert listener.named("gap") == [{"name": "gap", "stream": "a", "missed_from": 3, "missed_to": 9}]
    assert listener.named("goodbye") == [{"name": "goodbye", "reason": "restart"}]
    assert [server.next_request(S).since, server.next_request(S).since] == ["2", "9"]
    assert listener.data() == ["x"]


def test_after_a_reset_lower_ids_are_new_events(server: ScriptedServer, listen: Listen):
    """A reset takes the cursor back, and the events after it are delivered though their ids were seen before."""
    server.script(
        S,
        plays(
            b'event: headrace:reset\ndata: {"stream":"a","head":5}\n\nid: 5\n\n',
            b"id: 6\ndata: new six\n\n",
        ),
    )
    listener = listen(src=f"{S}?since=50")
    listener.wait_for("event")
    assert listener.named("reset") == [{"name": "reset", "stream": "a", "head": 5}]
    assert (listener.data(), listener.page.evaluate("element.lastEventId")) == (["new six"], "6")


def test_css_can_tell_what_has_happened(server: ScriptedServer, listen: Listen):
    """Attributes: `gap` and `reset` until a new beginning, `goodbye` and `error` until it is connected again."""
    ended = threading.Event()
    resumed = threading.Event()

    def breaks_off(connection: Connection) -> None:
        connection.open(
            b"id: 9\n\n",
            b'event: headrace:gap\ndata: {"stream":"a","missed_from":3,"missed_to":9}\n\n',
            b'event: headrace:reset\ndata: {"stream":"a","head":9}\n\nid: 9\n\n',
            b'event: headrace:goodbye\ndata: {"reason":"restart"}\n\n',
        )
        ended.wait(DEADLINE_S)

    def comes_later(connection: Connection) -> None:
        resumed.wait(DEADLINE_S)
        plays(b"id: 9\n\n")(connection)

    server.script(S, breaks_off, comes_later)
    server.script("/streams/8.other", plays(b"id: 1\n\n"))
    listener = listen(src=f"{S}?since=2")
    listener.wait("element.matches('[state=open][gap][reset][goodbye]:not([error])')")
    ended.set()
    listener.wait("element.matches('[gap][reset][goodbye][error]:not([state=open])')")  # waiting or connecting
    resumed.set()
    listener.wait("element.matches('[state=open][gap][reset]:not([goodbye], [error])')")
    listener.page.evaluate("element.src = '/streams/8.other?since=1'")
    listener.wait("element.matches('[state=open]:not([gap], [reset], [goodbye], [error])')")


def test_silence_ends_in_a_reconnect(server: ScriptedServer, listen: Listen):
    """A connection without a byte for the time in `silence` is given up and resumed elsewhere."""
    feed = Feed("x")
    server.script(S, *[feed.script] * 500)
    listener = listen(src=f"{S}?since=all", silence="0.3")
    listener.wait_for("event")
    silent = server.next_request(S)
    # A page that stands still for that long hears nothing either, and comes back with what it has.
    while server.next_request(S).since != "1":
        assert silent.gone.wait(DEADLINE_S)
    assert silent.gone.wait(DEADLINE_S)
    feed.publish("y")
    listener.wait_for("event", 2)
    assert listener.data() == ["x", "y"]


def test_removal_closes_the_connection_and_reinsertion_resumes(server: ScriptedServer, listen: Listen):
    """An element out of the document has no connection; put back, it goes on at its cursor."""
    server.script(S, plays(b"id: 1\ndata: x\n\n"), plays(b"id: 2\ndata: y\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    listener.page.evaluate("element.remove()")
    assert server.next_request(S).gone.wait(DEADLINE_S)
    assert listener.page.evaluate("element.state") == "closed"
    listener.page.evaluate("document.body.append(element)")
    listener.wait_for("event", 2)
    assert server.next_request(S).since == "1"


def test_a_new_src_is_a_new_beginning(server: ScriptedServer, listen: Listen):
    """Setting src leaves the old stream and begins at the new one's own `since`."""
    other = "/streams/8.token"
    server.script(S, plays(b"id: 70\ndata: x\n\n"))
    server.script(other, plays(b"id: 1\ndata: y\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    listener.page.evaluate(f"element.src = '{other}?since=all'")
    listener.wait_for("event", 2)
    assert server.next_request(other).since == "all"
    assert server.next_request(S).gone.wait(DEADLINE_S)
    assert listener.data() == ["x", "y"]


def test_tabs_that_share_use_one_connection(server: ScriptedServer, listen: Listen):
    """A second tab catches up by itself, then follows the first; each sees every event once, in order."""
    feed = Feed("one")
    server.script(S, *[feed.script] * 9)
    first = listen(src=f"{S}?since=all", share="chat")
    first.wait_for("event")
    leaders = server.next_request(S)
    feed.publish("two")
    second = listen(src=f"{S}?since=all", share="chat")
    second.wait_for("event", 2)
    assert server.next_request(S).gone.wait(DEADLINE_S), "the second tab keeps its own connection"
    feed.publish("three")
    for tab in (first, second):
        tab.wait_for("event", 3)
        assert tab.data() == ["one", "two", "three"]
        assert tab.page.evaluate("element.state") == "open"
    assert not leaders.gone.is_set()


def test_when_the_leading_tab_closes_another_takes_over(server: ScriptedServer, listen: Listen):
    """The next tab connects at its own cursor and misses nothing that was published between."""
    feed = Feed("one")
    server.script(S, *[feed.script] * 9)
    first = listen(src=f"{S}?since=all", share="chat")
    first.wait_for("event")
    leaders = server.next_request(S)
    second = listen(src=f"{S}?since=all", share="chat")
    second.wait_for("event")
    assert server.next_request(S).gone.wait(DEADLINE_S)
    first.page.close()
    assert leaders.gone.wait(DEADLINE_S)
    feed.publish("between or after")
    second.wait_for("event", 2)
    assert server.next_request(S).since == "1"
    assert second.data() == ["one", "between or after"]


def test_a_reset_reaches_the_tabs_that_follow(server: ScriptedServer, listen: Listen):
    """When the leading tab is told that the log is another one, followers are too, and take its lower ids as new."""
    feed = Feed(*map(str, range(1, 51)))
    server.script(S, *[feed.script] * 9)
    first = listen(src=f"{S}?since=49", share="chat")
    first.wait_for("event")
    leaders = server.next_request(S)
    # Without a cursor of its own it cannot follow before it has connected.
    second = listen(src=f"{S}?since=all", share="chat")
    second.wait_for("event", 50)
    assert server.next_request(S).gone.wait(DEADLINE_S)
    leaders.send(b'event: headrace:reset\ndata: {"stream":"a","head":5}\n\n', b"id: 5\n\n", b"id: 6\ndata: six\n\n")
    for tab in (first, second):
        tab.wait("seen.some(({ data }) => data === 'six')")
        assert (tab.data()[-2:], len(tab.named("reset"))) == (["50", "six"], 1)


def test_a_tab_whose_leader_falls_silent_connects_for_itself(server: ScriptedServer, listen: Listen):
    """A follower that hears nothing for the time in `silence` connects at its own cursor."""
    feed = Feed("one")
    server.script(S, *[feed.script] * 50)
    first = listen(src=f"{S}?since=all", share="chat", silence="600")
    first.wait_for("event")
    server.next_request(S)
    second = listen(src=f"{S}?since=all", share="chat", silence="1")
    assert server.next_request(S).gone.wait(DEADLINE_S)
    # A page that stands still for that long may not have got its first event before it comes back.
    while server.next_request(S).since != "1":
        pass
    assert second.data() == ["one"]


def test_a_tab_that_missed_what_its_leader_said_connects_for_itself(
    server: ScriptedServer, listen: Listen, context: BrowserContext
):
    """A frame that follows on what a tab has not been told is not taken: the tab gets all of them from the server."""
    leader = context.new_page()
    leader.goto(server.url)
    leader.evaluate("""async () => {
        window.channel = new BroadcastChannel("headrace:chat");
        await new Promise((held) => navigator.locks.request("headrace:chat", () => (held(), new Promise(() => {}))));
    }""")
    feed = Feed("one")
    server.script(S, *[feed.script] * 9)
    tab = listen(src=f"{S}?since=all", share="chat")
    tab.wait_for("event")
    leader.evaluate("channel.postMessage({ state: 'open', cursor: '1' })")
    assert server.next_request(S).gone.wait(DEADLINE_S)
    feed.publish("two", "three")
    leader.evaluate("channel.postMessage({ state: 'open', cursor: '2', frame: { id: '3', data: 'three' } })")
    tab.wait_for("event", 3)
    assert tab.data() == ["one", "two", "three"]
    assert server.next_request(S).since == "1"


@pytest.mark.parametrize(("mine", "leads"), [("1-81", "1"), ("1", "1-81"), ("1-81", "1-82"), ("5", "1-81")])
def test_a_tab_follows_nobody_who_has_other_pending_events(
    server: ScriptedServer, listen: Listen, context: BrowserContext, mine: str, leads: str
):
    """What the server leaves out for one tab, it does not leave out for another: each has its own connection."""
    leader = context.new_page()
    leader.goto(server.url)
    leader.evaluate("""async () => {
        window.channel = new BroadcastChannel("headrace:chat");
        await new Promise((held) => navigator.locks.request("headrace:chat", () => (held(), new Promise(() => {}))));
    }""")
    server.script(S, plays(RETRY, f"id: {mine}\n\n".encode()))
    tab = listen(src=f"{S}?since={mine}", share="chat")
    own = server.next_request(S)
    tab.wait(f"element.state === 'open' && element.lastEventId === '{mine}'")
    # Made after the element's own, so that the element has heard what this has heard.
    tab.page.evaluate("() => (new BroadcastChannel('headrace:chat').onmessage = ({ data }) => (window.heard = data))")
    says = "(cursor, frame) => channel.postMessage({ state: 'open', cursor, frame })"
    leader.evaluate(f"({says})('{leads}', {{ id: '6', data: 'shown by the page' }})")
    tab.wait("window.heard?.frame")
    own.send(b"id: 7\ndata: own\n\n")
    tab.wait_for("event")
    assert tab.data() == ["own"]
    assert not own.gone.is_set()
    leader.evaluate(f"({says})('7')")
    assert own.gone.wait(DEADLINE_S), "with nothing pending it follows"


def test_tabs_of_one_page_follow_while_events_are_pending(server: ScriptedServer, listen: Listen):
    """Two copies of a page have the same pending events, so that one connection serves both."""
    server.script(S, *[plays(RETRY, b"id: 1-81\n\n")] * 2)
    first = listen(src=f"{S}?since=1-81", share="chat")
    leaders = server.next_request(S)
    first.wait("element.state === 'open'")
    second = listen(src=f"{S}?since=1-81", share="chat")
    # One that meets its leader before its request was sent, having a cursor, never connects.
    second.wait("element.state === 'open'")
    wait_until(lambda: all(own.gone.is_set() for own in list(server.requests[S].queue)), "two tabs, two connections")
    leaders.send(b"id: 2-81\ndata: a\n\n", b"id: 4\ndata: b\n\n")
    for tab in (first, second):
        tab.wait_for("event", 2)
        assert (tab.data(), tab.page.evaluate("element.lastEventId")) == (["a", "b"], "4")


def test_tabs_that_name_no_share_share_what_their_tokens_allow(server: ScriptedServer, listen: Listen):
    """With `share` alone, tabs whose tokens are for the same streams and user share; another user's tab does not."""
    feed = Feed("one")
    hers, too, his = (
        f"/streams/{sign('chat', secrets=['s'], user=user, now=now)}"
        for user, now in [("ada", 1.0), ("ada", 2.0), ("bob", 1.0)]
    )
    for path in (hers, too, his):
        server.script(path, *[feed.script] * 9)
    tabs = [listen(src=f"{path}?since=1", share="") for path in (hers, too, his)]
    for tab in tabs:
        tab.wait("element.state === 'open'")
    feed.publish("two")
    for tab in tabs:
        tab.wait_for("event")
        assert tab.data() == ["two"]
    # One that meets its leader before its request was sent, having a cursor, never connects.
    wait_until(lambda: len(feed.open) == 2, "a tab of the same user keeps no connection of its own")
    assert not server.next_request(his).gone.is_set()


def test_turbo_stream_elements_wait_in_the_document_for_turbo(server: ScriptedServer, listen: Listen):
    """With `turbo`, what begins as a `<turbo-stream>` goes into the document in order, and nothing else does."""
    payload = '<turbo-stream action="append" target="t"><template>{}</template></turbo-stream>'
    server.script(
        S, plays(*(f"id: {n}\ndata: {payload.format(n)}\n\n".encode() for n in (1, 2)), b"id: 3\ndata: <b>\n\n")
    )
    listener = listen(src=S, turbo="")
    listener.wait_for("event", 3)
    assert listener.page.locator("body > turbo-stream > template").evaluate_all("all => all.map(e => e.innerHTML)") == [
        "1",
        "2",
    ]
    assert listener.page.locator("b").count() == 0


def test_without_turbo_markup_is_data(server: ScriptedServer, listen: Listen):
    """A stream that was not said to carry Turbo's elements puts none into the document, whatever its data are."""
    server.script(S, plays(b"id: 1\ndata: <turbo-stream action=refresh></turbo-stream>\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    assert listener.page.locator("turbo-stream").count() == 0
