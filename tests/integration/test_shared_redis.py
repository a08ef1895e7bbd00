"""Two deployments on one Redis, by accident and on purpose, and what else may stand in it, in a real Redis."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from headrace.errors import DirectoryForeignError, DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.shard_report import ShardReport
from headrace.settings import Settings
from tests.fixtures.directory import entry
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import DEADLINE_S, wait_until

A, B = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"
Open = Callable[..., Directory]


@pytest.fixture
def open_directory(redis_server: RedisServer) -> Iterator[Open]:
    """Opens the directory in the name of a deployment, "" for nobody's."""
    made: list[Directory] = []

    def open_(deployment: str, *, expiry_s: float = 30, url: str = redis_server.url, **more: Any) -> Directory:
        made.append(Directory(url, expiry_s=expiry_s, deployment=lambda: deployment, **more))
        return made[-1]

    yield open_
    for directory in made:
        directory.close()


def keys(server: RedisServer) -> set[str]:
    """What stands in it, but for the marks of the last readings."""
    with redis.Redis.from_url(server.url, decode_responses=True) as raw:
        return {key for key in raw.scan_iter("*") if not key.endswith(":written")}


def test_a_directory_belongs_to_one_deployment(open_directory: Open, redis_server: RedisServer) -> None:
    """Whatever another deployment asks for is refused with a sentence that says what to do, and changes nothing."""
    ours, theirs = open_directory(A), open_directory(B)
    ours.register(entry("s1", deployment=A))
    ours.claim("n1", settle_s=0)
    before = ours.read()
    calls: list[Callable[[], object]] = [
        lambda: theirs.register(entry("s1", pid=2, deployment=B)),
        lambda: theirs.leave("s1", 1),
        lambda: theirs.bury("s1", 1),
        lambda: theirs.claim("n1", settle_s=0),
        lambda: theirs.drain("s1"),
        lambda: theirs.undrain("s1"),
        lambda: theirs.drain_node("n1", 1),
        lambda: theirs.undrain_node("n1"),
        lambda: theirs.report(entry("s1"), ShardReport(1, {"a": 500}, 100, 50, True, {"user:ada": 1}, [])),
        lambda: theirs.admit("r1", {"user:ada": 1}),
        lambda: theirs.release("r1", ["user:ada"]),
        lambda: theirs.assign("n1", {7: "s1"}),
        lambda: theirs.turn("overview", 60),
        theirs.read,
    ]
    for call in calls:
        with pytest.raises(
            DirectoryForeignError, match=rf"another headrace deployment \({A}\); set HEADRACE_REDIS_PREFIX"
        ):
            call()
    assert ours.read() == before
    assert keys(redis_server) == {
        *("headrace:deployment", "headrace:epoch", "headrace:shards", "headrace:shard:s1", "headrace:slots:n1"),
        *("headrace:node:n1", "headrace:newcomers:n1"),
    }


def test_a_directory_without_a_living_shard_is_taken_over(
    open_directory: Open, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its next deployment finds nothing of what operators wanted of the last one, and says whose it was."""
    ours, brief, theirs = open_directory(A), open_directory(A, expiry_s=0.05), open_directory(B, expiry_s=0.2)
    ours.register(entry("s1", deployment=A))
    ours.claim("n1", settle_s=0)
    ours.drain("s1")
    ours.drain_node("n1", 1)
    brief.register(entry("s2", deployment=A))
    with pytest.raises(DirectoryForeignError):
        theirs.require_ours()
    assert ours.leave("s1", 1)
    theirs.require_ours()  # which waits until the entry of s2 has expired
    with caplog.at_level(logging.WARNING):
        assert theirs.register(entry("s1", deployment=B))
    assert f"directory of another deployment ({A})" in caplog.text
    found = theirs.read()
    assert [shard.id for shard in found.shards] == ["s1"]
    assert not found.drained
    assert not found.drained_nodes
    assert not found.slots["n1"]
    with pytest.raises(DirectoryForeignError, match=B):
        ours.read()
    # Their own entry is nobody else's: a process whose database was made anew registers under its new identity.
    assert theirs.leave("s1", 1)
    assert ours.register(entry("s1", deployment=A))


def test_a_process_that_belongs_to_another_deployment_now_takes_its_entry_along(open_directory: Open) -> None:
    """Where the database was made anew under a running shard, its own old entry does not keep it out."""
    before, after = open_directory(A), open_directory(B)
    before.register(entry("s1", pid=7, deployment=A))
    with pytest.raises(DirectoryForeignError):
        after.register(entry("s1", pid=8, deployment=B))
    assert after.register(entry("s1", pid=7, deployment=B))
    assert [shard.deployment for shard in after.read().shards] == [B]


def test_an_emptied_redis_is_its_first_shards(open_directory: Open, redis_server: RedisServer) -> None:
    """Emptied, or replaced by a server that lacks the last writes, it belongs to whoever registers first."""
    ours, theirs = open_directory(A), open_directory(B)
    ours.register(entry("s1", deployment=A))
    redis_server.empty()
    assert theirs.register(entry("s9", deployment=B))
    with pytest.raises(DirectoryForeignError):
        ours.register(entry("s1", deployment=A))


def test_processes_of_releases_without_identities_are_seen(open_directory: Open) -> None:
    """In a rolling upgrade both kinds read each other's entries; the first that has an identity makes it theirs."""
    old, new, other = open_directory(""), open_directory(A), open_directory(B)
    old.register(entry("s1", version="0.2.0"))
    new.register(entry("s2", version="0.3.0", deployment=A))
    for directory in (old, new):
        assert [shard.id for shard in directory.read().shards] == ["s1", "s2"]
    new.leave("s2", 1)
    with pytest.raises(DirectoryForeignError):
        other.register(entry("s3", deployment=B))


def test_prefixes_keep_deployments_apart(open_directory: Open, redis_server: RedisServer) -> None:
    """With a prefix of its own each has its shards, slots, drains, limits and changes, in the same database."""
    ours, theirs = open_directory(A), open_directory(B, prefix="shop:live")
    changes = theirs.changes(timeout_s=0.2)
    next(changes)
    for directory, deployment in ((ours, A), (theirs, B)):
        assert directory.register(entry("s1", deployment=deployment))
    assert next(changes)
    ours.claim("n1", settle_s=0)
    ours.drain("s1")
    assert ours.admit("r1", {"user:ada": 1}) == ""
    assert theirs.admit("r2", {"user:ada": 1}) == ""
    assert theirs.read().drained == frozenset()
    assert not theirs.read().slots["n1"]
    assert ours.turn("overview", 60)
    assert theirs.turn("overview", 60)
    assert not next(changes)
    changes.close()
    assert all(key.startswith(("headrace:", "shop:live:")) for key in keys(redis_server))


def test_changes_are_those_of_one_database(open_directory: Open, redis_server: RedisServer) -> None:
    """Redis's channels are the same in all its databases; a watcher hears nothing of another database's directory."""
    ours, theirs = open_directory(A), open_directory(B, url=f"{redis_server.url}?db=1")
    changes = theirs.changes(timeout_s=0.2)
    next(changes)
    ours.register(entry("s1", deployment=A))
    theirs.register(entry("s1", deployment=B))
    assert next(changes)
    ours.drain("s1")
    assert not next(changes)
    changes.close()
    # Processes of releases before listen where they did.
    with redis.Redis.from_url(redis_server.url) as raw, raw.pubsub() as heard:
        heard.subscribe("headrace:changes")
        ours.undrain("s1")
        wait_until(lambda: (heard.get_message(timeout=1) or {}).get("type") == "message", "the old channel has it")


def test_an_entry_of_another_deployment_is_passed_over(open_directory: Open, redis_server: RedisServer) -> None:
    """Also where somebody has written it into the directory by hand, nobody is sent to its shard."""
    ours = open_directory(A)
    ours.register(entry("s1", deployment=A))
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.hset("headrace:shards", "s2", "n1")
        raw.hset("headrace:shard:s2", mapping={**raw.hgetall("headrace:shard:s1"), b"deployment": B})
    assert [shard.id for shard in ours.read().shards] == ["s1"]
    assert [shard.id for shard in open_directory("").read().shards] == ["s1", "s2"]


def test_without_an_identity_that_is_to_be_had_nothing_is_read(redis_server: RedisServer) -> None:
    """A process that has yet to learn whose it is asks Redis for nothing, rather than for another's directory."""

    def unknown() -> str:
        raise DirectoryUnavailableError("not known yet")

    directory = Directory(redis_server.url, expiry_s=30, deployment=unknown)
    for call in (directory.read, lambda: directory.register(entry("s1"))):
        with pytest.raises(DirectoryUnavailableError, match="not known yet"):
            call()
    directory.close()
    assert not keys(redis_server)


def test_where_the_sockets_are_is_not_for_redis_to_say(redis_server: RedisServer) -> None:
    """A process of the node looks for its shards in its own runtime directory; an id that leads elsewhere is none."""
    settings = Settings.from_environ(
        {"HEADRACE_REDIS_URL": redis_server.url, "HEADRACE_NODE": "n1", "HEADRACE_RUNTIME_DIR": "/run/ours"}
    )
    directory = Directory.of(settings, lambda: "", resident=True)
    elsewhere = ("../evil", "/tmp/evil", "..", ".s", "", "a/b")
    for id_ in ("s1", *elsewhere):
        directory.register(entry(id_, path="/tmp/evil.sock"))
    directory.register(entry("s9", node="n2"))
    assert [(shard.id, shard.path) for shard in directory.read().shards] == [
        ("s1", "/run/ours/s1.sock"),
        ("s9", "/run/s9.sock"),
    ]
    directory.close()


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("drained:nodes", "n1", b"soon"),
        ("drained:nodes", "n1", b"nan"),
        ("slots:n1", "seven", b"s1"),
        ("hot:n1", "room", b"many"),
        ("node:n1", "died", b"x"),
        ("shard:s1", "last_error", b"\xff"),
        ("drained", "a hash", b"and no set"),
    ],
)
def test_what_others_have_written_there_ends_nobody(
    open_directory: Open, redis_server: RedisServer, key: str, field: str, value: bytes
) -> None:
    """A value that headrace would never write makes Redis count as away, and no process die of it."""
    directory = open_directory(A)
    directory.register(entry("s1", deployment=A))
    directory.claim("n1", settle_s=0)
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.hset(f"headrace:{key}", field, value)
    with pytest.raises(DirectoryUnavailableError):
        directory.read()


def test_a_race_for_an_empty_directory_has_one_winner(open_directory: Open) -> None:
    """Of two deployments that start at the same moment one has the directory, and the other is refused."""
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def begin(deployment: str) -> None:
        directory = open_directory(deployment)
        barrier.wait(DEADLINE_S)
        try:
            directory.register(entry(deployment[0], deployment=deployment))
            outcomes.append("ours")
        except DirectoryForeignError:
            outcomes.append("foreign")

    threads = [threading.Thread(target=begin, args=(deployment,)) for deployment in (A, B)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(outcomes) == ["foreign", "ours"]
