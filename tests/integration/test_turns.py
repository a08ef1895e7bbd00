"""Turns: the order that they give, how transactions of every kind leave them, and what waits when somebody numbers."""

import threading

import psycopg
import pytest
from psycopg import errors

from tests.fixtures.ear import Ear
from tests.fixtures.postgres import Connect, Connection
from tests.fixtures.read_after import value
from tests.fixtures.rounds import Round, do_round, events, turns
from tests.fixtures.waiting import DEADLINE_S, wait_until_blocked

ABOVE = ["repeatable read", "serializable"]


def test_the_turn_is_taken_at_commit(connect: Connect, sequencer: Connection) -> None:
    """A transaction that publishes first, and waits then for another's commit, comes after it."""
    first, second, observer = connect(), connect(), connect(autocommit=True)
    observer.execute("create table account (balance int); insert into account values (0)")
    second.execute("select headrace.publish('s', '2')")
    first.execute("update account set balance = 1")
    first.execute("select headrace.publish('s', '1')")
    thread = threading.Thread(target=second.execute, args=[b"update account set balance = 2"])
    thread.start()
    wait_until_blocked(observer, second.info.backend_pid)
    first.commit()
    thread.join(DEADLINE_S)
    second.commit()
    assert do_round(sequencer) == Round(2, 0)
    assert events(observer) == [(1, "1"), (2, "2")]


def test_the_last_turn_of_a_transaction_counts(connect: Connect, sequencer: Connection) -> None:
    """A turn that was taken early by SET CONSTRAINTS is taken once more by the next event in the stream."""
    early, other, observer = connect(), connect(autocommit=True), connect(autocommit=True)
    early.execute("select headrace.publish('s', '1'); select headrace.publish('t', '2'); set constraints all immediate")
    other.execute("select headrace.publish_many(array['s', 't'], array['3', '4'])")
    early.execute("select headrace.publish('s', '5')")
    assert turns(early) == [(3, True), (1, False)]
    early.commit()
    assert do_round(sequencer) == Round(4, 0)
    assert events(observer) == [(1, "3"), (2, "1"), (3, "5")]
    assert events(observer, "t") == [(1, "2"), (2, "4")]


@pytest.mark.parametrize("level", ["read committed", *ABOVE])
def test_what_a_transaction_leaves(connect: Connect, sequencer: Connection, level: str) -> None:
    """One turn for each stream, which says where the stream's events begin, and whether there is only one."""
    publisher, observer = connect(), connect(autocommit=True)
    left: list[list[list[tuple[int, bool]]]] = []

    def commit(*statements: str) -> None:
        publisher.execute(f"set transaction isolation level {level}".encode())
        for statement in statements:
            publisher.execute(statement.encode())
        publisher.commit()
        left.append([turns(observer, stream) for stream in "st"])
        do_round(sequencer)
        sequencer.execute("delete from headrace.turn")

    commit("select headrace.publish('s', '1')")
    commit("select headrace.publish('s', '2')", "select headrace.publish('s', '3')")
    commit("select headrace.publish_many(array['s', 't'], array['4', '5'])")
    commit("select headrace.publish_many(array['t', 's', 't'], array['6', '7', '8'])")
    commit("select headrace.publish('s', '9')", "set constraints all immediate", "select headrace.publish('t', '10')")
    commit(
        "set constraints all immediate", "select headrace.publish_many(array['s', 's', 's'], array['11', '12', '13'])"
    )
    commit("select headrace.publish('s', '14')", "reset all", "select headrace.publish('s', '15')")
    commit("set constraints all immediate", "select headrace.publish('s', '16')", "select headrace.publish('s', '17')")
    assert left == [
        [[(1, True)], []],
        [[(2, False)], []],
        [[(4, True)], [(5, True)]],
        [[(7, True)], [(6, False)]],
        [[(9, True)], [(10, True)]],
        [[(11, False)], []],
        [[(14, False)], []],
        [[(16, False)], []],
    ]
    assert [int(data) for _, data in events(observer)] == [1, 2, 3, 4, 7, 9, 11, 12, 13, 14, 15, 16, 17]
    assert [int(data) for _, data in events(observer, "t")] == [5, 6, 8, 10]
    assert [id_ for id_, _ in events(observer)] == list(range(1, 14))


@pytest.mark.parametrize("level", ["read committed", *ABOVE])
def test_savepoints(connect: Connect, sequencer: Connection, level: str) -> None:
    """Events and turns of a savepoint that is rolled back are gone, also turns that were taken within it."""
    publisher, observer = connect(), connect(autocommit=True)
    publisher.execute(f"set transaction isolation level {level}".encode())
    with publisher.transaction(force_rollback=True):
        publisher.execute("select headrace.publish('s', '1'); set constraints all immediate")
    publisher.execute("set constraints all deferred")
    publisher.execute("select headrace.publish('s', '2'); set constraints all immediate")
    with publisher.transaction(force_rollback=True):
        publisher.execute("select headrace.publish_many(array['s', 't'], array['3', '4'])")
    publisher.execute("set constraints all deferred")
    with publisher.transaction():
        publisher.execute("select headrace.publish('t', '5')")
    publisher.commit()
    assert (turns(observer), turns(observer, "t")) == ([(2, True)], [(5, True)])
    assert do_round(sequencer) == Round(2, 0)
    assert (events(observer), events(observer, "t")) == ([(1, "2")], [(1, "5")])


def test_a_transaction_that_has_forgotten_that_it_rings(connect: Connect, ear: Ear) -> None:
    """RESET ALL between two events makes both ring: each is numbered once, in their order."""
    publisher, observer = connect(), connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1'); reset all; select headrace.publish('s', '2')")
    thread = threading.Thread(target=publisher.commit)
    thread.start()
    thread.join(DEADLINE_S)
    if thread.is_alive():  # no statement_timeout ends a COMMIT here
        observer.execute("select pg_terminate_backend(%s)", [publisher.info.backend_pid])
    thread.join(DEADLINE_S)
    assert ear.heard() == ["1 s", "2 s"]
    assert events(observer) == [(1, "1"), (2, "2")]


@pytest.mark.parametrize("statement", ["publish('s', 'x')", "publish_many(array['s', 't', 's'], array['x', 'x', 'x'])"])
@pytest.mark.parametrize("level", ABOVE)
@pytest.mark.parametrize("in_office", [True, False])
def test_concurrent_transactions_above_read_committed(
    connect: Connect, level: str, statement: str, in_office: bool
) -> None:
    """16 sessions publish to the same streams at once, beside rounds: none fails, and no event is lost."""
    sequencer = connect(autocommit=True)
    assert value(sequencer, "select headrace.take_office()") or not in_office
    if not in_office:
        sequencer.execute("select headrace.leave_office()")
    faults: list[BaseException] = []
    start = threading.Barrier(16)

    def publish(connection: Connection) -> None:
        try:
            connection.execute(f"set default_transaction_isolation = '{level}'".encode())
            start.wait(DEADLINE_S)
            for _ in range(15):
                with connection.transaction():
                    connection.execute(f"select headrace.{statement}".encode())
                    connection.execute(f"select headrace.{statement}".encode())
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=publish, args=[connect(autocommit=True)]) for _ in range(16)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        do_round(sequencer)
    for thread in threads:
        thread.join(DEADLINE_S)
    do_round(sequencer)
    assert faults == []
    many = "many" in statement
    assert [id_ for id_, _ in events(sequencer)] == list(range(1, 16 * 15 * (4 if many else 2) + 1))
    assert len(events(sequencer, "t")) == (16 * 15 * 2 if many else 0)


def test_serializable_transactions_wait_for_each_other_as_ever(connect: Connect, sequencer: Connection) -> None:
    """Publishing adds no serialization failure, and takes none away: write skew of the application still fails."""
    first, second = connect(), connect()
    first.execute("create table duty (name text, present boolean)")
    first.execute("insert into duty values ('a', true), ('b', true)")
    first.commit()
    for connection, name in ((first, "a"), (second, "b")):
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        assert value(connection, "select count(*) from duty where present") == 2
        connection.execute("update duty set present = false where name = %s", [name])
        connection.execute("select headrace.publish('s', %s)", [name])
    first.commit()
    with pytest.raises(errors.SerializationFailure):
        second.commit()
    assert do_round(sequencer) == Round(1, 0)
    assert events(sequencer) == [(1, "a")]


@pytest.mark.parametrize("level", ABOVE)
@pytest.mark.parametrize("call", ["publish_now('s', 'x')", "publish_many_now(array['s'], array['x'])"])
def test_ids_at_once_need_read_committed(connect: Connect, level: str, call: str) -> None:
    """publish_now and publish_many_now refuse a snapshot that may be older than what waits, with 25001 and a hint."""
    connection = connect()
    connection.execute(f"set transaction isolation level {level}".encode())
    with pytest.raises(errors.ActiveSqlTransaction, match="needs a READ COMMITTED transaction") as refused:
        connection.execute(f"select headrace.{call}".encode())
    assert "headrace.publish" in str(refused.value.diag.message_hint)
    connection.rollback()
    assert events(connection) == []


def test_read_uncommitted_is_read_committed(connect: Connect) -> None:
    """As in PostgreSQL itself, the two levels are one: such a transaction numbers at commit, and at once."""
    connection = connect()
    connection.isolation_level = psycopg.IsolationLevel.READ_UNCOMMITTED
    connection.execute("select headrace.publish('s', '1')")
    connection.commit()
    assert events(connection) == [(1, "1")]
    assert value(connection, "select headrace.publish_now('s', '2')") == 2
    connection.commit()
    assert do_round(connect(autocommit=True)) == Round(0, 0)


def test_a_commit_waits_for_those_who_have_the_stream_and_numbers_after_them(connect: Connect) -> None:
    """Whoever numbers looks for what waits after it has the stream: what was numbered meanwhile is not again."""
    office, waiting, round_, publisher = (connect(autocommit=True) for _ in range(4))
    assert value(office, "select headrace.take_office()")
    waiting.execute("select headrace.publish('s', '1')")
    office.execute("select headrace.leave_office()")
    for end in ("commit", "rollback"):
        round_.execute("begin")
        do_round(round_)
        thread = threading.Thread(target=publisher.execute, args=[b"select headrace.publish('s', %s)", [end]])
        thread.start()
        wait_until_blocked(waiting, publisher.info.backend_pid)
        round_.execute(end.encode())
        thread.join(DEADLINE_S)
        assert do_round(round_) == Round(0, 0)
        assert value(office, "select headrace.take_office()")
        waiting.execute("select headrace.publish('s', 'next')")
        office.execute("select headrace.leave_office()")
    assert [data for _, data in events(waiting)] == ["1", "commit", "next", "rollback"]
    assert value(waiting, "select count(*) from headrace.turn") == 2  # of the round that has committed, and the last


def test_a_long_publish_now_holds_up_its_own_stream_alone(connect: Connect, sequencer: Connection) -> None:
    """While it is open, others publish to all streams without waiting, and rounds number all others."""
    long, publisher = connect(), connect(autocommit=True)
    publisher.execute("set lock_timeout = '5s'")
    publisher.execute("select headrace.publish_many(array['s', 't'], array['1', '1'])")
    assert value(long, "select headrace.publish_now('s', '2')") == 2
    publisher.execute("select headrace.publish_many(array['s', 't'], array['3', '2'])")
    assert do_round(sequencer) == Round(2, 1)
    assert events(publisher, "t") == [(1, "1"), (2, "2")]
    assert events(publisher) == []
    assert value(publisher, "select headrace.publish_now('t', '3')") == 3
    long.commit()
    assert do_round(sequencer) == Round(1, 0)
    assert events(publisher) == [(1, "1"), (2, "2"), (3, "3")]
