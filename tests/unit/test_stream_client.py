"""headrace/testing/stream_client.py"""

from collections.abc import Iterator

import pytest

from headrace.node.sse_client import Message
from headrace.testing import follow
from tests.fixtures.scripted_sse import ScriptedServer, plays, refuses, scripted_server

PLACE = b"retry: 2000\nid: 7\n\n"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server({}) as server:
        yield server


def test_a_client_gets_events_in_order(server: ScriptedServer) -> None:
    """Events arrive with their ids; cursors and comments are none; the URL's query is sent along."""
    frames = b'id: 8\ndata: a\n\n: heartbeat\nid: 9\nevent: headrace:cursor\ndata: {"cursor":"9"}\n\n'
    server.script("/s", plays(PLACE, frames, b"id: 10\nevent: note\ndata: b\n\n"))
    with follow(f"{server.url}/s?since=7") as client:
        assert client.next() == Message("8", "message", "a")
        assert client.next() == Message("10", "note", "b")
    request = server.next_request("/s")
    assert request.since == "7"
    assert request.gone.wait(10), "the end of the block ends the connection"


def test_each_wait_has_a_deadline(server: ScriptedServer) -> None:
    """No event, no place and no stream are each an assertion that fails, and says what was waited for."""
    server.script("/s", plays(PLACE), plays(PLACE, hold=False), plays(b"retry: 2000\n"), refuses(403))
    with follow(f"{server.url}/s") as client, pytest.raises(AssertionError, match=r"no event came within 0\.05 s"):
        client.next(timeout_s=0.05)
    with follow(f"{server.url}/s") as client:
        for _ in range(2):
            with pytest.raises(AssertionError, match="the server has ended the stream"):
                client.next()
    with (
        pytest.raises(AssertionError, match=r"the client's place within 1 s"),
        follow(f"{server.url}/s", timeout_s=1),
    ):
        pass
    with pytest.raises(AssertionError, match="the server answered 403"), follow(f"{server.url}/s"):
        pass
    with pytest.raises(AssertionError, match="has no host; give a whole URL"), follow("/s"):
        pass
