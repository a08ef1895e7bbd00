"""Who is on a stream, as the companion stream and `headrace.members` tell it, over tabs, shards, moves and faults."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import psycopg
import pytest

import headrace
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from tests.fixtures.client import Client
from tests.fixtures.guide import block
from tests.fixtures.proxy import Proxy
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.stack import StartStack
from tests.fixtures.up import Up
from tests.fixtures.waiting import DEADLINE_S, wait_until

ROOM, COMPANION = "room:1", "presence:room:1"
EXPIRY_S = 10
PATIENCE_S = 4 * EXPIRY_S
"""Who stands still for a moment begins anew to observe the others."""
SWIFT = {"presence_interval_s": 0.05, "presence_grace_s": 0.5, "presence_expiry_s": EXPIRY_S}
HELD = "select count(*) from headrace.presence_holder where member = %s"
HOLDERS = "select shard from headrace.presence_holder join headrace.presence_session using (session) where member = %s"


def enter(shard: Shard, user: str, *streams: str) -> Client:
    """A connection that makes its user present on the streams."""
    names = streams or (ROOM,)
    return shard.connect(*((name, "now") for name in names), user=user, presence=frozenset(names))


def told(client: Client) -> list[tuple[str, str, int]]:
    """What a client of the companion stream was told: (type, user, count)."""
    return [(frame.event or "", frame.value["user"], frame.value["count"]) for frame in client.events]


def wait_told(client: Client, *expected: tuple[str, str, int], deadline_s: float = DEADLINE_S) -> None:
    """Read until exactly this was told."""
    client.wait(lambda: len(told(client)) >= len(expected), f"{expected}, not {told(client)}", deadline_s)
    assert told(client) == list(expected)


def published(database: Database) -> list[str]:
    """All that the companion stream has had, in order."""
    return database.column(
        "select type || ' ' || (data::json ->> 'user') from headrace.kept_events() where stream = %s order by id",
        COMPANION,
    )


def wait_held(database: Database, user: str, sessions: int) -> None:
    """Wait until so many shards say that they have the user."""
    wait_until(lambda: database.one(HELD, user) == sessions, f"{user} is held by {sessions} shards")


@pytest.fixture
def shards(start_shard: StartShard) -> tuple[Shard, Shard]:
    """Two shards on one database."""
    first = start_shard("n-0", launch_only=True, **SWIFT)
    second = start_shard("n-1", **SWIFT)
    first.wait_until_served()
    return first, second


def test_tabs_and_shards(shards: tuple[Shard, Shard], database: Database) -> None:
    """However many connections a user has, and wherever: one join with the first, one leave after the last."""
    here, there = shards
    watching = here.live(COMPANION, user="eve")
    tabs = [enter(here, "ada"), enter(here, "ada", ROOM, "room:2"), enter(there, "ada")]
    wait_told(watching, ("join", "ada", 1))
    wait_held(database, "ada", 3)
    for tab in tabs[:2]:
        tab.close()
    # Another user's stay, from end to end, shows that all is told by then.
    wait_held(database, "ada", 1)
    enter(here, "bob").close()
    wait_told(watching, ("join", "ada", 1), ("join", "bob", 2), ("leave", "bob", 1))
    assert headrace.members(database.connection, ROOM) == ["ada"]
    assert headrace.member_count(database.connection, "room:2") == 0
    tabs[2].close()
    wait_told(watching, ("join", "ada", 1), ("join", "bob", 2), ("leave", "bob", 1), ("leave", "ada", 0))
    assert "eve" not in database.column("select json_extract_path_text(data::json, 'user') from headrace.kept_events()")


@pytest.mark.parametrize("exists", [True, False])
def test_a_transaction_that_holds_a_companion(shards: tuple[Shard, Shard], database: Database, exists: bool) -> None:
    """An open transaction that has published to a companion keeps back who is on that stream, and nobody else."""
    here, there = shards
    if exists:
        database.publish(COMPANION, "by hand")
    with psycopg.connect(database.url) as holder:
        holder.execute("select headrace.publish_now(%s, 'by hand')", [COMPANION])
        enter(here, "ada", ROOM, "room:2", "room:3")
        enter(there, "bob", ROOM, "room:3")
        for room, users in (("room:2", ["ada"]), ("room:3", ["ada", "bob"])):
            wait_until(lambda room=room, users=users: members(database, room) == users, f"{users} are in {room}")  # type: ignore[misc]
        enter(here, "cid", "room:2")
        wait_until(lambda: members(database, "room:2") == ["ada", "cid"], "cid is in another room")
        assert members(database, ROOM) == []
    wait_until(lambda: members(database, ROOM) == ["ada", "bob"], "the held room is told of")
    assert (here.running, there.running) == (True, True)


def members(database: Database, room: str) -> list[str]:
    return sorted(headrace.members(database.connection, room))


def test_a_killed_shard(shards: tuple[Shard, Shard], database: Database) -> None:
    """Who was on a killed shard alone leaves within the expiry, once; who is elsewhere too, or comes back, does not."""
    here, there = shards
    watching = there.live(COMPANION)
    enter(here, "ada")
    wait_told(watching, ("join", "ada", 1))
    enter(here, "bob")
    wait_held(database, "bob", 1)
    enter(here, "cid")
    wait_held(database, "cid", 1)
    enter(there, "bob")
    wait_held(database, "bob", 2)
    joins = [("join", "ada", 1), ("join", "bob", 2), ("join", "cid", 3)]
    wait_told(watching, *joins)
    here.kill()
    enter(there, "cid")
    wait_told(watching, *joins, ("leave", "ada", 2), deadline_s=PATIENCE_S)
    assert headrace.members(database.connection, ROOM) == ["bob", "cid"]
    assert database.one("select count(*) from headrace.presence_session") == 1


def test_a_stopped_shard_wakes(shards: tuple[Shard, Shard], database: Database) -> None:
    """A shard that stood still for longer than the expiry has lost its members, and tells them again when it wakes."""
    here, there = shards
    watching = there.live(COMPANION)
    enter(here, "ada")
    wait_told(watching, ("join", "ada", 1))
    os.kill(here.pid, signal.SIGSTOP)
    try:
        wait_told(watching, ("join", "ada", 1), ("leave", "ada", 0), deadline_s=PATIENCE_S)
    finally:
        os.kill(here.pid, signal.SIGCONT)
    wait_told(watching, ("join", "ada", 1), ("leave", "ada", 0), ("join", "ada", 1))
    assert headrace.members(database.connection, ROOM) == ["ada"]


def test_moves_and_restarts_are_not_seen(start_stack: StartStack, database: Database) -> None:
    """A live move, a reconnect and a restarted shard make nobody leave or join."""
    stack = start_stack(2, **SWIFT | {"presence_grace_s": 10, "presence_expiry_s": 30})
    operations = ShardOperations(Directory(stack.redis.url, expiry_s=1), lambda line: None)
    ada = stack.subscribe(ROOM, user="ada", presence=True)
    wait_held(database, "ada", 1)
    giver = stack.holder(ada)
    operations.drain(giver.id)
    taker = stack.holder(ada)
    assert taker is not giver
    wait_until(lambda: database.column(HOLDERS, "ada") == [taker.id], "the giver's grace is over")
    ada.close()
    ada = stack.subscribe(ROOM, user="ada", presence=True, last_event_id=ada.last_id)
    operations.undrain(giver.id)
    ending = stack.holder(ada)
    ending.terminate()
    ada.wait_for_end()
    ada = stack.subscribe(ROOM, user="ada", presence=True, last_event_id=ada.last_id)
    ending.exit_status()
    wait_until(lambda: database.one("select count(*) from headrace.presence_session") == 1, "one session is left")
    assert headrace.members(database.connection, ROOM) == ["ada"]
    assert published(database) == ["join ada"]


def test_postgresql_is_away(start_shard: StartShard, database: Database, postgres_proxy: Proxy) -> None:
    """What changes while PostgreSQL is away is told when it is back, and nobody is given up for the silence."""
    through = {"database_url": postgres_proxy.url(database.url), **SWIFT}
    here, there = start_shard("n-0", **through), start_shard("n-1", **through)
    ada = enter(here, "ada")
    enter(there, "bob")
    wait_until(lambda: len(headrace.members(database.connection, ROOM)) == 2, "both have joined")
    postgres_proxy.cut()
    # Both have noticed: from then on neither could have told that it lives.
    for shard in (here, there):
        wait_until(lambda shard=shard: "presence cannot be told" in shard.log, f"{shard!r} notices")  # type: ignore[misc]
    ada.close()
    enter(here, "cid")
    time.sleep(EXPIRY_S + 0.5)  # for longer than the expiry: this is what must not count
    postgres_proxy.resume()
    wait_until(lambda: set(headrace.members(database.connection, ROOM)) == {"bob", "cid"}, "it converges")
    assert sorted(published(database)[:2]) == ["join ada", "join bob"]
    assert sorted(published(database)[2:]) == ["join cid", "leave ada"]


def test_an_event_that_is_no_join(shards: tuple[Shard, Shard]) -> None:
    """The companion is a stream like any other: whoever comes later is told from the cursor on, as JSON."""
    here, _ = shards
    enter(here, 'a"\n\u2028')
    watching = here.connect((COMPANION, "all"))
    wait_told(watching, ("join", 'a"\n\u2028', 1))
    assert json.loads(watching.events[0].data or "") == {"user": 'a"\n\u2028', "count": 1}


def test_the_code_of_the_guide(running_up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the guide's chapter does what it says there, and `headrace members` prints the same."""
    for name in ("SECRET", "DATABASE_URL"):
        monkeypatch.setenv(f"HEADRACE_{name}", running_up.environ[f"HEADRACE_{name}"])
    code = block("guide/presence.md", "Presence", "python").text
    address = urlsplit(running_up.ready())
    clients = []
    with psycopg.connect(running_up.environ["HEADRACE_DATABASE_URL"], autocommit=True) as connection:
        for present in ([], ["ada"]):
            wait_until(lambda p=present: headrace.members(connection, ROOM) == p, f"{present} are there")  # type: ignore[misc]
            page = {"headrace": headrace, "connection": connection}
            exec(code, page)
            assert page["members"] == present
            assert page["count"] == len(present)
            client = Client(socket.create_connection((address.hostname or "", address.port or 0)))
            clients.append(client)
            client.send(f"GET {page['url']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            client.wait(lambda c=client: c.last_id, "its cursor")  # type: ignore[misc]
    clients[0].wait_for(1)
    assert told(clients[0]) == [("join", "ada", 1)]
    for option, expected in ((), "ada\n"), (("--count",), "1\n"):
        argv = [sys.executable, "-P", "-m", "headrace.cli", "members", ROOM, *option]
        assert subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout == expected
    for client in clients:
        client.close()
