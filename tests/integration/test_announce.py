"""Who notifies of what is published, in every order in which publishers and an announcer can meet."""

import threading

import psycopg
import pytest

from headrace.schema.migrations import migrate
from headrace.stream import slot
from tests.fixtures.postgres import Connect, Connection, execute, scratch_postgres
from tests.fixtures.read_after import value
from tests.fixtures.waiting import DEADLINE_S, wait_until, wait_until_blocked

SLOTS = [f"headrace_slot_{slot(stream)}" for stream in "st"]


def announce(connection: Connection) -> int:
    """Ring, looking at all rows; of how many transactions."""
    return int(value(connection, "select transactions from headrace.announce_since()"))


def announce_since(connection: Connection, seen: str) -> tuple[int, str]:
    """Ring, looking at what a ring that has seen this could not; of how many transactions, and what is seen now."""
    asked = b"select transactions, seen::text from headrace.announce_since(%s::text::pg_snapshot)"
    row = connection.execute(asked, [seen]).fetchone()
    assert row is not None
    return row


def rows_left(connection: Connection) -> tuple[int, int]:
    """Rows that announcers take away: staged events, and those of headrace.unannounced."""
    return value(connection, "select count(*) from headrace.stage"), value(
        connection, "select count(*) from headrace.unannounced"
    )


class Ear:
    """A session that listens to some channels, as a shard does."""

    def __init__(self, connection: Connection, *channels: str) -> None:
        self._connection = connection
        for channel in channels:
            connection.execute(f"listen {channel}".encode())

    def heard(self) -> list[str]:
        """The payloads since the last call. What is committed by now is among them: it is handed out in order."""
        self._connection.execute("listen marker; notify marker")
        heard: list[str] = []
        for notification in self._connection.notifies(timeout=DEADLINE_S):
            if notification.channel == "marker":
                return sorted(heard)
            heard.append(notification.payload)
        raise AssertionError("the marker has not come back")


@pytest.fixture
def ear(connect: Connect) -> Ear:
    return Ear(connect(autocommit=True), *SLOTS)


@pytest.fixture
def announcer(connect: Connect) -> Connection:
    """A session in office."""
    connection = connect(autocommit=True)
    assert value(connection, "select headrace.take_office()")
    return connection


def test_one_notification_for_many_commits(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """With an announcer in office nobody else notifies; it does so once per stream, of the newest head, in one go."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1')")
    publisher.commit()
    publisher.execute("select headrace.publish_now('s', '2')")
    publisher.commit()
    publisher.execute("select headrace.publish_many(array['s', 't', 's'], array['3', '1', '4'])")
    publisher.commit()
    publisher.execute("select headrace.publish('s', 'never'); select headrace.publish_now('t', 'never')")
    publisher.rollback()
    with publisher.transaction(), publisher.transaction(force_rollback=True):
        publisher.execute("select headrace.publish_now('t', 'never')")
    assert ear.heard() == []
    assert announce(announcer) == 3
    assert ear.heard() == ["1 t", "4 s"]
    assert announce(announcer) == 0
    assert ear.heard() == []


def test_a_late_commit_is_seen_by_who_has_left_office(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """A publisher that relied on the announcer and commits after it has left: who leaves knows, waits, and rings."""
    late, other, rolled_back = connect(), connect(), connect()
    late.execute("select headrace.publish_now('s', '1')")
    rolled_back.execute("select headrace.publish_now('t', '1')")
    announcer.execute("select headrace.leave_office()")
    assert announce(announcer) == 0
    assert not value(announcer, "select headrace.nobody_defers()")
    # Whoever comes now does not rely on it any more, and does not keep it waiting either.
    rolled_back.rollback()
    other.execute("select headrace.publish_now('t', '1')")
    assert not value(announcer, "select headrace.nobody_defers()")
    late.commit()
    assert value(announcer, "select headrace.nobody_defers()")
    assert ear.heard() == []
    other.commit()
    assert ear.heard() == ["1 t"]
    assert announce(announcer) == 1
    assert ear.heard() == ["1 s"]


def test_the_same_at_commit(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """A transaction that publishes while there is an announcer, and commits when there is none, notifies by itself."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1')")
    announcer.execute("select headrace.leave_office()")
    assert value(announcer, "select headrace.nobody_defers()")
    publisher.commit()
    assert ear.heard() == ["1 s"]


@pytest.mark.parametrize("function", ["publish", "publish_now"])
def test_an_announcer_leaves_between_two_looks_of_a_publisher(
    connect: Connect, ear: Ear, announcer: Connection, function: str
) -> None:
    """A publisher that has seen it in office, and has not said yet that it relies on it, finds out and notifies."""
    publisher, holder = connect(autocommit=True), connect(autocommit=True)
    definition = value(holder, "select pg_get_functiondef('headrace.defers()'::regprocedure)")
    look = "and pg_try_advisory_xact_lock_shared(x'6865616472616364'::bigint)"
    assert definition.count(look) == 1
    holder.execute(
        definition.replace(look, "and pg_advisory_xact_lock_shared(4711)::text is not null " + look).encode()
    )
    holder.execute("select pg_advisory_lock(4711)")
    publishing = f"select headrace.{function}('s', '1')".encode()
    thread = threading.Thread(target=publisher.execute, args=[publishing])
    thread.start()
    wait_until_blocked(holder, publisher.info.backend_pid)
    announcer.execute("select headrace.leave_office()")
    assert value(announcer, "select headrace.nobody_defers()")
    assert announce(announcer) == 0
    holder.execute("select pg_advisory_unlock(4711)")
    thread.join(DEADLINE_S)
    assert ear.heard() == ["1 s"]
    assert announce(announcer) == 0
    assert rows_left(holder) == (0, 0)


def test_a_publisher_that_may_not_be_waited_for_notifies(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """In the moment in which one who leaves makes sure that nobody relies on it, a publisher relies on itself."""
    connect(autocommit=True).execute("select pg_advisory_lock(x'6865616472616364'::bigint)")
    connect(autocommit=True).execute("select headrace.publish('s', '1')")
    assert ear.heard() == ["1 s"]
    assert announce(announcer) == 0


def test_looking_for_an_announcer_keeps_nobody_from_office(connect: Connect) -> None:
    """An open transaction that has looked for an announcer holds up neither who takes office nor who leaves it."""
    first, second, third = connect(), connect(), connect(autocommit=True)
    first.execute("select headrace.publish_now('s', '1')")
    assert value(third, "select headrace.take_office()")
    second.execute("select headrace.publish_now('t', '1')")
    assert not value(first, "select headrace.take_office()")
    third.execute("select headrace.leave_office()")
    assert value(first, "select headrace.take_office()")


def test_an_announcer_that_dies_between_taking_and_telling(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """Rows taken away by a session that ends before it has told are there again; nobody waits for it meanwhile."""
    publisher, successor = connect(autocommit=True), connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1')")
    announcer.autocommit = False
    assert announce(announcer) == 1
    publisher.execute("select headrace.publish('t', '1')")
    assert announce(successor) == 1
    assert ear.heard() == ["1 t"]
    publisher.execute("select pg_terminate_backend(%s)", [announcer.info.backend_pid])
    wait_until(lambda: value(successor, "select headrace.take_office()"), "the office is free")
    assert announce(successor) == 1
    assert ear.heard() == ["1 s"]


def test_two_who_announce_at_once_tell_of_everything(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """A row is told by one of them, whoever has it first, and the newest head is told by somebody."""
    publisher, other = connect(autocommit=True), connect(autocommit=True)
    for number in range(50):
        publisher.execute("select headrace.publish('s', %s)", [str(number)])
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda each=each: counts.append(announce(each)))  # type: ignore[misc]
        for each in (announcer, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sum(counts) == 50
    assert set(ear.heard()) == {"50 s"}


def test_one_event_alone_stays_staged(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """What a transaction of one event has staged is what it leaves; others leave a row; without announcer none does."""
    publisher = connect()
    left: list[tuple[int, int]] = []

    def commit(*statements: str) -> None:
        for statement in statements:
            publisher.execute(statement.encode())
        publisher.commit()
        left.append(rows_left(announcer))

    one, two = "select headrace.publish('s', 'x')", "select headrace.publish_many(array['s', 't'], array['x', 'y'])"
    commit(one)
    commit(one, one)
    commit(two)
    commit("select headrace.publish_now('t', 'x')")
    commit(one, "set constraints all immediate", one, "select headrace.publish_now('t', 'x')")
    assert left == [(1, 0), (1, 1), (1, 2), (1, 3), (3, 4)]
    assert announce(announcer) == 7
    assert ear.heard() == ["3 t", "6 s"]
    assert rows_left(announcer) == (0, 0)
    announcer.execute("select headrace.leave_office()")
    left.clear()
    commit(one)
    commit(two)
    assert left == [(0, 0)] * 2
    assert value(announcer, "select count(*) from headrace.event") == 9 + 3


# Rings that look only at what the ring before cannot have seen


@pytest.mark.parametrize("prepared", [False, True])
def test_a_transaction_that_was_open_during_rings_is_told_of(
    connect: Connect, ear: Ear, announcer: Connection, prepared: bool
) -> None:
    """Older than what two rings have taken, it is found by the first ring after its commit, and once."""
    first, second, other = connect(), connect(), connect(autocommit=True)
    first.execute("select headrace.publish('s', 'early'); set constraints all immediate")
    second.execute("select headrace.publish('t', 'earlier')")
    if prepared:
        second.execute("prepare transaction 'two-phase'")
    seen = "1:1:"
    for _ in range(2):
        other.execute("select headrace.publish('u', 'x')")
        count, seen = announce_since(announcer, seen)
        assert count == 1
    if prepared:
        other.execute("commit prepared 'two-phase'")
    else:
        second.commit()
    count, seen = announce_since(announcer, seen)
    assert count == 1
    assert ear.heard() == ["1 t"]
    first.commit()
    other.execute("select headrace.publish('t', 'x')")
    count, seen = announce_since(announcer, seen)
    assert count == 2
    assert ear.heard() == ["1 s", "2 t"]
    assert announce_since(announcer, seen)[0] == 0
    assert rows_left(announcer) == (0, 0)


@pytest.mark.parametrize("place", ["seen := pg_current_snapshot();", "into transactions from told;"])
def test_a_commit_in_the_middle_of_a_ring_is_told_of(
    connect: Connect, ear: Ear, announcer: Connection, place: str
) -> None:
    """A transaction that ends once a ring has noted who is open, before or after it takes rows: one has it."""
    publisher, holder = connect(), connect(autocommit=True)
    signature = "headrace.announce_since(pg_snapshot)"
    definition = value(holder, "select pg_get_functiondef(%s::regprocedure)", signature)
    assert definition.count(place) == 1
    paused = definition.replace(place, place + " perform pg_advisory_xact_lock_shared(4711);")
    holder.execute(paused.encode())
    publisher.execute("select headrace.publish('s', '1')")
    holder.execute("select pg_advisory_lock(4711)")
    rang: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: rang.append(announce_since(announcer, "1:1:")))
    thread.start()
    wait_until_blocked(holder, announcer.info.backend_pid)
    publisher.commit()
    holder.execute("select pg_advisory_unlock(4711)")
    thread.join(DEADLINE_S)
    ((count, seen),) = rang
    publisher.execute("select headrace.publish('t', '1')")
    publisher.commit()
    assert count + announce_since(announcer, seen)[0] == 2
    assert ear.heard() == ["1 s", "1 t"]


def test_a_row_that_another_had_locked_is_found_by_looking_at_all(
    connect: Connect, ear: Ear, announcer: Connection
) -> None:
    """Who is about to take it away and does not makes a ring overlook it, until one looks at all rows."""
    publisher, other = connect(autocommit=True), connect()
    publisher.execute("select headrace.publish('s', '1')")
    assert announce(other) == 1
    count, seen = announce_since(announcer, "1:1:")
    assert count == 0
    other.rollback()
    assert announce_since(announcer, seen)[0] == 0
    assert announce(announcer) == 1
    assert ear.heard() == ["1 s"]


def test_who_rings_leaves_alone_what_it_has_staged(connect: Connect, ear: Ear) -> None:
    """In a transaction that publishes and rings, the events are not numbered yet; they are not taken away."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1')")
    assert announce(publisher) == 0
    assert announce_since(publisher, "1:1:")[0] == 0
    publisher.commit()
    assert ear.heard() == ["1 s"]


def test_who_rings_leaves_alone_what_it_has_staged_since_others_looked(connect: Connect, ear: Ear) -> None:
    """The same with what another ring has seen, while the publishing transaction was open."""
    publisher, later, other = connect(), connect(), connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1')")
    later.execute("select pg_current_xact_id()")
    other.execute("create table later ()")
    _, seen = announce_since(other, "1:1:")
    assert announce_since(publisher, seen)[0] == 0
    publisher.commit()
    assert ear.heard() == ["1 s"]


def test_a_transaction_that_has_forgotten_that_it_rings(connect: Connect, ear: Ear) -> None:
    """RESET ALL between two events makes both ring: the first rings for both, the second finds nothing and ends."""
    publisher, observer = connect(), connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1'); reset all; select headrace.publish('s', '2')")
    thread = threading.Thread(target=publisher.commit)
    thread.start()
    thread.join(DEADLINE_S)
    if thread.is_alive():  # no statement_timeout ends a COMMIT here
        observer.execute("select pg_terminate_backend(%s)", [publisher.info.backend_pid])
    thread.join(DEADLINE_S)
    assert ear.heard() == ["2 s"]
    assert value(publisher, "select count(*) from headrace.event") == 2


def test_restored_rows_are_nobody_s(connect: Connect, ear: Ear) -> None:
    """A dump can hold what was left at its moment; restored it is not published again, and the next ring removes it."""
    restoring = connect(autocommit=True)
    restoring.execute("select headrace.publish('s', '1')")
    assert ear.heard() == ["1 s"]
    restoring.execute("insert into headrace.stage (xid, stream, data, rings) values ('3', 's', '1', true)")
    assert rows_left(restoring) == (1, 0)
    assert value(restoring, "select headrace.head('s')") == 1
    assert announce(restoring) == 1
    assert rows_left(restoring) == (0, 0)
    assert ear.heard() == ["1 s"]


def test_a_ring_does_not_come_across_what_others_have_taken(connect: Connect, announcer: Connection) -> None:
    """While an old snapshot keeps 2,000 rows, a ring costs a few pages, or all of them if it looks at all rows."""
    publisher, old = connect(autocommit=True), connect()
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    old.execute("select count(*) from headrace.stage")
    insert = "insert into headrace.stage (xid, stream, data, rings) select %s, 's', repeat('x', 200), false"
    for number in range(20):
        publisher.execute(f"{insert} from generate_series(1, 100)".encode(), [str(number + 100)])
    count, seen = announce_since(announcer, "1:1:")
    assert count == 2000

    def pages(since: str | None) -> int:
        publisher.execute("select headrace.publish('s', 'x')")
        plan = value(
            announcer,
            "explain (analyze, buffers, format json)"
            " select transactions from headrace.announce_since(%s::text::pg_snapshot)",
            since,
        )
        return int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"])

    for _ in range(3):  # the first ones read catalogs
        few, many = pages(seen), pages(None)
    assert few < 30
    assert many > 60


def test_a_removed_stream_is_not_announced(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """A row whose stream has been removed meanwhile is taken away in silence."""
    publisher = connect(autocommit=True)
    publisher.execute("select headrace.publish_many(array['s', 't'], array['1', '1'])")
    publisher.execute("delete from headrace.stream where name = 's'")
    assert announce(announcer) == 1
    assert ear.heard() == ["1 t"]


def test_a_prepared_transaction_is_waited_for(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """A transaction that left a row can be prepared; it counts as open until it is committed, and is told then."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1')")
    publisher.execute("prepare transaction 'two-phase'")
    announcer.execute("select headrace.leave_office()")
    assert not value(announcer, "select headrace.nobody_defers()")
    publisher.autocommit = True
    publisher.execute("commit prepared 'two-phase'")
    assert value(announcer, "select headrace.nobody_defers()")
    assert announce(announcer) == 1
    assert ear.heard() == ["1 s"]


def test_repeatable_read_knows_who_is_in_office_now(connect: Connect, ear: Ear, announcer: Connection) -> None:
    """An old snapshot does not hide that the announcer has left."""
    publisher = connect()
    publisher.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    publisher.execute("select * from pg_locks")
    announcer.execute("select headrace.leave_office()")
    publisher.execute("select headrace.publish('s', '1')")
    publisher.commit()
    assert ear.heard() == ["1 s"]


def test_a_share_of_the_transactions_tells_that_it_notifies(connect: Connect) -> None:
    """Of transactions that notify by themselves about one in 16 says so; of others none."""
    publisher, announcer = connect(autocommit=True), connect(autocommit=True)
    ear = Ear(connect(autocommit=True), "headrace_rate")

    def samples() -> int:
        for _ in range(400):
            publisher.execute("select headrace.publish('s', 'x')")
        return len(ear.heard())

    assert 3 <= samples() <= 80
    announcer.execute("select headrace.take_office()")
    assert samples() == 0


def test_nothing_is_announced_before_it_is_durable() -> None:
    """While a commit is flushed and waits for a standby, its events are invisible and its row is not taken."""
    with scratch_postgres() as server:
        migrate(server.url)
        with (
            psycopg.connect(server.url, autocommit=True) as announcer,
            psycopg.connect(server.url, autocommit=True) as publisher,
            psycopg.connect(server.url, autocommit=True) as listening,
        ):
            announcer.execute("set synchronous_commit = off")
            assert value(announcer, "select headrace.take_office()")
            ear = Ear(listening, *SLOTS)
            execute(server, "alter system set synchronous_standby_names = 'nobody'")
            execute(server, "select pg_reload_conf()")
            wait_until(
                lambda: value(announcer, "show synchronous_standby_names") == "nobody", "commits wait for a standby"
            )
            execute(server, "checkpoint")  # by the process that tells the others that commits wait now
            thread = threading.Thread(target=publisher.execute, args=[b"select headrace.publish('s', '1')"])
            thread.start()
            waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
            wait_until(lambda: value(announcer, waits) == 1, "the commit waits")
            assert announce(announcer) == 0
            assert value(announcer, "select headrace.head('s')") == 0
            execute(server, "alter system reset synchronous_standby_names")
            execute(server, "select pg_reload_conf()")
            thread.join(DEADLINE_S)
            assert announce(announcer) == 1
            assert ear.heard() == ["1 s"]
