"""Where a client begins, and how one that was away gets what it missed, or is told that it cannot."""

import threading

import pytest

from headrace.cursor import MAX_ID
from headrace.stream import slot
from tests.fixtures.client import Frame, wait_all
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import wait_until


def reads_of(database: Database, stream: str) -> list[list[int | None]]:
    """For each read that had the stream in it: after which of its ids."""
    return [[a for s, a in zip(*read, strict=True) if s == stream] for read in database.reads() if stream in read[0]]


@pytest.mark.parametrize("missed", [1, 499, 500, 501, 1_000, 10_001])
def test_everything_missed_arrives_without_a_further_publish(
    calm_shard: Shard, calm_database: Database, stream: str, missed: int
) -> None:
    """A client that missed so many events gets all of them, in order, and is live then."""
    calm_database.publish_count(stream, missed)
    client = calm_shard.connect((stream, 0))
    client.wait_for(missed)
    assert client.data == [str(number) for number in range(1, missed + 1)]
    assert client.ids == list(range(1, missed + 1))
    calm_database.publish(stream, "live")
    client.wait_for(missed + 1)
    assert client.events[-1] == Frame(id=str(missed + 1), event="message", data="live")
    assert not client.sentinels


def test_a_client_far_behind_does_not_delay_the_live_ones(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """While one client is being given 10,000 events, what is published reaches a live client of the same stream."""
    live = calm_shard.live(stream)
    calm_database.publish_count(stream, 10_000, " " * 1000)
    live.wait_for(10_000)
    behind = calm_shard.connect((stream, 0), receive_buffer=65536)
    arrived_at = []
    for number in range(5):
        behind.wait_for(100 + number * 1000)
        calm_database.publish(stream, f"live {number}")
        live.wait_for_data(f"live {number}")
        arrived_at.append(len(behind.events))
    assert arrived_at[-1] < 10_000, "the client behind was not behind any more"
    behind.wait_for_data("live 4")
    assert behind.ids == list(range(1, 10_006))
    assert live.ids == list(range(1, 10_006))


def test_reads_for_those_behind_do_not_hold_up_the_live_ones(start_shard: StartShard, database: Database) -> None:
    """While the read of the log for a client behind waits in PostgreSQL, live events are read and arrive."""
    database.record_reads()
    shard = start_shard(ring_bytes=0)
    database.publish_count("s", 100)
    live = shard.live("s")
    with database.holding_reads(after=50):
        behind = shard.connect(("s", 50))
        wait_until(database.waiting_reads, "the read for the client behind waits")
        for number in range(3):
            database.publish("s", f"live {number}")
            live.wait_for_data(f"live {number}")
        behind.pump()
        assert not behind.events
    behind.wait_for(53)
    assert behind.ids == list(range(51, 104))


@pytest.mark.parametrize("seen", range(5))
def test_a_resume_brings_exactly_what_came_after_the_id(
    calm_shard: Shard, calm_database: Database, stream: str, seen: int
) -> None:
    """A client that has seen n of 4 events gets the others and no more, then live ones."""
    calm_database.publish_count(stream, 4)
    client = calm_shard.connect((stream, seen))
    client.wait_for_cursor(4)
    calm_database.publish(stream, "live")
    client.wait_for_data("live")
    assert client.ids == list(range(seen + 1, 6))
    assert not client.sentinels


def test_now_begins_at_the_head(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """A client from now on gets nothing of what was published before it came."""
    calm_database.publish_count(stream, 3)
    client = calm_shard.live(stream)
    assert client.last_id == "3"
    calm_database.publish(stream, "4")
    client.wait_for(1)
    assert client.ids == [4]


def test_a_stream_that_nobody_published_to(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """A stream without events begins at 0 for now, all and 0 alike, and its first event arrives."""
    clients = [calm_shard.connect((stream, start)) for start in ("now", "all", 0)]
    wait_all(clients, lambda client: client.last_id == "0", "the cursor 0")
    calm_database.publish(stream, "first")
    wait_all(clients, lambda client: client.ids == [1], "the first event")
    assert not any(client.sentinels for client in clients)


def test_all_begins_at_the_oldest_kept_without_a_gap(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """`all` gives what is kept, and does not call what is not kept a gap."""
    calm_database.publish_count(stream, 10)
    calm_database.trim(stream, 4)
    client = calm_shard.connect((stream, "all"))
    client.wait_for(4)
    assert client.ids == [7, 8, 9, 10]
    assert not client.sentinels


@pytest.mark.parametrize(("since", "missed_from"), [(0, 1), (1, 2), (5, 6)])
def test_a_cursor_that_retention_has_passed_gives_a_gap(
    calm_shard: Shard, calm_database: Database, stream: str, since: int, missed_from: int
) -> None:
    """A client whose next event is no longer kept is told exactly what it missed, then gets the rest."""
    calm_database.publish_count(stream, 10)
    calm_database.trim(stream, 4)
    client = calm_shard.connect((stream, since))
    client.wait_for(4)
    assert client.sentinels == [("gap", {"stream": stream, "missed_from": missed_from, "missed_to": 6})]
    kinds = [(f.event, f.id) for f in client.frames if f.comment is None and f.retry is None]
    assert kinds == [
        (None, str(since)),
        ("headrace:gap", None),
        ("headrace:cursor", "6"),
        *(("message", str(id_)) for id_ in range(7, 11)),
    ]


def test_a_cursor_whose_successor_is_kept_gives_no_gap(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """The last removed id itself is a good cursor: nothing is missed."""
    calm_database.publish_count(stream, 10)
    calm_database.trim(stream, 4)
    client = calm_shard.connect((stream, 6))
    client.wait_for(4)
    assert client.ids == [7, 8, 9, 10]
    assert not client.sentinels


def test_retention_that_removed_everything_gives_a_gap_up_to_the_head(
    start_shard: StartShard, database: Database
) -> None:
    """Where nothing is kept the gap reaches the head, and what is published next arrives."""
    shard = start_shard()
    database.publish_count("s", 5)
    database.connection.execute("select headrace.set_retention('s', interval '1 microsecond')")
    wait_until(lambda: database.one("select headrace.prune(100)") == 0, "everything is pruned")
    client = shard.connect(("s", 2))
    assert client.wait_for_sentinel("gap") == {"stream": "s", "missed_from": 3, "missed_to": 5}
    client.wait_for_cursor(5)
    database.publish("s", "next")
    client.wait_for(1)
    assert client.ids == [6]


def test_retention_that_passes_a_client_which_is_catching_up_gives_a_gap(
    start_shard: StartShard, database: Database
) -> None:
    """A slow client overtaken by retention in the middle of its catch-up is told from where to where."""
    shard = start_shard(ring_bytes=0, page_events=50, send_buffer_bytes=4096)
    database.publish_count("s", 1000, "x" * 1000)
    client = shard.connect(("s", 0), receive_buffer=4096)
    # A little at a time: who takes what there is could take all, as fast as it is sent.
    wait_until(lambda: client.pump(4096) and len(client.events) > 2, "some events")
    database.trim("s", 10)
    client.wait(lambda: client.ids[-1] == 1000, "the newest event")
    ((name, gap),) = client.sentinels
    assert name == "gap"
    before = next(index for index, f in enumerate(client.frames) if f.event == "headrace:gap")
    seen = [int(f.id or "") for f in client.frames[:before] if f.data is not None]
    assert seen == list(range(1, gap["missed_from"]))
    assert gap == {"stream": "s", "missed_from": len(seen) + 1, "missed_to": 990}
    assert client.ids == [*seen, *range(991, 1001)]


@pytest.mark.parametrize("ahead", [4, 1000, MAX_ID])
def test_a_cursor_ahead_of_the_log_is_reset_to_the_head(
    calm_shard: Shard, calm_database: Database, stream: str, ahead: int
) -> None:
    """A client ahead of the log is told the head, goes on there, and gets what is published next."""
    calm_database.publish_count(stream, 3)
    client = calm_shard.connect((stream, ahead))
    assert client.wait_for_sentinel("reset") == {"stream": stream, "head": 3}
    client.wait_for_cursor(3)
    calm_database.publish(stream, "4")
    client.wait_for(1)
    assert client.ids == [4]
    assert len(client.sentinels) == 1


def test_a_cursor_inside_a_recorded_jump_is_reset(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """A client that saw events which a fail-over has lost is told to go on at the head; others miss nothing."""
    calm_database.publish_count(stream, 3)
    stream_id = calm_database.one("select stream_id from headrace.stream where name = %s", stream)
    calm_database.connection.execute("insert into headrace.jump values (%s, 4, 100)", [stream_id])
    calm_database.connection.execute("update headrace.stream set last_id = 100 where stream_id = %s", [stream_id])
    calm_database.publish(stream, "101", "102")
    lost, well = calm_shard.connect((stream, 7)), calm_shard.connect((stream, 2))
    assert lost.wait_for_sentinel("reset") == {"stream": stream, "head": 102}
    well.wait_for(3)
    assert well.ids == [3, 101, 102]
    assert not well.sentinels
    calm_database.publish(stream, "103")
    for client in (lost, well):
        client.wait_for_data("103")
    assert lost.ids == [103]


def test_composite_cursors_gap_and_reset_by_stream(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """Of several streams each begins where its own cursor is: one resumes, one has a gap, one a reset, one is at it."""
    names = [f"{stream}:{number}" for number in range(4)]
    assert len({slot(name) for name in names}) > 1
    for name in names:
        calm_database.publish_count(name, 5)
    calm_database.trim(names[1], 2)
    client = calm_shard.connect((names[0], 3), (names[1], 1), (names[2], 9), (names[3], 5))
    client.wait_for_cursor(5, 5, 5, 5)
    assert client.frames[1].id == "3.1.9.5"
    assert sorted(client.sentinels) == [
        ("gap", {"stream": names[1], "missed_from": 2, "missed_to": 3}),
        ("reset", {"stream": names[2], "head": 5}),
    ]
    assert sorted((int((f.id or "").partition("/")[2]), f.data) for f in client.events) == [
        *((0, "4"), (0, "5"), (1, "4"), (1, "5")),
    ]
    # Whatever id the client was given last, at any moment, it has seen exactly what is before it.
    positions = [3, 1, 9, 5]
    for frame in client.frames[2:]:
        if frame.id and "/" in frame.id:
            positions[int(frame.id.partition("/")[2])] += 1
            assert frame.id.partition("/")[0] == ".".join(map(str, positions))
        elif frame.id:
            positions = [int(part) for part in frame.id.split(".")]


def test_a_client_that_has_seen_nothing_yet_resumes_where_it_connected(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """A client cut off before any event was given its cursor, and resumed with that it misses nothing."""
    calm_database.publish_count(stream, 3)
    client = calm_shard.live(stream)
    assert [f for f in client.frames if f.retry] == client.frames[:1]
    client.close()
    calm_database.publish(stream, "while away")
    again = calm_shard.connect((stream, int(client.last_id)))
    again.wait_for(1)
    assert again.data == ["while away"]


def test_a_resume_within_what_is_held_costs_no_query(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """200 clients that resume at recent ids of a stream which is being followed make no read at all."""
    first = calm_shard.live(stream)
    calm_database.publish_count(stream, 50)
    first.wait_for(50)
    before = len(reads_of(calm_database, stream))
    clients = [calm_shard.connect((stream, number % 51)) for number in range(200)]
    wait_all(clients, lambda client: client.last_id == "50", "the head")
    assert [len(client.events) for client in clients] == [50 - number % 51 for number in range(200)]
    assert len(reads_of(calm_database, stream)) == before


def test_clients_that_resume_together_share_their_reads(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """200 clients that resume at once on a stream nobody was following need a handful of reads, not 200."""
    calm_database.publish_count(stream, 600)
    with calm_database.holding_reads():
        clients = [calm_shard.connect((stream, number)) for number in range(200)]
        wait_all(clients, lambda client: client.status, "its place among those who wait")
    wait_all(clients, lambda client: client.last_id == "600", "the head")
    for number, client in enumerate(clients):
        assert client.ids == list(range(number + 1, 601))
    assert len(reads_of(calm_database, stream)) <= 6


def test_clients_that_are_new_together_share_their_read(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """100 clients that ask for a stream's head while a read is held get it from one read."""
    with calm_database.holding_reads():
        first = calm_shard.connect((stream, "now"))
        wait_until(lambda: calm_database.waiting_reads() == 1, "the first client's read is held")
        clients = [first, *(calm_shard.connect((stream, "now")) for _ in range(100))]
        wait_all(clients, lambda client: client.status, "its place among those who wait")
    wait_all(clients, lambda client: client.last_id == "0", "the head")
    assert len(reads_of(calm_database, stream)) <= 2


def test_clients_resume_during_a_storm_of_events_and_nobody_misses_or_repeats_any(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """While a thread publishes 1,500 events, clients cut off and resume at their last id again and again."""
    total = 1500
    publisher = Database(calm_database.url)

    def publish() -> None:
        for number in range(0, total, 3):
            publisher.publish(stream, *(str(number + more) for more in (1, 2, 3)))

    thread = threading.Thread(target=publish)
    clients = [calm_shard.live(stream) for _ in range(5)]
    seen: list[list[int]] = [[] for _ in clients]
    thread.start()
    try:
        for round_ in range(1, 40):
            for index, client in enumerate(clients):
                wait_all([client], lambda c, n=round_ % 7: len(c.ids) > n or c.last_id == str(total), "some events")
                client.close()
                client.pump()
                seen[index] += client.ids
                clients[index] = calm_shard.connect((stream, int(client.last_id)))
        for index, client in enumerate(clients):
            client.wait(lambda client=client: client.last_id == str(total), "the last event")
            seen[index] += client.ids
    finally:
        thread.join()
        publisher.close()
    assert seen == [list(range(1, total + 1))] * len(clients)
