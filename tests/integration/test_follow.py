"""`headrace.node.sse_client.follow` and what else reads a stream or an answer over HTTP, against scripted answers."""

import time
from collections.abc import Iterator
from itertools import islice

import pytest

from headrace.cli.status import _last_known
from headrace.doctor import front
from headrace.errors import TokenError, UnavailableError
from headrace.node import front_door, sse_client
from headrace.settings import Settings
from tests.fixtures.scripted_sse import Connection, Script, ScriptedServer, plays, refuses, scripted_server

S = "/streams/7.token"
RETRY = b"retry: 5\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server({}) as server:
        yield server


def sends(*raw: bytes) -> Script:
    """An answer of exactly these bytes, head and all."""
    return lambda connection: connection.send(*raw)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


FIRST = RETRY + b"id: 1\ndata: one\n\n"
SECOND = plays(RETRY, b"id: 2\ndata: two\n\n")
BREAKS = {
    "a body without its last chunk": sends(CHUNKED, chunk(FIRST)),
    "a chunk that is cut": sends(CHUNKED, chunk(FIRST), b"1a\r\nid: 2\nda"),
    "a chunk's length that is none": sends(CHUNKED, chunk(FIRST), b"zz\r\n"),
    "a chunk's length without end": sends(CHUNKED, chunk(FIRST), b"1" * 70_000),
    "a frame that is cut": sends(HEAD, b"\r\n", FIRST, b"id: 2\ndata: t"),
}


@pytest.mark.parametrize("script", BREAKS.values(), ids=BREAKS)
def test_a_broken_body_ends_in_another_connection(server: ScriptedServer, script: Script) -> None:
    """Wherever a connection breaks, the follower says so and goes on after the last whole event."""
    server.script(S, script, SECOND)
    told: list[str] = []
    messages = sse_client.follow(server.url + S, since="0", tell=told.append)
    assert [message.data for message in islice(messages, 2)] == ["one", "two"]
    assert [server.next_request(S).headers["last-event-id"] for _ in range(2)] == ["0", "1"]
    assert "connecting again in" in told[0]
    assert told[1:] == ["connected again"]


def nothing(connection: Connection) -> None:
    pass


ODD_ANSWERS = {
    "nothing": nothing,
    "garbage": sends(b"\x16\x03\x01 nonsense\r\n\r\n"),
    "a status line alone": sends(b"HTTP/1.1 200 OK\r\n"),
    "a header without end": sends(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 70_000),
    "more headers than anybody reads": sends(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 200, b"\r\n"),
    "a page": lambda connection: connection.respond(200, b"<h1>log in</h1>", Content_Type="text/html"),
    "a refusal that breaks off": sends(b"HTTP/1.1 502 Bad\r\nContent-Length: 50\r\n\r\nno"),
    "a proxy's word": lambda connection: connection.respond(200, b"retry: 9\n", Content_Type="text/event-stream"),
    "a proxy's word that breaks off": sends(HEAD, b"Content-Length: 999\r\n\r\n", RETRY),
    "no room": refuses(503, Retry_After="0"),
    "no room until a day": refuses(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "no room until nobody knows": refuses(503, Retry_After="soon"),
    "too many": refuses(429),
}


@pytest.mark.parametrize("script", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_odd_answers_are_tried_again(server: ScriptedServer, script: Script) -> None:
    """What is no stream, and no final refusal, is an outage that passes."""
    server.script(S, sends(CHUNKED, chunk(FIRST)), script, SECOND)
    told: list[str] = []
    messages = sse_client.follow(server.url + S, since="0", tell=told.append)
    assert [message.data for message in islice(messages, 2)] == ["one", "two"]
    assert [said.endswith(" s") for said in told] == [True, True, False]


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_final_refusal_is_told(server: ScriptedServer, status: int) -> None:
    """A refusal that asking again does not cure ends the follower, with the server's own sentence."""
    server.script(S, lambda connection: connection.respond(status, b"a reason\n"))
    with pytest.raises(TokenError, match=f"{status}: a reason"):
        next(sse_client.follow(server.url + S))


def test_a_page_that_answers_garbage_is_told_in_a_sentence(server: ScriptedServer) -> None:
    """Commands that ask the public URL once survive what is no HTTP, a server that is none of headrace's included."""
    for path in ("/healthz", "/readyz"):
        server.script(path, sends(b"SSH-2.0-OpenSSH_9\r\n"))
    with pytest.raises(UnavailableError, match="nothing answers"):
        sse_client.check_reachable(f"{server.url}/healthz")
    assert _last_known(Settings(public_url=server.url)) is None
    finding = front.delivery("http://127.0.0.1:9/", ["secret"], lambda stream, data: None)
    assert finding.advice.startswith("start the router")


def test_the_doctor_survives_a_body_that_breaks(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that a broken body keeps back is a finding, not a traceback."""
    monkeypatch.setattr(front_door, "sign", lambda *_, **__: "7.token")
    server.script(S, sends(CHUNKED, chunk(b"id: 7\n\n"), b"5\r\nid"))
    finding = front.delivery(server.url, ["secret"], lambda stream, data: None)
    assert "did not arrive" in finding.found
    server.script(S, lambda connection: connection.respond(200, b"retry: 9\n", Content_Type="text/event-stream"))
    assert "reaches no router" in front.delivery(server.url, ["secret"], lambda stream, data: None).found
    server.script(S, sends(b"SSH-2.0-OpenSSH_9\r\n"))
    assert front.delivery(server.url, ["secret"], lambda stream, data: None).advice.startswith("start the router")


def test_waits_are_bounded(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> None:
    """However long the server asks for, the follower comes back within the bound."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.script(S, refuses(503, Retry_After="9" * 400), refuses(503, Retry_After="Wed, 21 Oct 2099 07:28:00 GMT"))
    server.script(S, plays(b"retry: 99999999999999999999\n\n", hold=False), plays(b"id: 1\ndata: x\n\n"))
    assert next(sse_client.follow(server.url + S)).data == "x"
    assert all(
        sse_client.LONGEST_RETRY_AFTER_S <= wait <= sse_client.LONGEST_RETRY_AFTER_S + sse_client.WAIT_S
        for wait in waits[:2]
    ), waits
    assert waits[2] <= sse_client.LONGEST_WAIT_S
