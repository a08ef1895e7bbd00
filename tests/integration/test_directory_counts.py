"""What the directory counts, in a real Redis: hot streams, and how many connections each user and address has."""

import dataclasses
import itertools
import threading
from collections import Counter
from typing import Any

import redis

from headrace.node.directory import Directory
from headrace.node.shard_report import ShardReport
from tests.fixtures.directory import entry
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import DEADLINE_S

SERIALS = itertools.count(1000)


def report(directory: Directory, id_: str, crowds: dict[str, int] | None = None, **changes: Any) -> bool:
    made = ShardReport(next(SERIALS), crowds, high=100, low=50, whole=False, held={}, arrived=[])
    return directory.report(entry(id_), dataclasses.replace(made, **changes))


def test_a_stream_is_hot_with_hysteresis(directory: Directory) -> None:
    """A stream's connections add up over the node's shards; hot from the high mark on, it cools below the low one."""
    for id_, node in (("s1", "n1"), ("s2", "n1"), ("s3", "n2")):
        directory.register(entry(id_, node))
    before = directory.read().epoch

    def hot(first: int, second: int) -> dict[str, int]:
        report(directory, "s1", {"a:ü": first, "b": 3})
        report(directory, "s2", {"a:ü": second} if second else {})
        return dict(directory.read().hot["n1"])

    assert hot(60, 39) == {}
    assert directory.read().epoch == before
    assert hot(60, 40) == {"a:ü": 100}
    assert directory.read().epoch[1] == before[1] + 1
    assert hot(30, 20) == {"a:ü": 50}
    assert directory.read().epoch[1] == before[1] + 1
    assert hot(30, 19) == {}
    assert hot(60, 39) == {}
    assert dict(directory.read().hot["n2"]) == {}


def test_who_was_let_in_counts_until_shards_tell(directory: Directory) -> None:
    """A user's limit holds over all shards and for those on their way, and is free again when they have left."""
    directory.register(entry("s1"))
    directory.register(entry("s2", "n2"))
    limits = {"user:ada": 3, "address:192.0.2.1": 10}
    assert not report(directory, "s1")
    assert report(directory, "s1", whole=True, held={"user:ada": 1})
    assert report(directory, "s2", whole=True)
    assert directory.admit("r1", limits) == ""
    assert directory.admit("r2", limits) == ""
    assert directory.admit("r3", limits) == "user:ada"
    assert directory.admit("r3", {"user:bob": 1}) == ""
    directory.release("r2", limits)
    assert directory.admit("r3", limits) == ""
    # The shards tell of those that were let in: they are not counted twice.
    report(directory, "s2", held={"user:ada": 2}, arrived=[("user:ada", "r1"), ("user:ada", "r3")])
    assert directory.admit("r4", limits) == "user:ada"
    report(directory, "s2", held={"user:ada": 1})
    assert directory.admit("r4", limits) == ""
    assert directory.admit("r5", limits) == "user:ada"
    directory.bury("s2", 1)
    assert directory.admit("r5", limits) == ""


def test_admissions_at_the_same_time_never_exceed_the_limit(directory: Directory, redis_server: RedisServer) -> None:
    """However many routers ask at once, exactly as many as the limit are let in."""
    directory.register(entry("s1"))
    answers: list[str] = []
    barrier = threading.Barrier(8)

    def ask(number: int) -> None:
        mine = Directory(redis_server.url, expiry_s=30)
        barrier.wait(DEADLINE_S)
        for turn in range(5):
            answers.append(mine.admit(f"r{number}-{turn}", {"user:ada": 7}))
        mine.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert Counter(answers) == {"": 7, "user:ada": 33}


def test_every_key_expires_but_the_lasting_ones(directory: Directory, redis_server: RedisServer) -> None:
    """What is counted goes by itself when nobody counts any more: nothing in Redis grows without end."""
    directory.register(entry("s1"))
    directory.claim("n1", settle_s=0)
    report(directory, "s1", {"a": 500}, whole=True, held={"user:ada": 1})
    directory.admit("r1", {"user:ada": 5})
    directory.drain("s9")
    directory.drain_node("n9", 1)
    directory.claim("n1", settle_s=0)
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as raw:
        lasting = {key for key in raw.scan_iter("*") if raw.pttl(key) == -1}
    assert lasting == {"headrace:epoch", "headrace:shards", "headrace:drained", "headrace:drained:nodes"}


def test_a_predecessor_spoils_no_counts(directory: Directory) -> None:
    """What a process reports under an id that its successor has registered by then is not taken."""
    directory.register(entry("s1", pid=1))
    assert report(directory, "s1", whole=True, held={"user:ada": 1})
    directory.register(entry("s1", pid=2))
    late = ShardReport(2, None, 100, 50, True, {"user:ada": 2}, ())
    assert not directory.report(entry("s1", pid=1), late)
    assert directory.report(entry("s1", pid=2), dataclasses.replace(late, serial=1, held={}))
    assert directory.admit("r", {"user:ada": 1}) == ""


def test_a_report_that_comes_late_spoils_no_counts(directory: Directory) -> None:
    """One that was given up, but was on its way, and comes after the whole report that replaced it, is not heeded."""
    directory.register(entry("s1"))
    assert report(directory, "s1", serial=1, whole=True)
    lost: dict[str, Any] = {"serial": 2, "crowds": {"room": 500}, "held": {"user:ada": 3}}
    assert report(directory, "s1", serial=3, whole=True)
    assert report(directory, "s1", **lost)
    assert report(directory, "s1", whole=True, **lost)
    assert directory.admit("r1", {"user:ada": 1}) == ""
    assert not directory.read().hot["n1"]
    assert report(directory, "s1", serial=4, held={"user:bea": 1})
    assert directory.admit("r2", {"user:bea": 1}) == "user:bea"


def test_a_shard_of_a_version_without_serials_reports(directory: Directory) -> None:
    """Beside younger shards, an old one's reports are all heeded: each has the serial 0."""
    directory.register(entry("s1"))
    for count in (2, 1):
        assert report(directory, "s1", serial=0, whole=count == 2, held={"user:ada": count})
    assert directory.admit("r1", {"user:ada": 2}) == ""


def test_one_id_for_many_requests_counts_many_times(directory: Directory) -> None:
    """The request id is the client's to choose: giving the same again does not get round the limit."""
    assert directory.admit("r", {"user:ada": 2}) == ""
    assert directory.admit("r", {"user:ada": 2}) == ""
    assert directory.admit("r", {"user:ada": 2}) == "user:ada"
    directory.release("r", ["user:ada"])
    assert directory.admit("r", {"user:ada": 2}) == ""
