"""Clients that read slowly, not at all, talk too much, or vanish: they hurt nobody else and are not kept."""

import socket
import time
from collections.abc import Callable

import pytest

from headrace.node import handoff
from headrace.node.handoff import Handoff, HandoffAnswer
from headrace.tokens import Context
from tests.fixtures.client import Client, wait_all
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import wait_until

SMALL = {"receive_buffer": 4096}


def stall(shard: Shard, database: Database, stream: str, clients: int = 1, events: int = 400) -> list[Client]:
    """Live clients of a stream whose sockets are full, since they have stopped reading."""
    stalled = [shard.live(stream, **SMALL) for _ in range(clients)]
    database.publish(stream, *("x" * 4000 for _ in range(events)))
    return stalled


def outlives(shard: Shard, client: Client, most: int, pause_s: float, done: Callable[[], bool], since: float) -> bool:
    """Read so much after each pause until it is done, on which the shard keeps the client. since: it has been read.

    False if it was closed since this machine stood still, and nothing was read for as long as the shard's deadline.
    """
    longest_s, read_at = 0.0, since
    while not done():
        client.pump(most)
        before, read_at = read_at, time.monotonic()
        longest_s = max(longest_s, read_at - before)
        time.sleep(pause_s)  # the client's pace
        if client.ended or shard.closed(client):
            assert longest_s > float(shard.environ["HEADRACE_WRITE_DEADLINE_S"]) / 2, shard.closed(client)
            return False
    return True


@pytest.fixture
def slow_shard(start_shard: StartShard, database: Database) -> Shard:
    """A shard whose sockets are full soon; a client is closed when it has taken nothing for half a second."""
    return start_shard(send_buffer_bytes=4096, write_deadline_s=0.5)


def test_a_client_that_stops_reading_delays_nobody_and_loses_nothing(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """While some clients read nothing, each event reaches the others; when they read again they get all of them."""
    stalled = [calm_shard.live(stream, **SMALL) for _ in range(5)]
    well = calm_shard.live(stream)
    for number in range(1, 301):
        calm_database.publish(stream, f"{number} " + "x" * 20_000)
        well.wait_for(number)
    assert well.ids == list(range(1, 301))
    wait_all(stalled, lambda client: client.last_id == "300", "the newest event")
    for client in stalled:
        assert client.data == well.data
        assert client.ids == well.ids


def test_a_client_that_reads_slowly_gets_large_events_whole(start_shard: StartShard, database: Database) -> None:
    """Events much larger than the socket's buffers arrive whole and in order while smaller ones follow."""
    shard = start_shard(send_buffer_bytes=4096, ring_bytes=100_000)
    slow, several = shard.live("s", **SMALL), shard.live("s", "t", **SMALL)
    expected = []
    for number in range(6):
        expected += [f"{number}" * 300_000, f"small {number}"]
        database.publish("s", *expected[-2:])
        database.publish("t", f"t {number}")
        for client in (slow, several):
            client.pump(50_000)
    slow.wait_for(12)
    assert slow.data == expected
    several.wait_for(18)
    assert [f.data for f in several.events if (f.id or "").endswith("/0")] == expected
    assert [f.data for f in several.events if (f.id or "").endswith("/1")] == [f"t {n}" for n in range(6)]
    assert several.cursor == (12, 6)


def test_a_client_that_has_stopped_reading_is_closed_for_real(slow_shard: Shard, database: Database) -> None:
    """After the write deadline the connection ends and its descriptor is freed; others stay."""
    # Whose socket holds all of it, though this machine may stand still for the half second.
    well = slow_shard.live("s", receive_buffer=1 << 20)
    (stalled,) = stall(slow_shard, database, "s", events=40)
    well.wait_for(40)
    wait_until(lambda: slow_shard.closed(stalled) in ("write deadline", "peer gone"), "the client is closed")
    assert slow_shard.client_sockets() == 1
    stalled.wait_for_end()
    database.publish("s", "after")
    well.wait_for_data("after")
    assert stalled.ids == list(range(1, len(stalled.ids) + 1))


def test_the_write_deadline_holds_without_the_kernels_help(slow_shard: Shard, database: Database) -> None:
    """A client on a unix socket, for which TCP's own deadline does nothing, is closed just the same."""
    near, far = socket.socketpair()
    message = Handoff((("s", "now"),), Context(), "unix", "unix")
    with slow_shard.channel() as channel, far:
        socket.send_fds(channel, [handoff.encode(message)], [far.fileno()])
        assert handoff.decode_answer(channel.recv(1000)) == HandoffAnswer()
    client = Client(near, "unix")
    slow_shard.clients.append(client)
    client.wait(lambda: client.last_id, "the cursor")
    database.publish("s", *("x" * 100_000 for _ in range(10)))
    wait_until(lambda: slow_shard.closed(client) == "write deadline", "the client is closed")
    client.wait_for_end()


def test_a_client_that_takes_a_little_now_and_then_is_kept(slow_shard: Shard, database: Database) -> None:
    """A slow client that takes some bytes within each deadline outlives many deadlines."""
    for _ in range(5):
        slow = slow_shard.live("s", **SMALL)
        head = database.head("s")
        began = time.monotonic()
        database.publish("s", *("x" * 100_000 for _ in range(3)))
        # At 16 kB each time at most, this takes longer than two deadlines.
        if outlives(slow_shard, slow, 16_000, 0.06, lambda slow=slow: len(slow.events) == 3, began):  # type: ignore[misc]
            break
    assert slow.ids == [head + 1, head + 2, head + 3]
    assert not slow_shard.closed(slow)


@pytest.mark.parametrize("send_buffer_bytes", [4096, 65536, 262144])
def test_a_client_that_always_takes_a_little_is_kept_whatever_its_buffer(
    start_shard: StartShard, database: Database, send_buffer_bytes: int
) -> None:
    """A client that takes bytes all the time, slowly, is kept however much the kernel holds for it."""
    shard = start_shard(send_buffer_bytes=send_buffer_bytes, write_deadline_s=1.0, heartbeat_interval_s=0.5)
    for _ in range(5):
        slow = shard.live("s", receive_buffer=4096)
        began = time.monotonic()
        database.publish("s", *("x" * 50_000 for _ in range(80)))
        # 4 kB ten times a second, over six deadlines.
        until = time.monotonic() + 6
        if outlives(shard, slow, 4000, 0.1, lambda until=until: time.monotonic() > until, began):  # type: ignore[misc]
            break
    assert not shard.closed(slow)


def test_stalled_clients_cost_bounded_memory(start_shard: StartShard, database: Database) -> None:
    """100 MB published past 20 clients that do not read leave the shard's memory nearly as it was."""
    shard = start_shard(write_deadline_s=600)
    stalled = stall(shard, database, "s", clients=20)
    well = shard.live("s")
    before = shard.memory()
    for number in range(100):
        database.publish("s", *(f"{number} " + "x" * 50_000 for _ in range(20)))
        well.wait(lambda number=number: well.last_id == str(400 + 20 * (number + 1)), "the newest event")  # type: ignore[misc]
        well.raw.clear()
        well._parsed = 0
        well.frames[:-1] = []
    assert shard.memory() - before < 25_000_000
    assert not any(shard.closed(client) for client in stalled)


def test_a_client_that_vanishes_without_a_fin_is_noticed(start_shard: StartShard, database: Database) -> None:
    """Heartbeats to a client that is gone without a word end its connection and free its descriptor."""
    shard = start_shard(heartbeat_interval_s=0.2, write_deadline_s=0.5)
    well = shard.live("s")
    gone = [shard.live("s") for _ in range(5)]
    for client in gone:
        client.vanish()
    wait_until(lambda: all(shard.closed(client) == "peer gone" for client in gone), "they are noticed")
    assert shard.client_sockets() == 1
    database.publish("s", "x")
    well.wait_for(1)


def test_a_client_that_closes_is_forgotten_at_once(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """A closed client is noticed without any write to it."""
    client = calm_shard.live(stream)
    client.close()
    wait_until(lambda: calm_shard.closed(client) == "peer gone", "the shard has let it go")


def test_two_hundred_clients_come_and_go_without_a_trace(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """After 200 connects and disconnects, idle, live and in mid-stream, the shard holds as many files as before."""
    calm_database.publish(stream, *("x" * 10_000 for _ in range(100)))
    calm_shard.live(stream).close()
    wait_until(lambda: all(map(calm_shard.closed, calm_shard.clients)), "the shard is idle")
    before = calm_shard.descriptors()
    for start in ("now", 0, "all", 7):
        clients = [calm_shard.connect((stream, start), (f"{stream}:{number}", "now")) for number in range(50)]
        if start == "now":
            wait_all(clients, lambda client: client.last_id, "the cursor")
        for client in clients:
            client.close()
    wait_until(lambda: calm_shard.descriptors() <= before, "every descriptor is freed")


def test_a_client_that_talks_on_is_cut_off(calm_shard: Shard, stream: str) -> None:
    """A client that sends some bytes is served on; one that sends without end is told goodbye."""
    client = calm_shard.live(stream)
    client.send(b"x" * 60_000)
    other = calm_shard.live(stream)
    assert not calm_shard.closed(client)
    client.send(b"x" * 10_000)
    assert client.wait_for_sentinel("goodbye") == {"reason": "unexpected data"}
    other.pump()
    assert not other.ended


def test_heartbeats_come_and_change_nothing(start_shard: StartShard, database: Database) -> None:
    """Idle clients get comments again and again, and their cursor stays."""
    shard = start_shard(heartbeat_interval_s=0.1)
    clients = [shard.live("s", "t") for _ in range(10)]
    wait_all(clients, lambda client: client.comments.count("heartbeat") >= 5, "five heartbeats")
    assert {client.last_id for client in clients} == {"0.0"}
    database.publish("t", "x")
    wait_all(clients, lambda client: client.last_id == "0.1/1", "the event")
