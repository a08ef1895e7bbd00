"""Clients that nobody here wrote follow a stream of a real node through everything that happens to one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import headrace
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from tests.clients.follower import Follower
from tests.fixtures.shard import Database
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = [
    "aiohttp",
    "aiohttp-sse-client",
    "aiohttp-sse-client2",
    "aiosseclient",
    "curl",
    "httpx",
    "httpx-sse",
    "httpx-sse, asynchronous",
    "launchdarkly-eventsource of PyPI",
    "pycurl",
    "requests",
    "requests-sse",
    "sseclient",
    "sseclient-py on requests",
    "sseclient-py on urllib3",
    "tornado",
    "urllib3",
    "wget",
]
NODE = [
    "event-source-plus",
    "event-source-polyfill",
    "eventsource-1",
    "eventsource-2",
    "eventsource-3",
    "eventsource-4",
    "eventsource-5",
    "eventsource-client",
    "eventsource-parser",
    "extended-eventsource",
    "fetch-event-source",
    "fetch-event-stream",
    "launchdarkly-eventsource",
    "reconnecting-eventsource",
    "undici",
]
EMPTY_FOR_AN_ID = {
    "aiosseclient",
    "extended-eventsource",
    "fetch-event-source",
    "fetch-event-stream",
    "httpx-sse",
    "httpx-sse, asynchronous",
    "sseclient",
}
"""These dispatch an empty event for a frame of `id:` alone, against the standard; their applications pass over it."""
LAST_LINE_ALONE = {"event-source-plus"}
"""Of several lines of data these hand over the last."""
PHASE_S = 120.0
"""For all clients together, of which some double their waits while they are refused."""
TEXT = "zażółć 🌊"

Start = Callable[..., list[Follower]]


@pytest.fixture
def stack(start_stack: StartStack) -> Stack:
    """Two shards whose clients soon come back, and whose heartbeats are seen."""
    return start_stack(2, retry_ms=200, heartbeat_interval_s=0.5)


@pytest.fixture
def start(python_packages: Path, npm_clients: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts every client on a path, each through a TCP proxy of its own to this port."""
    programs = {name: [str(python_packages), str(PROGRAMS / "clients.py")] for name in PYTHON}
    programs |= {name: ["node", str(PROGRAMS / "clients.mjs")] for name in NODE}
    made: list[Follower] = []

    def start(port: int, path: str) -> list[Follower]:
        for number, (name, command) in enumerate(programs.items()):
            made.append(Follower(name, command, port, path, tmp_path / f"{number}.err"))
        return made

    yield start
    for follower in made:
        follower.close()
        print(follower, follower.errors.read_text()[-500:])  # noqa: T201  # pytest shows it with a failure


def publish(database: Database, stream: str, count: int) -> None:
    """Publish the next so many events; an event's data tells its id, and has a line break and all kinds of letters."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        for _ in range(count):
            number = headrace.head(connection, stream) + 1
            headrace.publish_now(connection, stream, expected(number))


def expected(number: int) -> str:
    return f"{TEXT}\n{number}"


def as_handed(name: str, text: str) -> str:
    """What a client with this name makes of an event's data."""
    return text.rpartition("\n")[2] if name in LAST_LINE_ALONE else text


def all_have(followers: list[Follower], begin: int, head: int) -> None:
    """Every client has each event from begin to head once, in order, and nothing else."""
    whole = {each.name: [as_handed(each.name, expected(id_)) for id_ in range(begin, head + 1)] for each in followers}
    wait_until(
        lambda: not [each for each in followers if len(each.data) < len(whole[each.name])],
        f"every client has the events up to {head}",
        PHASE_S,
    )
    assert {each.name: each.data for each in followers if each.data != whole[each.name]} == {}
    ids = {each.name: [int(id_ or 0) for id_, _ in each.events] for each in followers}
    assert {name: found for name, found in ids.items() if found != list(range(begin, head + 1))} == {}
    assert {each.name for each in followers if each.empty} <= EMPTY_FOR_AN_ID


@pytest.mark.slow
def test_every_client_has_every_event_once(stack: Stack, start: Start) -> None:
    """Begun at an id, moved, cut, killed, refused and restarted: each client ends with every event once, in order."""
    stream = "clients"
    publish(stack.database, stream, 5)
    assert stack.router is not None
    followers = start(stack.router.port, stack.path(stream, since=3))
    all_have(followers, 4, 5)
    publish(stack.database, stream, 2)
    all_have(followers, 4, 7)
    connected = {follower.name: follower.connections for follower in followers}

    # Moved, which no client notices.
    operations = ShardOperations(Directory(stack.redis.url, expiry_s=3), lambda line: None)
    for shard in stack.shards:
        operations.drain(shard.id)
        publish(stack.database, stream, 1)
        operations.undrain(shard.id)
    all_have(followers, 4, 9)
    assert {follower.name: follower.connections for follower in followers} == connected

    # Cut, and let in again when there is something to be missed.
    for follower in followers:
        follower.proxy.cut()
    publish(stack.database, stream, 2)
    for follower in followers:
        follower.proxy.resume()
    all_have(followers, 4, 11)

    # Killed: whom the shard had comes to the other.
    stack.shards[0].kill()
    publish(stack.database, stream, 1)
    all_have(followers, 4, 12)

    # Stopped and refused: without any shard the router answers 503, and every client has had that answer.
    before = {follower.name: follower.connections for follower in followers}
    stack.shards[1].terminate()
    stack.shards[1].exit_status()
    publish(stack.database, stream, 1)
    wait_until(
        lambda: not [each for each in followers if each.connections == before[each.name]],
        "every client has been refused",
        PHASE_S,
    )
    for shard in stack.shards:
        shard.start()
    publish(stack.database, stream, 1)
    all_have(followers, 4, 14)
    assert {follower.name for follower in followers if follower.process.poll() is not None} == set()
