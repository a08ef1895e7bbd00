"""A page that shows events which have no id yet, and its stream: together they are the table, whatever happens between.

The test is the session in office, so that events get their ids when the test does a round, and not before.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from headrace import cursor
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from tests.fixtures.client import Client
from tests.fixtures.shard import Database
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until

Page = tuple[list[str], str]
"""What a page shows of the table, and the cursor of its streams."""


class Ledger:
    """A table whose rows are published as they are inserted, and the office. Owned by the test."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.connection.execute("create table note (stream text, text text)")
        self._office = psycopg.connect(database.url, autocommit=True)

    def take_office(self) -> None:
        (taken,) = self._office.execute("select headrace.take_office()").fetchone() or (False,)
        assert taken

    def round(self) -> None:
        """Give all that has been committed its ids."""
        (skipped,) = self._office.execute("select skipped from headrace.sequence()").fetchone() or (1,)
        assert not skipped

    def write(self, stream: str, *texts: str) -> None:
        """One transaction."""
        with self.open() as connection:
            _insert(connection, stream, *texts)

    def open(self) -> "psycopg.Connection[Any]":
        """A connection, whose transaction ends with a `with` block of it."""
        return psycopg.connect(self.database.url)

    def page(self, *streams: str) -> Page:
        with self.open() as connection:
            connection.execute("set transaction isolation level repeatable read")
            rows = connection.execute("select text from note where stream = any (%s)", [list(streams)]).fetchall()
            parts = [connection.execute("select headrace.watermark(%s)", [name]).fetchone() for name in streams]
        return [text for (text,) in rows], cursor.join([part[0] for part in parts if part])

    def rows(self, *streams: str) -> list[str]:
        return self.page(*streams)[0]

    def close(self) -> None:
        self._office.close()


def _insert(connection: "psycopg.Connection[Any]", stream: str, *texts: str) -> None:
    for text in texts:
        connection.execute("insert into note values (%s, %s)", [stream, text])
        connection.execute("select headrace.publish(%s, %s)", [stream, text])


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    made = Ledger(database)
    yield made
    made.close()


def between(ledger: Ledger, stream: str) -> Page:
    """Two events have ids. Of three more, which get theirs in the order of their names, the page shows two, 3 and 5."""
    ledger.write(stream, "1", "2")
    ledger.take_office()
    ledger.write(stream, "3")
    with ledger.open() as late:
        _insert(late, stream, "4")
        late.execute("set constraints all immediate")  # it has its turn, and commits after the page
        ledger.write(stream, "5")
        page = ledger.page(stream)
    assert sorted(page[0]) == ["1", "2", "3", "5"]
    assert page[1].startswith("2-") and page[1].count("-") == 2, "the page has no pending events, and shows nothing"
    return page


def test_what_the_page_shows_is_not_sent_again(start_stack: StartStack, ledger: Ledger) -> None:
    """Each id carries what is left of the set, so that a client which comes back at any of them goes on exactly."""
    stack = start_stack(1)
    _, watermark = between(ledger, "a")
    client = stack.subscribe("a", since=watermark)
    assert client.last_id == watermark
    ledger.round()
    ledger.write("a", "6")
    ledger.round()
    client.wait_for(2)
    last = watermark.split("-")
    left = int(last[1]) + int(last[2])
    assert [(frame.id, frame.data) for frame in client.events] == [(f"4-{left}", "4"), ("6", "6")]
    # Of the ring, of the log, and of a shard that has just begun.
    for _ in range(2):
        for given, expected in ((watermark, ["4", "6"]), (f"4-{left}", ["6"]), (f"3-{left}", ["4", "6"])):
            for how in ({"since": given}, {"last_event_id": given, "since": "now"}):
                again = stack.subscribe("a", **how)
                again.wait_for_data("6")
                assert again.data == expected
        stack.shards[0].kill()
        stack.shards[0].start()
        assert stack.router is not None
        stack.router.knows(stack.shards[0].id)


def test_several_streams(start_stack: StartStack, ledger: Ledger) -> None:
    """Each stream of a connection has pending events of its own."""
    stack = start_stack(1)
    between(ledger, "a")
    ledger.write("b", "b1", "b2")
    rows, watermarks = ledger.page("b", "a", "none")
    assert [part.count("-") for part in watermarks.split(".")] == [2, 3, 0]
    client = stack.subscribe("b", "a", "none", since=watermarks)
    ledger.write("b", "b3")
    ledger.write("a", "6")
    ledger.write("none", "n1")
    ledger.round()
    client.wait_for(3)
    assert Counter(rows) + Counter(client.data) == Counter(ledger.rows("b", "a", "none"))
    assert client.last_id.partition("/")[0] == "3.6.1"


def test_a_page_of_history_goes_on_from_a_page(start_stack: StartStack, ledger: Ledger) -> None:
    """Pending events are left out; `next` names those that have no id, and is a number when all have one."""
    stack = start_stack(1)
    assert stack.router is not None
    _, watermark = between(ledger, "a")

    def events(after: object) -> tuple[list[str], object]:
        assert stack.router is not None
        status, _, body = stack.router.get(f"{stack.path('a')}/events?after={after}&limit=2")
        assert status == 200, body
        found = json.loads(body)
        return [event["data"] for event in found["events"]], found["next"]

    assert events(watermark) == ([], watermark)
    assert events(2) == ([], 2)
    ledger.round()
    _, first, step = map(int, watermark.split("-"))
    assert events(watermark) == (["4"], f"4-{first + step}")
    assert events(f"4-{first + step}") == ([], 5)
    assert events(f"3-{first + step}") == (["4"], 5)
    assert events(2) == (["3", "4"], 4)


def test_a_connection_moves_with_its_pending_events(start_stack: StartStack, ledger: Ledger) -> None:
    """A shard that is drained gives the set away; the client notices nothing."""
    stack = start_stack(2)
    operations = ShardOperations(Directory(stack.redis.url, expiry_s=1), lambda line: None)
    rows, watermark = between(ledger, "a")
    client = stack.subscribe("a", since=watermark)
    first = stack.holder(client)
    operations.drain(first.id)
    wait_until(lambda: stack.holder(client) is not first, "the connection has moved")
    ledger.round()
    client.wait_for(1)
    operations.undrain(first.id)
    operations.drain(next(shard.id for shard in stack.shards if shard is not first))
    wait_until(lambda: stack.holder(client) is first, "the connection has moved back")
    ledger.write("a", "6")
    ledger.round()
    client.wait_for(2)
    assert Counter(rows) + Counter(client.data) == Counter(ledger.rows("a"))
    assert not client.ended


@dataclass
class Reader:
    """A page with its stream: what it has, over all of its connections."""

    streams: list[str]
    page: Page
    client: Client
    had: list[str] = field(default_factory=list)

    @property
    def everything(self) -> Counter[str]:
        return Counter(self.page[0]) + Counter(self.had) + Counter(self.client.data)


@pytest.mark.parametrize("seed", range(2))
def test_page_and_stream_are_the_table(start_stack: StartStack, ledger: Ledger, seed: int) -> None:
    """However transactions, pages, rounds, reconnects and moves alternate, each reader has each row once."""
    stack = start_stack(2)
    chance = random.Random(seed)
    names = ["a", "b", "c"]
    ledger.write("a", "first")
    ledger.take_office()
    readers: list[Reader] = []
    open_: list[psycopg.Connection[Any]] = []
    count = 0

    def write() -> None:
        nonlocal count
        connection = ledger.open()
        for _ in range(chance.randint(1, 3)):
            count += 1
            _insert(connection, chance.choice(names), str(count))
        if chance.random() < 0.5:
            connection.execute("set constraints all immediate")
        open_.append(connection)

    def commit() -> None:
        if open_:
            connection = open_.pop(chance.randrange(len(open_)))
            connection.commit()
            connection.close()

    def render() -> None:
        streams = chance.sample(names, chance.randint(1, 3))
        page = ledger.page(*streams)
        readers.append(Reader(streams, page, stack.subscribe(*streams, since=page[1])))

    def come_back() -> None:
        if readers:
            reader = chance.choice(readers)
            reader.client.pump()
            reader.client.close()
            reader.had += reader.client.data
            reader.client = stack.subscribe(*reader.streams, since=reader.page[1], last_event_id=reader.client.last_id)

    steps: list[Callable[[], None]] = [write, write, write, commit, commit, commit, ledger.round, render, come_back]
    operations = ShardOperations(Directory(stack.redis.url, expiry_s=1), lambda line: None)
    for number in range(240):
        chance.choice(steps)()
        if number % 80 == 40:
            drained = stack.shards[number // 80 % 2].id
            operations.drain(drained)
            operations.undrain(drained)
    while open_:
        commit()
    ledger.round()
    for reader in readers:
        table = Counter(ledger.rows(*reader.streams))
        reader.client.wait(lambda r=reader, t=table: not t - r.everything, f"all rows of {reader.streams}")
        assert reader.everything == table
    assert sum("-" in reader.page[1] for reader in readers) >= len(readers) // 4, "hardly a page has pending events"


def test_a_cursor_that_is_none_is_refused(start_stack: StartStack, ledger: Ledger) -> None:
    """The router says what is wrong with it, whichever way it comes."""
    stack: Stack = start_stack(1)
    ledger.write("a", "1")
    for wrong in ("1-", "1-0", "1-x", "1" + "-1" * (cursor.MAX_PENDING + 1), f"1-{2**63}"):
        assert stack.connect(stack.path("a", since=wrong)).answered() == 400
        assert stack.connect(stack.path("a"), f"Last-Event-ID: {wrong}").answered() == 400
    longest = "1" + "-1000000000" * cursor.MAX_PENDING
    client = stack.subscribe("a", last_event_id=longest)
    assert client.last_id == longest
    ledger.write("a", "2")
    client.wait_for(1)
    assert client.last_id == "2" + longest[1:]
