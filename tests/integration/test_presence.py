"""Presence in PostgreSQL: what reports of several shards come to, in whatever order their transactions run."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import psycopg
import pytest
from psycopg import errors

import headrace
from headrace.settings import Settings
from headrace.shard.connection import Connection
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.presence import Presence
from headrace.shard.postgres.presence_members import PresenceMembers, PresenceReport
from headrace.tokens import Context
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import DEADLINE_S, wait_until, wait_until_blocked

Link = psycopg.Connection[Any]
ROOM = "room:1"
LOCK_LIFE = sql_functions.LOCK_LIFE


class Node:
    """A shard's worth of presence: its members without a grace, and its connection. Owned by one thread."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.link: Link = psycopg.connect(url, autocommit=True)
        self.link.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self.members = PresenceMembers(0)

    def tell(self, report: PresenceReport | None = None) -> bool:
        """Report what is to be told; whether it was taken."""
        report = report or self.members.report(0)
        if report is None:
            return True
        if report.session in sql_functions.report_presence(self.link, self.name, report):
            self.members.confirmed(report)
            return True
        self.members.lost()
        return False

    def come(self, *users: str, stream: str = ROOM) -> None:
        for user in users:
            self.members.appear((stream, user))
        assert self.tell()

    def go(self, *users: str, stream: str = ROOM) -> None:
        for user in users:
            self.members.disappear((stream, user), 0)
        assert self.tell()

    def serial(self) -> int:
        return sql_functions.presence_sessions(self.link)[self.members.session]

    @property
    def pid(self) -> int:
        return self.link.info.backend_pid


@pytest.fixture
def observer(database_url: str) -> Iterator[Link]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def make(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Node]]:
    made: list[Node] = []
    # PostgreSQL ends a session that stands still with the locks, as this process may.
    life = sql_functions.LOCK_LIFE.replace("'2s'", "'60s'")
    assert life != sql_functions.LOCK_LIFE
    monkeypatch.setattr(sql_functions, "LOCK_LIFE", life)

    def one(name: str) -> Node:
        made.append(Node(database_url, name))
        return made[-1]

    yield one
    for node in made:
        node.link.close()


@pytest.fixture
def here(make: Callable[[str], Node]) -> Node:
    return make("here")


@pytest.fixture
def there(make: Callable[[str], Node]) -> Node:
    return make("there")


def events(connection: Link, stream: str = ROOM) -> list[tuple[str, str, int]]:
    """(type, user, count) of everything that was published of who is on the stream."""
    rows = connection.execute(
        "select e.type, e.data from headrace.kept_events() e join headrace.stream s using (stream_id)"
        " where s.name = %s order by e.id",
        [headrace.presence_stream(stream)],
    )
    return [(type_, (value := json.loads(data))["user"], value["count"]) for type_, data in rows]


def add_up(connection: Link, stream: str = ROOM) -> set[str]:
    """Who is on the stream by its events alone, each of which must change that, and say how many they are then."""
    present: set[str] = set()
    for type_, user, count in events(connection, stream):
        assert (user in present) == (type_ == "leave"), (
            f"{type_} of {user!r}, who is {'in' if user in present else 'out'}"
        )
        present ^= {user}
        assert count == len(present)
    return present


def test_the_first_joins_and_the_last_leaves(here: Node, there: Node, observer: Link) -> None:
    """A user with connections on two shards joins once and leaves once; every event has the new count."""
    here.come("ada", "ada")
    there.come("ada", "bob")
    assert headrace.members(observer, ROOM) == ["ada", "bob"]
    assert headrace.member_count(observer, ROOM) == 2
    here.go("ada", "ada")
    assert headrace.members(observer, ROOM) == ["ada", "bob"]
    there.go("ada")
    there.go("bob")
    assert events(observer) == [("join", "ada", 1), ("join", "bob", 2), ("leave", "ada", 1), ("leave", "bob", 0)]
    assert headrace.members(observer, ROOM) == []
    assert headrace.member_count(observer, ROOM) == 0
    assert observer.execute("select count(*) from headrace.presence").fetchone() == (0,), "nothing stays behind"


def test_streams_and_users_are_exact(here: Node, observer: Link) -> None:
    """Any stream name and any user is kept and told as it is, and streams do not mix."""
    odd = 'рум "1" \\ \u2028'
    here.come("Ada", "ada", 'a"\\\n\U0001f600', stream=odd)
    here.come("ada")
    assert set(headrace.members(observer, odd)) == {"Ada", "ada", 'a"\\\n\U0001f600'}
    assert add_up(observer, odd) == set(headrace.members(observer, odd))
    assert headrace.members(observer, ROOM) == ["ada"]
    assert headrace.members(observer, "nobody's") == []


@pytest.mark.parametrize("first", ["join", "leave"])
def test_a_leave_here_and_a_join_there_see_each_other(
    here: Node, there: Node, observer: Link, first: str, make: Callable[[str], Node]
) -> None:
    """Of two shards that report on the same user at once, one waits for the other's commit and counts with it."""
    here.come("ada")
    here.members.disappear((ROOM, "ada"), 0)
    there.members.appear((ROOM, "ada"))
    ahead, behind = (there, here) if first == "join" else (here, there)
    blocker = make("blocker")
    blocker.link.execute("begin")
    blocker.link.execute("select from headrace.presence where stream = %s for update", [ROOM])
    threads = []
    for node in (ahead, behind):
        threads.append(threading.Thread(target=node.tell))
        threads[-1].start()
        wait_until_blocked(observer, node.pid)
    blocker.link.execute("commit")
    for thread in threads:
        thread.join(DEADLINE_S)
    assert headrace.members(observer, ROOM) == ["ada"]
    assert add_up(observer) == {"ada"}
    assert len(events(observer)) == (1 if first == "join" else 3)


def test_clashing_orders_do_not_deadlock(here: Node, there: Node, observer: Link) -> None:
    """Two shards that report the same new streams in opposite orders, again and again, never abort each other."""
    streams = [f"s{number}" for number in range(40)]
    failures: list[BaseException] = []

    def work(node: Node, order: list[str]) -> None:
        try:
            for _ in range(15):
                for change in (node.members.appear, lambda pair: node.members.disappear(pair, 0)):
                    for stream in order:
                        change((stream, node.name))
                    assert node.tell()
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(here, streams)),
        threading.Thread(target=work, args=(there, streams[::-1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert all(add_up(observer, stream) == set() for stream in streams)


def test_a_silent_session_is_given_up_once(
    here: Node, there: Node, observer: Link, make: Callable[[str], Node]
) -> None:
    """Of several that notice a dead shard at once, one ends it: who was held by it alone leaves, once."""
    here.come("ada", "bob")
    there.come("bob")
    session, serial = here.members.session, here.serial()
    noticing = [make(f"n{number}") for number in range(4)]
    left: list[int | None] = []
    threads = [
        threading.Thread(
            target=lambda node=node: left.append(sql_functions.expire_presence(node.link, session, serial))
        )  # type: ignore[misc]
        for node in noticing
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(left, key=str) == [1, None, None, None]
    assert add_up(observer) == {"bob"} == set(headrace.members(observer, ROOM))


def test_a_session_that_lives_is_not_given_up(here: Node, there: Node, observer: Link) -> None:
    """Whoever has reported since it was looked at stays."""
    here.come("ada")
    seen = here.serial()
    here.tell()
    assert sql_functions.expire_presence(there.link, here.members.session, seen) is None
    assert headrace.members(observer, ROOM) == ["ada"]


def test_a_shard_that_wakes_tells_everything_again(here: Node, there: Node, observer: Link) -> None:
    """A shard whose session was given up while it was stopped learns it from its next report, and heals."""
    here.come("ada", "bob")
    there.come("bob")
    sql_functions.expire_presence(there.link, here.members.session, here.serial())
    here.members.appear((ROOM, "cid"))
    assert not here.tell(), "the session is not there"
    assert add_up(observer) == {"bob"}
    assert here.tell()
    assert add_up(observer) == {"ada", "bob", "cid"} == set(headrace.members(observer, ROOM))


def test_a_report_that_comes_late_undoes_nothing(here: Node, there: Node, observer: Link) -> None:
    """A report whose sender gave up waiting, and reported anew, is without effect when it gets its turn after all."""
    here.come("bob")
    here.members.appear((ROOM, "ada"))
    stale = here.members.report(0)
    assert stale is not None
    here.members.failed(stale, 0)
    here.members.disappear((ROOM, "ada"), 0)
    here.come("cid")
    assert stale.session not in sql_functions.report_presence(there.link, "here", stale)
    assert add_up(observer) == {"bob", "cid"} == set(headrace.members(observer, ROOM))


def test_what_a_fail_over_lost_is_told_again(here: Node, observer: Link) -> None:
    """A session whose serial is lower than what the shard knows to be committed is not gone on with."""
    here.come("ada")
    before = here.serial()
    here.come("bob")
    # What a replica has that did not get the last commit.
    observer.execute("update headrace.presence_session set serial = %s", [before])
    observer.execute("delete from headrace.presence_holder where member = 'bob'")
    here.members.appear((ROOM, "cid"))
    assert not here.tell()
    assert here.tell()
    held = observer.execute("select member from headrace.presence_holder where session = %s", [here.members.session])
    assert {member for (member,) in held} == {"ada", "bob", "cid"}


def test_an_isolation_that_cannot_see_is_refused(here: Node) -> None:
    """In a transaction whose snapshot is older than the lock nothing is changed."""
    here.link.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    here.members.appear((ROOM, "ada"))
    with pytest.raises(errors.ActiveSqlTransaction, match="READ COMMITTED"):
        here.tell()


def test_members_and_head_make_one_whole(here: Node, there: Node, database_url: str) -> None:
    """In any one snapshot the members are those that the events up to the companion stream's head add up to."""
    ending = threading.Event()

    def churn(node: Node, seed: int) -> None:
        chance = random.Random(seed)
        present: list[str] = []
        while not ending.is_set():
            if present and chance.random() < 0.5:
                node.members.disappear((ROOM, present.pop(chance.randrange(len(present)))), 0)
            else:
                present.append(f"u{chance.randrange(6)}")
                node.members.appear((ROOM, present[-1]))
            node.tell()

    threads = [threading.Thread(target=churn, args=(node, seed)) for seed, node in enumerate((here, there))]
    for thread in threads:
        thread.start()
    try:
        with psycopg.connect(database_url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            for _ in range(150):
                with connection.transaction():
                    members = headrace.members(connection, ROOM)
                    assert set(members) == add_up(connection)
                    assert headrace.member_count(connection, ROOM) == len(members)
    finally:
        ending.set()
        for thread in threads:
            thread.join(DEADLINE_S)


def test_only_who_may_publish_may_ask(superuser: Link) -> None:
    """The role of applications may ask who is there, and may not say who is."""
    observer = superuser
    observer.autocommit = True
    observer.execute("create role asking login in role headrace_publisher")
    try:
        observer.execute("set role asking")
        assert headrace.members(observer, ROOM) == []
        assert headrace.member_count(observer, ROOM) == 0
        with pytest.raises(errors.InsufficientPrivilege):
            sql_functions.presence_sessions(observer)
    finally:
        observer.execute("reset role")
        observer.execute("drop role asking")


def test_a_crowd_costs_few_statements(database_url: str, observer: Link) -> None:
    """5,000 users who connect at once join with a handful of reports, and whoever asks for no presence with none."""
    presence = Presence(Settings(database_url=database_url, presence_interval_s=0.1), "n-0")
    rooms = [f"room:{number}" for number in range(50)]

    def connect(user: str | None, *rooms: str) -> None:
        presence.appear(Connection(0, Context(user, presence=frozenset(rooms)), "r", "p"))

    for number in range(5000):
        connect("viewer")
        connect(None, rooms[number % 50])
    presence.start()
    try:
        looking = (
            "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle'"
            " and application_name = 'headrace n-0 presence' and query like '%presence_session%'"
        )
        wait_until(lambda: gevent.sleep(0.01) or observer.execute(looking.encode()).fetchone() == (1,), "it has looked")
        assert presence.reports == 0
        assert sql_functions.presence_sessions(observer) == {}
        for number in range(5000):
            connect(f"u{number}", rooms[number % 50])
        wait_until(lambda: _sum(observer, rooms) == 5000, "all have joined")
        assert presence.reports <= 4
        assert add_up(observer, rooms[7]) == {f"u{number}" for number in range(7, 5000, 50)}
    finally:
        presence.stop()


def _sum(observer: Link, rooms: list[str]) -> int:
    gevent.sleep(0.01)  # the part works in this thread
    return sum(headrace.member_count(observer, room) for room in rooms)


def test_a_shard_that_is_cut_off_before_its_commit_holds_up_nobody(
    database_url: str, postgres_proxy: Proxy, there: Node, observer: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locks of a report whose end never comes are taken back, long before others give up waiting."""
    monkeypatch.setattr(sql_functions, "LOCK_LIFE", LOCK_LIFE)
    here = Node(postgres_proxy.url(database_url), "here")
    here.members.appear((ROOM, "ada"))
    faults: list[psycopg.Error] = []

    def tell_in_vain() -> None:
        try:
            here.tell()
        except psycopg.Error as fault:
            faults.append(fault)

    # As a query, which ends with a NUL; not as a part of READ COMMITTED.
    postgres_proxy.deafen_at(b"COMMIT\0")
    telling = threading.Thread(target=tell_in_vain)
    telling.start()
    try:
        wait_until(lambda: postgres_proxy.deaf, "the report is about to be committed")
        there.link.execute("set statement_timeout = '20s'")
        there.come("bob")
        assert headrace.members(observer, ROOM) == ["bob"]
    finally:
        postgres_proxy.resume()
        telling.join(DEADLINE_S)
        here.link.close()
    assert len(faults) == 1, "and who was cut off hears of it"
