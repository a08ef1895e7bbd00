"""Numbering many streams at once: the order of locks, and what others see of it."""

import threading

import psycopg
import pytest

from tests.fixtures.postgres import Connect, Connection
from tests.fixtures.read_after import value
from tests.fixtures.waiting import DEADLINE_S, wait_until_blocked


def test_shuffled_transactions_of_many_streams_do_not_deadlock(connect: Connect) -> None:
    """Six writers, each transaction to 60 of 100 streams in any order, half of them new: no deadlock, no gap."""
    observer = connect(autocommit=True)
    observer.execute("select headrace.publish('s' || i, 'x') from generate_series(1, 50) i")
    faults: list[BaseException] = []

    def write(connection: Connection) -> None:
        try:
            for _ in range(15):
                connection.execute(
                    "select headrace.publish_many(array_agg('s' || i), array_agg('x'::text))"
                    " from (select i from generate_series(1, 100) i order by random() limit 60) i"
                )
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=write, args=[connect(autocommit=True)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert value(observer, "select sum(last_id) from headrace.stream") == 50 + 6 * 15 * 60
    gaps = (
        "select count(*) from headrace.stream s where s.last_id <>"
        " (select count(*) from headrace.event e where e.stream_id = s.stream_id and e.id between 1 and s.last_id)"
    )
    assert value(observer, gaps) == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_rows_are_locked_in_the_order_of_names(connect: Connect, end: str) -> None:
    """A numbering that waits for its first stream holds none of its later ones; then it sees what has become of it."""
    observer, blocker, waiting = connect(autocommit=True), connect(), connect()
    names = ["a", "b", "c"]
    observer.execute("select headrace.publish_many(array['c', 'b', 'a'], array['0', '0', '0'])")
    blocker.execute("select headrace.publish_now('a', '1')")
    for name in reversed(names):
        waiting.execute("select headrace.publish(%s, 'w')", [name])
    thread = threading.Thread(target=waiting.commit)
    thread.start()
    wait_until_blocked(observer, waiting.info.backend_pid)
    observer.execute("set lock_timeout = '10s'")
    for name in names[1:]:
        observer.execute("select headrace.publish_now(%s, '1')", [name])
    getattr(blocker, end)()
    thread.join(DEADLINE_S)
    heads = [value(observer, "select headrace.head(%s)", name) for name in names]
    assert heads == [3 if end == "commit" else 2, 3, 3]
    newest = (
        "select e.data from headrace.kept_events() e join headrace.stream s using (stream_id)"
        " where s.name = %s and e.id = s.last_id"
    )
    assert [value(observer, newest, name) for name in names] == ["w", "w", "w"]


def test_new_streams_are_made_before_any_row_is_locked(connect: Connect) -> None:
    """While one transaction makes a stream, another that wants it too holds none of the streams that exist."""
    observer, maker, waiting = connect(autocommit=True), connect(), connect()
    observer.execute("select headrace.publish('a', '0')")
    maker.execute("select headrace.publish_now('z', '1')")
    for name in ("a", "z"):
        waiting.execute("select headrace.publish(%s, 'w')", [name])
    thread = threading.Thread(target=waiting.commit)
    thread.start()
    wait_until_blocked(observer, waiting.info.backend_pid)
    maker.execute("set lock_timeout = '10s'")
    assert value(maker, "select headrace.publish_now('a', '1')") == 2
    maker.commit()
    thread.join(DEADLINE_S)
    assert [value(observer, "select headrace.head(%s)", name) for name in "az"] == [3, 2]


@pytest.mark.parametrize("exists", [True, False])
def test_repeatable_read_leaves_all_of_many(connect: Connect, exists: bool) -> None:
    """Under REPEATABLE READ one stream of many that another has numbered since the snapshot is no conflict."""
    first, second = connect(), connect(autocommit=True)
    if exists:
        second.execute("select headrace.publish('b', '0')")
    first.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    first.execute("select 1 from headrace.stream")
    second.execute("select headrace.publish('b', '1')")
    first.execute("select headrace.publish_many(array['a', 'b', 'c', 'b'], array['2', '2', '2', '3'])")
    first.commit()
    assert value(second, "select transactions from headrace.sequence()") == 3
    assert [value(second, "select headrace.head(%s)", name) for name in "abc"] == [1, 4 if exists else 3, 1]
    newest = "select array_agg(data order by id) from headrace.kept_events() where stream = 'b'"
    assert value(second, newest)[-3:] == ["1", "2", "3"]


def test_a_transaction_of_many_numbers_first_what_waits(connect: Connect) -> None:
    """What waits in its streams comes first, in the order of the turns; what waits in others is left to others."""
    office, waiting, publisher = connect(autocommit=True), connect(autocommit=True), connect(autocommit=True)
    assert value(office, "select headrace.take_office()")
    waiting.execute("select headrace.publish_many(array['a', 'b', 'z'], array['1', '1', '1'])")
    waiting.execute("select headrace.publish('b', '2')")
    waiting.execute("select headrace.publish_many(array['c', 'b', 'c'], array['2', '3', '3'])")
    office.execute("select headrace.leave_office()")
    publisher.execute("select headrace.publish_many(array['c', 'a', 'b', 'd'], array['own', 'own', 'own', 'own'])")
    events = (
        "select stream, array_agg(id order by id), array_agg(data order by id) from headrace.kept_events() group by 1"
    )
    assert publisher.execute(f"{events} order by 1".encode()).fetchall() == [
        ("a", [1, 2], ["1", "own"]),
        ("b", [1, 2, 3, 4], ["1", "2", "3", "own"]),
        ("c", [1, 2, 3], ["2", "3", "own"]),
        ("d", [1], ["own"]),
    ]
    assert publisher.execute("select stream from headrace.turn").fetchall() == [("z",)]
    assert [value(publisher, "select headrace.head(%s)", name) for name in "abcd"] == [2, 4, 3, 1]
