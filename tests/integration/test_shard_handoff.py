"""Clients handed to a shard: what is taken, what is refused, and that no descriptor is left behind."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.cursor import Position
from headrace.node import handoff
from headrace.node.handoff import MAX_MESSAGE_BYTES, Handoff
from headrace.tokens import Context
from tests.fixtures.client import Client, reset_connection
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import wait_until

GOOD: dict[str, Any] = json.loads(handoff.encode(Handoff((("s", "now"),), Context(), "r", "p")))


def message(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


UNREADABLE = {
    "no JSON": b"hello",
    "no UTF-8": b"\xff\xfe",
    "no object": b"[1]",
    "an empty object": b"{}",
    "deeply nested": b"[" * 100_000,
    "another version": message(v=99),
    "no streams": message(streams=None),
    "streams of another shape": message(streams=["s"]),
    "a context of another shape": message(context=[1]),
    "audiences that are no labels": message(context=[None, [{}], 0, None]),
    "headers of another shape": message(headers=[["a"]]),
}
WEIRD = {
    "an empty list of streams": {"streams": []},
    "a lone surrogate in a name": {"streams": [["\ud800", "now"]]},
    "a lone surrogate in the second name": {"streams": [["s", "now"], ["\ud800", "now"]]},
    "a NUL in a name": {"streams": [["a\0b", 0]]},
    "a name that is too long": {"streams": [["x" * 600, 0]]},
    "a name that is a number": {"streams": [[7, "now"]]},
    "a start that is no word": {"streams": [["s", "banana"]]},
    "a negative start": {"streams": [["s", -1]]},
    "a start beyond all ids": {"streams": [["s", 2**70]]},
    "a start with a fraction": {"streams": [["s", 1.5]]},
    "a start that is null": {"streams": [["s", None]]},
    "a start that is a list": {"streams": [["s", [1]]]},
    "an expiry that is text": {"context": [None, [], 0, "soon"]},
    "a header with a line break": {"headers": [["X-A", "b\r\nX-Evil: c"]]},
    "a header beyond Latin-1": {"headers": [["X-A", "部屋"]]},
}


@pytest.fixture
def channel(calm_shard: Shard) -> Iterator[socket.socket]:
    """A router's channel to the shard, of this test alone."""
    with calm_shard.channel() as made:
        yield made


def exchange(channel: socket.socket, data: bytes, *descriptors: int) -> str:
    """Send a message with these descriptors; returns why it was refused, or an empty text."""
    socket.send_fds(channel, [data], list(descriptors))
    return handoff.decode_answer(channel.recv(65536)).refused


def offer(shard: Shard, channel: socket.socket, data: bytes) -> tuple[Client, str]:
    """Send this message with a client's socket, of which no copy is kept."""
    near, far = shard.pair()
    client = Client(near)
    shard.clients.append(client)
    with far:
        return client, exchange(channel, data, far.fileno())


def exchange_good(shard: Shard, channel: socket.socket) -> str:
    """A hand-off as it should be, of a client that leaves at once."""
    client, refused = offer(shard, channel, message())
    client.wait(lambda: client.last_id, "the cursor")
    port = client.local_port
    client.close()
    wait_until(lambda: not shard.holds_peer(port), "the client's descriptor is freed")
    return refused


@pytest.mark.parametrize(("what", "data"), UNREADABLE.items(), ids=UNREADABLE)
def test_a_message_that_cannot_be_read_is_refused(
    calm_shard: Shard, channel: socket.socket, what: str, data: bytes
) -> None:
    """The router hears that it was unreadable or of another version, the client gets nothing, the channel goes on."""
    assert not exchange_good(calm_shard, channel)
    before = calm_shard.descriptors()
    client, refused = offer(calm_shard, channel, data)
    assert refused == ("version" if what == "another version" else "unreadable")
    client.wait_for_end()
    assert not client.raw
    wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")
    assert not exchange_good(calm_shard, channel)


def test_a_message_needs_exactly_one_connected_socket(calm_shard: Shard, channel: socket.socket) -> None:
    """No descriptor, several and a file are refused, and all are closed."""
    assert not exchange_good(calm_shard, channel)
    before = calm_shard.descriptors()
    near, far = calm_shard.pair()
    with near, far, open(os.devnull) as file:
        for descriptors in (
            [],
            [far.fileno()] * 2,
            [far.fileno()] * 4,
            [file.fileno()],
            [file.fileno(), far.fileno()],
        ):
            assert exchange(channel, message(), *descriptors) == "unreadable"
            # The shard answers first and closes then.
            wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.recv(1)
    assert not exchange_good(calm_shard, channel)


def test_a_message_that_was_cut_is_refused(calm_shard: Shard, channel: socket.socket) -> None:
    """A message, or a list of descriptors, larger than the shard takes is refused, and leaks nothing."""
    assert not exchange_good(calm_shard, channel)
    before = calm_shard.descriptors()
    near, far = calm_shard.pair()
    with near, far:
        assert exchange(channel, message(peer="x" * MAX_MESSAGE_BYTES), far.fileno()) == "cut"
        assert exchange(channel, message(), *[far.fileno()] * 12) == "cut"
    wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")
    assert not exchange_good(calm_shard, channel)


@pytest.mark.parametrize("changes", WEIRD.values(), ids=WEIRD)
def test_a_message_with_values_that_make_no_sense_hurts_nobody_else(
    calm_shard: Shard, calm_database: Database, channel: socket.socket, stream: str, changes: dict[str, Any]
) -> None:
    """The client is refused or closed; whoever comes or was there before is served, and nothing is left behind."""
    assert not exchange_good(calm_shard, channel)
    live = calm_shard.live(stream)
    before = calm_shard.descriptors()
    client, _ = offer(calm_shard, channel, message(**changes))
    client.wait_for_end()
    calm_database.publish(stream, "x")
    live.wait_for(1)
    new = calm_shard.connect(("s", "now"))
    new.wait(lambda: new.last_id, "the cursor")
    new.close()
    wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")


def test_the_response_head_is_the_routers_headers_and_what_a_stream_needs(calm_shard: Shard, stream: str) -> None:
    """The head allows neither caching, transforming nor buffering; the extra headers are in it; retry comes first."""
    client = calm_shard.connect((stream, "now"), headers=(("Access-Control-Allow-Origin", "https://app.example"),))
    client.wait(lambda: client.last_id, "the cursor")
    assert client.status == 200
    assert client.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "connection": "close",
        "access-control-allow-origin": "https://app.example",
    }
    assert 1000 <= (client.frames[0].retry or 0) <= 3000


def test_the_retry_times_of_clients_differ(calm_shard: Shard, stream: str) -> None:
    """Clients are told different times to wait, so that they do not all come back at once."""
    clients = [calm_shard.connect((stream, 0)) for _ in range(20)]
    for client in clients:
        client.wait(lambda client=client: client.frames, "the first frame")  # type: ignore[misc]
    assert len({client.frames[0].retry for client in clients}) > 5


def test_a_router_that_is_gone_before_the_answer_keeps_its_client(start_shard: StartShard, database: Database) -> None:
    """When the channel is closed before the shard could answer, the shard writes nothing to the client."""
    shard = start_shard()
    channel = shard.channel()
    assert not exchange_good(shard, channel)
    os.kill(shard.pid, signal.SIGSTOP)
    near, far = shard.pair()
    with far:
        socket.send_fds(channel, [message()], [far.fileno()])
        channel.close()
        os.kill(shard.pid, signal.SIGCONT)
        wait_until(lambda: shard.client_sockets() == 0, "the shard has let go of the socket")
        client = Client(near)
        client.pump()
        assert not client.raw
        assert not client.ended, "the connection is still the router's"
        client.close()


def test_a_router_that_reads_no_answers_holds_up_nobody_else(calm_shard: Shard, stream: str) -> None:
    """A channel whose answers are not read comes to a stop; other channels are served."""
    with calm_shard.channel() as stuck:
        stuck.setblocking(False)
        refused: list[bool] = []

        def takes_no_more() -> bool:
            try:
                stuck.send(b"{}")
            except BlockingIOError:
                refused.append(True)
            else:
                refused.clear()
            # The shard may just be reading: only a long run of refusals means that it has stopped.
            return len(refused) > 100

        while not refused:
            takes_no_more()
        wait_until(takes_no_more, "the channel has come to a stop")
        with calm_shard.channel() as other:
            assert not exchange_good(calm_shard, other)
        client = calm_shard.connect((stream, "now"))
        client.wait(lambda: client.last_id, "the cursor")
    with calm_shard.channel() as other:
        assert not exchange_good(calm_shard, other)


def test_many_channels_come_and_go(calm_shard: Shard) -> None:
    """Channels that were opened, used or not, and closed leave no descriptor behind."""
    with calm_shard.channel() as channel:
        assert not exchange_good(calm_shard, channel)
        before = calm_shard.descriptors()
        for number in range(100):
            with calm_shard.channel() as each:
                if number % 2:
                    each.send(b"garbage")
        wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")


def test_a_hand_off_as_large_as_allowed_is_taken(calm_shard: Shard, stream: str) -> None:
    """64 streams with long names fit, and each begins where it was asked to."""
    names = [f"{stream}:{number}:{'x' * 450}" for number in range(64)]
    data = handoff.encode(Handoff(tuple((name, Position(0)) for name in names), Context("ada"), "r", "p"))
    with calm_shard.channel() as channel:
        client, refused = offer(calm_shard, channel, data)
    assert not refused
    client.wait_for_cursor(*[0] * 64)


def test_a_socket_file_of_a_process_that_is_gone_is_replaced(start_shard: StartShard, database: Database) -> None:
    """A shard that was killed leaves its socket file; the next one of its id takes clients at the same path."""
    first = start_shard()
    first.live("s")
    first.kill()
    assert first.path.exists()
    first.log_file.unlink()
    first.start()
    client = first.live("s")
    database.publish("s", "x")
    client.wait_for(1)
    assert first.path.stat().st_mode & 0o777 == 0o600


def test_a_client_that_has_gone_is_nobodys_fault(calm_shard: Shard, channel: socket.socket) -> None:
    """The socket of a connection that was reset is refused as such, which is nobody's error."""
    assert not exchange_good(calm_shard, channel)
    before, lines = calm_shard.descriptors(), len(calm_shard.log)
    for page in (None, 10):
        with reset_connection() as gone:
            assert exchange(channel, message(page=page), gone.fileno()) == handoff.REFUSED_GONE
    # Nothing tells it from a connection that was reset.
    with socket.socket() as unconnected:
        assert exchange(channel, message(), unconnected.fileno()) == handoff.REFUSED_GONE
    wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")
    assert not exchange_good(calm_shard, channel)
    assert "refused" not in calm_shard.log[lines:]
