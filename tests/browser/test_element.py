"""The browser element against scripted answers, in Chromium."""

import contextlib
import gzip
import hashlib
import threading

import pytest

from tests.browser.conftest import Listen
from tests.fixtures.scripted_sse import Connection, ScriptedServer, plays, refuses

S = "/streams/7.token"
RETRY = b"retry: 5\n\n"


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
    """A published event whose type is `open` or `gap` reaches `event` listeners alone."""
    server.script(S, plays(b"id: 1\nevent: gap\ndata: x\n\n", b"id: 2\nevent: open\ndata: y\n\n"))
    listener = listen(src=S)
    listener.wait_for("event", 2)
    assert listener.named("gap") == []
    assert len(listener.named("open")) == 1


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


def test_silence_ends_in_a_reconnect(server: ScriptedServer, listen: Listen):
    """A connection without a byte for the time in `silence` is given up and resumed elsewhere."""
    server.script(S, plays(RETRY, b"id: 1\ndata: x\n\n"), plays(b"id: 2\ndata: y\n\n", b": heartbeat\n\n"))
    listener = listen(src=S, silence="0.3")
    listener.wait_for("event", 2)
    silent = server.next_request(S)
    assert server.next_request(S).since == "1"
    assert silent.gone.wait(15)


def test_removal_closes_the_connection_and_reinsertion_resumes(server: ScriptedServer, listen: Listen):
    """An element out of the document has no connection; put back, it goes on at its cursor."""
    server.script(S, plays(b"id: 1\ndata: x\n\n"), plays(b"id: 2\ndata: y\n\n"))
    listener = listen(src=S)
    listener.wait_for("event")
    listener.page.evaluate("element.remove()")
    assert server.next_request(S).gone.wait(15)
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
    assert server.next_request(S).gone.wait(15)
    assert listener.data() == ["x", "y"]


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


class Feed:
    """A stream for several connections: sends what it has after each one's cursor, then what is published.

    The lock guards both lists and the writes: a connection misses nothing between its past and its present.
    """

    def __init__(self, *data: str) -> None:
        self.log = list(data)
        self.open: list[Connection] = []
        self._lock = threading.Lock()

    def script(self, connection: Connection) -> None:
        cursor = int(connection.since) if (connection.since or "").isdigit() else 0
        with self._lock:
            past = [self._frame(id_) for id_ in range(cursor + 1, len(self.log) + 1)]
            connection.open(RETRY, b"id: %d\n\n" % cursor, *past)
            self.open.append(connection)
        connection.hold()
        with self._lock:
            self.open.remove(connection)

    def publish(self, data: str) -> None:
        with self._lock:
            self.log.append(data)
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.send(self._frame(len(self.log)))

    def _frame(self, id_: int) -> bytes:
        return f"id: {id_}\ndata: {self.log[id_ - 1]}\n\n".encode()


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
    assert server.next_request(S).gone.wait(15), "the second tab keeps its own connection"
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
    assert server.next_request(S).gone.wait(15)
    first.page.close()
    assert leaders.gone.wait(15)
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
    assert server.next_request(S).gone.wait(15)
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
    assert server.next_request(S).gone.wait(15)
    assert server.next_request(S).since == "1"
    assert second.data() == ["one"]


def test_coming_back_online_does_not_wait_for_the_next_try(server: ScriptedServer, listen: Listen):
    """Offline the element keeps trying; when the network is back it connects at once and misses nothing."""
    server.script(S, plays(RETRY, b"id: 1\ndata: x\n\n"), plays(b"id: 2\ndata: y\n\n"))
    listener = listen(src=S, silence="0.3")
    listener.wait_for("event")
    listener.page.context.set_offline(True)
    listener.wait("element.state === 'waiting' && seen.some(({ name, status }) => name === 'error' && status === 0)")
    listener.page.context.set_offline(False)
    listener.wait_for("event", 2)
    assert listener.data() == ["x", "y"]


def test_the_module_is_small(server: ScriptedServer):
    """The module is under 6 kB gzipped, so that it costs a page nothing to speak of."""
    assert len(gzip.compress(server.files["/headrace.js"][1], mtime=0)) < 6_000
