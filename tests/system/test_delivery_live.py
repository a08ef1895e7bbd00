"""What is published reaches those who are connected: each event once, in order, unchanged."""

import itertools

import psycopg
import pytest

import headrace
from headrace.cursor import parse_part
from headrace.event import HEARTBEAT
from headrace.stream import slot
from tests.fixtures.client import wait_all
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.waiting import wait_until

PAYLOADS = {
    "empty": "",
    "a line feed at the end": "a\n",
    "only line feeds": "\n\n\n",
    "several lines": "a\nb\n\nc",
    "leading spaces": "  a\n b",
    "what looks like fields": "data: x\nid: 9\nevent: y\n: z\nretry: 1",
    "line separator": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "any Unicode": "žluťoučký 🐎 \u0000".replace("\u0000", "\x01"),
    "a byte order mark": "\ufeffa",
    "9,000 bytes": "é" * 4500,
    "1 MB": "0123456789abcdef" * 65536,
}


def test_transactions_that_commit_in_the_opposite_order_both_arrive(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """Of two transactions the one that published first commits last, and a client gets both events once."""
    client = calm_shard.live(stream)
    with (
        psycopg.connect(calm_database.url) as first,
        psycopg.connect(calm_database.url) as second,
    ):
        headrace.publish(first, stream, "published first")
        headrace.publish(second, stream, "published second")
        second.commit()
        client.wait_for(1)
        first.commit()
    client.wait_for(2)
    assert client.data == ["published second", "published first"]
    assert client.ids == [1, 2]


def test_commits_in_any_order_arrive_once_and_in_the_order_of_their_ids(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """Of 40 transactions on a few connections, interleaved and partly rolled back, each commit arrives once."""
    client = calm_shard.live(stream)
    open_: list[tuple[psycopg.Connection[tuple[object, ...]], int]] = []
    expected = []
    for number in range(40):
        connection = psycopg.connect(calm_database.url)
        headrace.publish(connection, stream, str(number))
        open_.append((connection, number))
        if len(open_) == 4:
            connection, number = open_.pop(number * 7 % 4)
            with connection:
                if number % 5:
                    expected.append(str(number))
                else:
                    connection.rollback()
    for connection, number in reversed(open_):
        with connection:
            expected.append(str(number))
    client.wait_for(len(expected))
    calm_database.publish(stream, "end")
    assert client.wait_for_data("end") == [*expected, "end"]
    assert client.ids == list(range(1, len(expected) + 2))


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_payloads_arrive_unchanged(calm_shard: Shard, calm_database: Database, stream: str, payload: str) -> None:
    """Whatever text was published arrives as it was, live and when it is replayed."""
    live = calm_shard.live(stream)
    calm_database.publish(stream, payload, event="kind")
    replayed = calm_shard.connect((stream, 0))
    for client in (live, replayed):
        (frame,) = client.wait_for(1)
        assert (frame.data, frame.event, frame.id) == (payload, "kind", "1")


def test_carriage_returns_arrive_as_line_feeds(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    r"""`\r\n` and `\r` arrive as `\n`; the log keeps them as they were."""
    client = calm_shard.live(stream)
    calm_database.publish(stream, "a\r\nb\rc\n\rd\r")
    client.wait_for(1)
    assert client.data == ["a\nb\nc\n\nd\n"]
    read = "select data from unrecorded.read_log(array[%s], array[0::bigint], 1, 1, 1)"
    assert calm_database.one(read, stream) == "a\r\nb\rc\n\rd\r"


def test_names_are_exact(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """Streams whose names differ in case, punctuation or Unicode form are different, and all are live."""
    names = [
        *(
            "room:1",
            "room_1",
            "Room:1",
            "ROOM:1",
            "room:1 ",
            " room:1",
            "room.1",
            "room-1",
            "room/1",
            'room"1',
            "room'1",
        ),
        *("room%1", "room;1", "room\\1", "room\n1", "10 room", "комната", "部屋", "🚪", "é", "e\u0301", "x" * 400),
    ]
    names = [f"{stream}{name}" for name in names] + ["café", "0 0", "*", "%s"]
    clients = {name: calm_shard.connect((name, "now")) for name in names}
    wait_all(clients.values(), lambda client: client.last_id, "the cursor")
    for name in names:
        calm_database.publish(name, f"for {name}")
    for name, client in clients.items():
        client.wait_for(1)
        assert client.data == [f"for {name}".replace("\r", "\n")]
    for name in names:
        calm_database.publish(name, "end")
    for client in clients.values():
        client.wait_for_data("end")
        assert len(client.data) == 2


def test_everyone_on_a_stream_gets_the_same_bytes(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """All live clients of one stream get the same frames, each once."""
    clients = [calm_shard.connect((stream, "now")) for _ in range(20)]
    wait_all(clients, lambda client: client.last_id, "the cursor")
    before = [len(client.raw) for client in clients]
    for number in range(30):
        calm_database.publish(stream, f"event {number}", event="kind")
    wait_all(clients, lambda client: len(client.events) >= 30, "30 events")
    received = {bytes(client.raw[start:]) for client, start in zip(clients, before, strict=True)}
    assert {each.replace(HEARTBEAT, b"") for each in received} == {
        b"".join(b"id: %d\nevent: kind\ndata: event %d\n\n" % (n + 1, n) for n in range(30))
    }


def test_streams_of_one_connection_in_several_slots_come_with_a_composite_cursor(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """With several streams each event's id is all cursors and the index of its stream."""
    names = [next(f"{stream}:{n}" for n in itertools.count() if slot(f"{stream}:{n}") % 3 == part) for part in range(3)]
    calm_database.publish(names[1], "before", "before")
    client = calm_shard.live(*names)
    assert client.last_id == "0.2.0"
    for index in (2, 1, 0, 1):
        calm_database.publish(names[index], f"to {index}")
        client.wait_for_data(f"to {index}")
    client.wait_for(4)
    assert [(frame.id, frame.data) for frame in client.events] == [
        ("0.2.1/2", "to 2"),
        ("0.3.1/1", "to 1"),
        ("1.3.1/0", "to 0"),
        ("1.4.1/1", "to 1"),
    ]


def test_one_transaction_on_several_streams_reaches_all_of_them(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """Events of one transaction on several streams all arrive, in order within each stream."""
    names = [f"{stream}:{number}" for number in range(4)]
    client = calm_shard.live(*names)
    with calm_database.connection.transaction():
        for number in range(20):
            calm_database.publish(names[number % 4], str(number))
    client.wait_for(20)
    for index in range(4):
        assert [f.data for f in client.events if f.id and f.id.endswith(f"/{index}")] == [
            str(number) for number in range(index, 20, 4)
        ]
    assert client.cursor == (5, 5, 5, 5)


def test_many_wakes_cost_one_read(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """However many notifications arrive during a read, one further read answers them all."""
    client = calm_shard.live(stream)
    before = len(calm_database.reads())
    with calm_database.holding_reads():
        calm_database.publish(stream, "held")
        wait_until(lambda: calm_database.waiting_reads() == 1, "the read for the first event is held")
        for number in range(50):
            calm_database.publish(stream, str(number))
        calm_database.publish(stream, "end")
    client.wait_for_data("end")
    assert client.ids == list(range(1, 53))
    # The second is for wakes whose events the first has already brought, or not: it saw all that was committed.
    assert len([streams for streams, _ in calm_database.reads()[before:] if stream in streams]) <= 2


def test_dirty_streams_share_one_read(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """Streams that are woken during a read are read together."""
    names = [f"{stream}:{number}" for number in range(10)]
    client = calm_shard.live(stream, *names)
    before, heard = len(calm_database.reads()), calm_shard.counted("notifications")
    with calm_database.holding_reads():
        calm_database.publish(stream, "held")
        wait_until(lambda: calm_database.waiting_reads() == 1, "the read for the first event is held")
        with calm_database.connection.transaction():
            for name in names:
                calm_database.publish(name, "x")
        wait_until(lambda: calm_shard.counted("notifications") >= heard + 11, "the shard has heard of all")
    client.wait_for(11)
    reads = [set(streams) for streams, _ in calm_database.reads()[before:]]
    # Clients of a test before may still be read for.
    assert [streams for streams in reads if streams & {stream, *names}] == [{stream}, set(names)]


def test_a_wake_without_subscribers_makes_no_read(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """Events of streams that nobody is subscribed to are not read, though their slot is listened to."""
    number = 0
    while slot(other := f"{stream}:other{number}") != slot(stream):
        number += 1
    client = calm_shard.live(stream)
    before = len(calm_database.reads())
    for _ in range(5):
        calm_database.publish(other, "nobody reads this")
    calm_database.publish(stream, "end")
    client.wait_for_data("end")
    reads = [streams for streams, _ in calm_database.reads()[before:]]
    assert [streams for streams in reads if {stream, other} & {*streams}] == [[stream]]


def test_notifications_from_another_hand_are_harmless(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """Anybody may NOTIFY: what makes no sense, or promises events that are not there, neither ends nor repeats."""
    client = calm_shard.live(stream)
    calm_database.publish(stream, "1")
    channel = f"headrace_slot_{slot(stream)}"
    lies = ("", " ", "1", "x y", f"-1 {stream}", f"999 {stream}", f"{'9' * 30} {stream}", f"1 {stream}", f"0 {stream}")
    for payload in (*lies, f"² {stream}", "7" * 5000 + f" {stream}", "7 no such stream"):
        calm_database.connection.execute("select pg_notify(%s, %s)", [channel, payload])
    calm_database.publish(stream, "2")
    assert client.wait_for_data("2") == ["1", "2"]
    assert not client.sentinels


def test_an_event_published_while_a_client_connects_arrives_once(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """Events committed before, during and after a client's first read arrive once each."""
    calm_database.publish(stream, "before")
    with calm_database.holding_reads():
        client = calm_shard.connect((stream, 0))
        wait_until(lambda: calm_database.waiting_reads() == 1, "the client's first read is held")
        calm_database.publish(stream, "during")
    calm_database.publish(stream, "after")
    client.wait_for_data("after")
    assert client.data == ["before", "during", "after"]


def test_a_page_that_was_born_stale_misses_nothing(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """What was published between rendering a page and connecting arrives, then what follows live."""
    calm_database.publish(stream, "on the page")
    with psycopg.connect(calm_database.url) as page:
        page.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        watermark = headrace.watermark(page, stream)
        calm_database.publish(stream, "born", "stale")
        assert headrace.watermark(page, stream) == watermark
    client = calm_shard.connect((stream, parse_part(watermark)))
    client.wait_for(2)
    calm_database.publish(stream, "live")
    client.wait_for(3)
    assert client.data == ["born", "stale", "live"]


def test_what_is_rolled_back_never_arrives(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """Of committed, rolled back and partly rolled back transactions exactly what was committed arrives."""
    client = calm_shard.live(stream)
    with psycopg.connect(calm_database.url) as connection:
        headrace.publish(connection, stream, "rolled back")
        connection.rollback()
        headrace.publish(connection, stream, "kept")
        with connection.transaction(force_rollback=True):
            headrace.publish(connection, stream, "rolled back to a savepoint")
        connection.commit()
    calm_database.publish(stream, "end")
    assert client.wait_for_data("end") == ["kept", "end"]
    assert client.ids == [1, 2]


def test_a_restored_stream_resets_those_who_are_live(start_shard: StartShard, database: Database) -> None:
    """When the log falls behind what live clients have seen, each is told the new head and goes on there."""
    shard = start_shard(sweep_interval_s=0.2)
    database.publish("s", "1", "2", "3")
    client = shard.live("s")
    database.publish("s", "4")
    client.wait_for(1)
    database.connection.execute("truncate headrace.event")
    database.connection.execute("update headrace.stream set last_id = 2 where name = 's'")
    assert client.wait_for_sentinel("reset") == {"stream": "s", "head": 2}
    client.wait_for_cursor(2)
    database.publish("s", "3 again")
    client.wait_for(2)
    assert (client.data, client.ids) == (["4", "3 again"], [4, 3])
