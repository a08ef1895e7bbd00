"""How a body is sent: to clients of HTTP/1.1 in chunks of whole frames, to those of HTTP/1.0 as it is."""

from tests.fixtures.client import Client, wait_all
from tests.fixtures.deployment import get
from tests.fixtures.shard import Database
from tests.fixtures.stack import Stack, StartStack


def connect(stack: Stack, path: str, version: str) -> Client:
    assert stack.router is not None
    client = Client(get(stack.router.port, path, version))
    stack.clients.append(client)
    return client


def test_a_body_in_chunks_of_whole_frames(start_stack: StartStack, database: Database) -> None:
    """Chunks end where frames end, and a goodbye ends the body; a client of HTTP/1.0 gets no chunks."""
    stack = start_stack(1, heartbeat_interval_s=0.2)
    chunked = [connect(stack, stack.path("room:1", since="all"), "1.1") for _ in range(3)]
    several = connect(stack, stack.path("room:1", "room:2", since="all"), "1.1")
    plain = connect(stack, stack.path("room:1", since="all"), "1.0")
    clients = [*chunked, several, plain]
    wait_all(clients, lambda client: client.last_id, "the cursor")
    database.publish("room:1", "a\nb", "€", "x" * 70_000)
    database.publish("room:2", "other")
    wait_all(clients, lambda client: len(client.events) >= 3 and client.comments, "the events and a heartbeat")
    several.wait_for(4)
    for client in clients:
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.headers["connection"] == "close"
    stack.shards[0].terminate()
    wait_all(clients, lambda client: client.ended, "the end")
    for client in (*chunked, several):
        assert client.headers["transfer-encoding"] == "chunked"
        assert client.complete
        assert all(chunk.endswith(b"\n") for chunk in client.chunks if chunk)
        assert sum(chunk.endswith(b"\n\n") for chunk in client.chunks) >= 5
    assert "transfer-encoding" not in plain.headers
    for client in (*chunked, plain):
        assert client.data == ["a\nb", "€", "x" * 70_000]
        assert client.sentinels == [("goodbye", {"reason": "shutdown"})]
    assert plain.raw.partition(b"\r\n\r\n")[2].startswith(b"retry: ")


def test_a_client_that_began_at_now_knows_where_it_is(start_stack: StartStack, database: Database) -> None:
    """It is told by an event with an id and data, which every client keeps, and cut off then it misses nothing."""
    stack = start_stack(1)
    database.publish("room:1", "before")
    client = stack.connect(stack.path("room:1", since="now"))
    client.wait_for_cursor(1)
    told = [frame for frame in client.frames if frame.id is not None]
    assert [(frame.event, frame.id, frame.value) for frame in told] == [("headrace:cursor", "1", {"cursor": "1"})]
    client.close()
    database.publish("room:1", "meanwhile")
    again = stack.subscribe("room:1", last_event_id=client.last_id)
    assert [frame.event for frame in again.frames if frame.id == "1"] == [None]
    again.wait_for(1)
    assert again.data == ["meanwhile"]
