"""The torture's subscribers: whatever bytes come they write down, and whatever is broken in them is a violation."""

import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace import event, tokens
from loadtests.chunks import Body
from loadtests.torture.judge import DATED_AHEAD, ClientConnection, Owed, judge
from loadtests.torture.machine import Machine
from loadtests.torture.plan import PlannedClient
from loadtests.torture.stream_log import StreamLog
from loadtests.torture.subscribers import Subscribing, TortureSubscriber
from loadtests.torture.system import System

SECRET = "torture" * 5
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


class Answers:
    """A server that answers each request with the next of some bytes, then hangs up; requests are what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._answers = answers
        self.before_answer: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            for answer in self._answers:
                connection, _ = self._listener.accept()
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65536)
                    self.requests.append(head.decode())
                    self.before_answer()
                    connection.sendall(answer)


class Kit:
    """One subscriber of one or several streams, and the server that it talks to."""

    def __init__(self, directory: Path, answers: Answers, streams: tuple[str, ...] = ("s",)) -> None:
        self.machine = Machine(directory)
        system = SimpleNamespace(secret=SECRET, machine=self.machine, address=answers.address)
        client = PlannedClient("c0", "steady", streams, "now", "u0", frozenset(), None)
        plan = SimpleNamespace(clients=(client,), random=lambda purpose: random.Random(purpose), seconds=1.0)
        self.subscribing = Subscribing(cast("Any", plan), cast("System", system))
        self.subscriber = self.subscribing.subscribers[0]

    def connect(self) -> ClientConnection:
        """One connection, to its end."""
        subscriber: TortureSubscriber = self.subscriber
        session = subscriber._session()
        subscriber.history.sessions.append(session)
        subscriber._live(session)
        session.ended_at = session.asked_at + 1
        return session

    def kinds(self) -> set[str]:
        """What the judge says of all of its connections."""
        logs = {name: StreamLog(()) for name in self.subscriber.history.streams}
        found = judge(self.subscriber.history, logs, Owed(lambda *_: True), at_end=0.0)
        return {violation.kind for violation in found}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(HEAD + CHUNKED + b"\r\n" + b"z" * 500 + b"\r\n", id="no size"),
        pytest.param(HEAD + CHUNKED + b"\r\n" + b"z" * 500, id="no size and no end"),
        pytest.param(HEAD + CHUNKED + b"\r\n-9\r\n" + b"z" * 50, id="a negative size"),
        pytest.param(HEAD + CHUNKED + b"\r\n5\r\nid: 17\n\n\r\n", id="a chunk that is longer than it says"),
        pytest.param(HEAD + CHUNKED + b"\r\n" + event.LAST_CHUNK + b"7\r\nid: 1\n\n\r\n", id="more after the end"),
        pytest.param(HEAD + b"\r\nid: " + b"9" * 5000 + b"\n\n", id="a long number"),
        pytest.param(HEAD + b"\r\nid: 1.2\ndata: x\n\n", id="an id of two streams"),
        pytest.param(HEAD + b"\r\nid: 1/7\ndata: x\n\n", id="an id of a stream that is not there"),
        pytest.param(HEAD + b"\r\nid: 1\nevent: headrace:gap\ndata: {}\n\n", id="a sentinel with an id"),
        pytest.param(HEAD + b"\r\nevent: headrace:gap\ndata: {\n\n", id="a sentinel that is no JSON"),
        pytest.param(HEAD + b'\r\nevent: headrace:gap\ndata: {"stream":"s"}\n\n', id="a gap without ids"),
        pytest.param(HEAD + b'\r\nevent: headrace:reset\ndata: ["s"]\n\n', id="a reset that is a list"),
        pytest.param(HEAD + b"\r\nevent: headrace:cursor\ndata: {}\n\n", id="a cursor without an id"),
        pytest.param(HEAD + b"\r\n\xff\xfe\x00\n\n", id="no text"),
        pytest.param(b"\xff\r\n\r\n", id="no head"),
    ],
)
def test_whatever_comes_is_a_violation_and_no_failure(tmp_path: Path, answer: bytes) -> None:
    """Broken bytes are noted as malformed, and the client goes on with what it had."""
    kit = Kit(tmp_path, Answers(answer))
    kit.connect()
    assert "malformed" in kit.kinds()
    assert kit.subscriber.last_id == ""


def test_a_client_of_several_streams_is_told_its_cursor_by_an_event(tmp_path: Path) -> None:
    """headrace:cursor has the ids of all streams, in a body with chunks and in one without."""
    frame = event.cursor_frame("4.9")
    answers = Answers(HEAD + b"\r\n" + frame, HEAD + CHUNKED + b"\r\n" + event.chunk(frame) + event.LAST_CHUNK)
    kit = Kit(tmp_path, answers, ("a", "b"))
    for _ in range(2):
        session = kit.connect()
        assert (session.malformed, [one.id for one in session.frames]) == ("", ["4.9"])
    assert kit.subscriber.cursor == (4, 9)


def test_a_url_from_before_the_clock_was_set_back_is_exchanged(tmp_path: Path) -> None:
    """Its 403 is owed, and the client comes back with a URL that is dated by the machine's clock; any other is not."""
    refusal = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    answers = Answers(refusal, refusal)
    kit = Kit(tmp_path, answers)
    if not kit.machine.environ:
        pytest.fail("install a C compiler: the torture sets the clock back with it")
    answers.before_answer = lambda: kit.machine.set_back(7200) if len(answers.requests) == 1 else None
    assert kit.connect().ending == DATED_AHEAD
    assert "disconnected" not in kit.kinds()
    assert kit.connect().ending == "refused 403"
    assert "disconnected" in kit.kinds()
    dates = [tokens.verify(_path(text), secrets=[SECRET]).context.issued_ms for text in answers.requests]
    assert dates[1] < dates[0] - 7000_000


def test_a_body_in_chunks_is_the_same_however_it_is_cut() -> None:
    """Chunk headers and line breaks may come in any pieces."""
    parts = [b"id: 1\n\n", b": heartbeat\n", b"data: " + b"x" * 300 + b"\n\n"]
    sent = b"".join(map(event.chunk, parts)) + event.LAST_CHUNK
    for size in (1, 2, 3, 7, len(sent)):
        body = Body(HEAD + CHUNKED)
        assert b"".join(body.feed(sent[at : at + size]) for at in range(0, len(sent), size)) == b"".join(parts)


def _path(request: str) -> str:
    return request.split(" ", 2)[1].removeprefix("/streams/").partition("?")[0]
