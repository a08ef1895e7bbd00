"""Pages of past events over HTTP: what is in them, and that nothing hidden or revoked gets into one."""

import json
import socket
import time
import urllib.parse
from typing import Any

import psycopg
import pytest

import headrace
from tests.fixtures.shard import Database
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until

ORIGIN = "https://app.example"
FILTERS = """
import gevent
from headrace import predicate

@predicate("owner")
def owner(context, stream):
    return stream == f"room:{context.user}"

@predicate("raising")
def raising(context, stream):
    raise LookupError("a predicate's own trouble")

@predicate("late")
def late(context, stream):
    gevent.sleep(60)
    return True
"""


class Pages:
    """A stack with predicates, and what it answers. Owned by the test."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def get(self, *streams: str, query: dict[str, Any] | None = None, path: str = "", **options: Any) -> Any:
        """(status, body) of a page; options are signed into the token."""
        assert self.stack.router is not None
        address = (path or self.stack.path(*streams, **options)) + "/events"
        status, _, body = self.stack.router.get(f"{address}?{urllib.parse.urlencode(query or {})}")
        return status, json.loads(body)

    def page(self, *streams: str, query: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """The page, asked for again where a shard that stood still knows nothing of revocations for a moment."""
        status, body = wait_until(
            lambda: (found := self.get(*streams, query=query, **options))[0] != 503 and found, "an answer"
        ) or (0, {})
        assert status == 200, body
        found: dict[str, Any] = body
        return found

    def data(self, *streams: str, **options: Any) -> list[str]:
        return [event["data"] for event in self.page(*streams, **options)["events"]]


@pytest.fixture
def pages(start_stack: StartStack) -> Pages:
    return Pages(
        start_stack(1, predicates=[FILTERS], filter_deadline_s=0.2, allowed_origins=ORIGIN, send_buffer_bytes=16384)
    )


def test_a_page_says_what_there_is_and_where_it_goes_on(pages: Pages, database: Database) -> None:
    """Events with id, type and data exactly as published, page by page until there is no more."""
    odd = "line one\r\nline two\rline three\u2028 \n ж"
    database.publish("room:1", odd, event="note")
    database.publish("room:1", *(str(number) for number in range(2, 8)))
    first = pages.page("room:1", query={"limit": 3})
    assert first == {
        "stream": "room:1",
        "events": [
            {"id": 1, "type": "note", "data": odd},
            {"id": 2, "type": "message", "data": "2"},
            {"id": 3, "type": "message", "data": "3"},
        ],
        "next": 3,
        "head": 7,
        "more": True,
    }
    rest = pages.page("room:2", "room:1", query={"stream": "room:1", "after": first["next"]})
    assert ([event["id"] for event in rest["events"]], rest["next"], rest["more"]) == ([4, 5, 6, 7], 7, False)
    assert pages.page("room:1", query={"after": 7})["events"] == []
    empty = {"stream": "nothing", "events": [], "next": 0, "head": 0, "more": False}
    assert pages.page("nothing") == pages.page("nothing", query={"after": 0}) == empty
    assert pages.get("room:1", query={"limit": 0})[0] == 400
    assert pages.get("room:1", "room:2")[0] == 400
    assert pages.get("room:1", query={"stream": "room:2"})[0] == 403
    assert pages.get(path="/streams/1.x")[0] == 404
    assert pages.get("room:1", ttl_s=1, now=time.time() - 60)[0] == 403


def test_what_is_not_there_is_told(pages: Pages, database: Database) -> None:
    """A gap where retention has passed the id, a reset where the id is ahead; the oldest kept is no gap."""
    database.publish_count("s", 10)
    database.trim("s", 4)
    behind = pages.page("s", query={"after": 2, "limit": 2})
    assert (behind["gap"], behind["next"]) == ({"missed_from": 3, "missed_to": 6}, 8)
    assert [event["id"] for event in behind["events"]] == [7, 8]
    oldest = pages.page("s")
    assert "gap" not in oldest
    database.publish("hidden", "1", "2", "3", visible_to="staff")
    database.publish("hidden", "4")
    database.trim("hidden", 1)
    assert "gap" not in pages.page("hidden", query={"after": 1}, user="eve")
    assert pages.page("hidden", query={"after": 1}, audiences=["staff"])["gap"]["missed_to"] == 3
    assert [event["id"] for event in oldest["events"]] == [7, 8, 9, 10]
    ahead = pages.page("s", query={"after": 11})
    assert (ahead["reset"], ahead["next"], ahead["events"]) == ({"head": 10}, 10, [])
    database.publish("big", *["x" * 400_000] * 5)
    large = pages.page("big")
    assert (len(large["events"]), large["next"], large["more"]) == (2, 2, True)


def test_hidden_events_are_in_no_page(pages: Pages, database: Database) -> None:
    """Audiences and predicates decide as for the stream, and fail closed; the page goes on behind what is hidden."""
    for label in ("staff", "owner", "raising", "late", "unknown", None):
        database.publish("room:ada", f"for {label}", visible_to=label)
    assert pages.data("room:ada") == ["for None"]
    assert pages.data("room:ada", user="ada") == ["for owner", "for None"]
    assert pages.data("room:ada", user="bob", audiences=["staff", "late"]) == ["for staff", "for late", "for None"]
    hidden = pages.page("room:ada", query={"limit": 5})
    assert (hidden["events"], hidden["next"], hidden["more"]) == ([], 5, True)
    several = {"stream": "room:ada"}
    assert pages.data("room:bob", "room:ada", user="bob", query=several) == ["for None"]
    text = json.dumps(pages.page("room:ada"))
    assert not [word for word in ("staff", "owner", "raising", "unknown", "visible_to") if word in text]


def test_a_revoked_token_gets_no_page(pages: Pages, database: Database) -> None:
    """Within a second of the commit the token is refused, for whatever page; a later one is good."""
    database.publish("s", "secret")
    path = pages.stack.path("s", user="ada")
    assert pages.get(path=path)[0] == 200
    headrace.disconnect(database.connection, user="ada")
    committed = time.monotonic()

    def refused() -> bool:
        asked = time.monotonic()
        status, _ = pages.get(path=path)
        assert status != 200 or asked - committed < 1, "a page was asked for after a second, and given"
        return bool(status == 403)

    wait_until(refused, "the token is refused")
    assert "revoked" in pages.get(path=path)[1]["error"]
    assert pages.get("s", user="ada")[0] == 200


def test_a_page_is_read_only_while_revocations_are_known(pages: Pages, database: Database) -> None:
    """While they cannot be read the answer is 503 with a time to come back, never a page."""
    database.publish("s", "x")
    with psycopg.connect(database.url) as blocker:
        blocker.execute("lock table headrace.revocation in access exclusive mode")
        wait_until(lambda: pages.get("s")[0] == 503, "no page is given out")
    wait_until(lambda: pages.get("s")[0] == 200, "pages are back")


def test_an_allowed_origin_may_read_it(pages: Pages, database: Database) -> None:
    """The answer carries the headers for a page of an allowed origin, and none for another."""
    assert pages.stack.router is not None
    path = pages.stack.path("s") + "/events"
    _, headers, _ = pages.stack.router.get(path, Origin=ORIGIN)
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    assert headers["Cache-Control"] == "no-store"
    _, headers, _ = pages.stack.router.get(path, Origin="https://evil.example")
    assert "Access-Control-Allow-Origin" not in headers
    assert pages.stack.router.get(path, method="POST")[0] == 405


def test_those_who_do_not_read_hold_up_nobody(pages: Pages, database: Database) -> None:
    """Clients that take nothing of their pages are bounded; live ones do not notice, and later others are served."""
    database.publish("big", *["x" * 400_000] * 2)
    live = pages.stack.subscribe("s")
    assert pages.stack.router is not None
    idle: list[socket.socket] = []
    try:
        path = pages.stack.path("big") + "/events"

        def one_more() -> None:
            assert pages.stack.router is not None
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", pages.stack.router.port))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: router\r\n\r\n".encode())
            idle.append(client)

        for _ in range(60):
            one_more()
        # The last of them one by one: in a crowd, one that is answered could have the last place, and leave it.
        wait_until(lambda: one_more() or pages.get("s")[0] == 503, "there is no room for one more")
        database.publish("s", "x")
        assert live.wait_for_data("x") == ["x"]
    finally:
        for client in idle:
            client.close()
    wait_until(lambda: pages.get("s")[0] == 200, "pages are served again")


def test_one_user_who_does_not_read_keeps_out_nobody_else(pages: Pages, database: Database) -> None:
    """However many pages of one token nobody reads, other users get theirs at once, and that one gets no more."""
    database.publish("big", *["x" * 400_000] * 2)
    database.publish("s", "x")
    path = pages.stack.path("big", user="greedy") + "/events"
    assert pages.stack.router is not None
    port = pages.stack.router.port
    idle: list[socket.socket] = []

    def one_more() -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: router\r\n\r\n".encode())
        idle.append(client)

    try:
        for _ in range(140):
            one_more()
        wait_until(lambda: one_more() or pages.get("s", user="greedy")[0] == 503, "the greedy one gets no more")
        for number in range(20):
            user = f"user {number % 3}"

            def answered(user: str = user) -> bool:
                status, body = pages.get("s", user=user)
                assert "no shard accepts clients" not in body.get("error", "")
                return bool(status == 200 and body["events"])

            # A shard that stood still knows nothing of revocations for a moment.
            wait_until(answered, "a page is there")
            one_more()
        wait_until(lambda: one_more() or pages.get("s", user="greedy")[0] == 503, "the greedy one gets no more")
    finally:
        for client in idle:
            client.close()
    wait_until(lambda: pages.get("s", user="greedy")[0] == 200, "pages are served again")
