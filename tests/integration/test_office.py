"""Who numbers, a transaction at its commit or the shard in office, in every order in which the two can meet."""

import threading

import psycopg
import pytest
from psycopg import errors

from tests.fixtures.ear import Ear
from tests.fixtures.postgres import Connect, Connection
from tests.fixtures.read_after import value
from tests.fixtures.rounds import Round, do_round, events, turns
from tests.fixtures.waiting import DEADLINE_S, wait_until_blocked

OLD_SNAPSHOTS = [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]


def test_one_notification_for_many_commits(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """With a sequencer in office a commit numbers nothing and notifies nobody; a round notifies once per stream."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1')")
    publisher.commit()
    publisher.execute("select headrace.publish_many(array['s', 't', 's'], array['2', '1', '3'])")
    publisher.commit()
    publisher.execute("select headrace.publish('s', 'never')")
    publisher.rollback()
    with publisher.transaction(), publisher.transaction(force_rollback=True):
        publisher.execute("select headrace.publish('t', 'never')")
    assert (ear.heard(), events(publisher)) == ([], [])
    assert do_round(sequencer) == Round(3, 0)
    assert ear.heard() == ["1 t", "3 s"]
    assert events(publisher) == [(1, "1"), (2, "2"), (3, "3")]
    assert do_round(sequencer) == Round(0, 0)
    assert ear.heard() == []


def test_the_office_does_not_matter_to_publish_now(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """It numbers what waits and its own event, and notifies by itself; the next round numbers none of them again."""
    publisher = connect(autocommit=True)
    publisher.execute("select headrace.publish_many(array['s', 't'], array['1', '1'])")
    publisher.execute("select headrace.publish('s', '2')")
    assert value(publisher, "select headrace.publish_now('s', '3')") == 3
    assert ear.heard() == ["3 s"]
    publisher.execute("select headrace.publish('t', '2')")
    assert value(publisher, "select headrace.publish_many_now(array['t', 'u', 't'], array['3', '1', '4'])") == [3, 1, 4]
    assert ear.heard() == ["4 t"]
    assert do_round(sequencer) == Round(0, 0)
    assert ear.heard() == []
    assert events(publisher) == [(1, "1"), (2, "2"), (3, "3")]
    assert events(publisher, "t") == [(1, "1"), (2, "2"), (3, "3"), (4, "4")]


def test_a_late_commit_is_seen_by_the_session_that_has_left_office(
    connect: Connect, ear: Ear, sequencer: Connection
) -> None:
    """A publisher that relied on the sequencer and commits after it has left is waited for, and numbered by it."""
    late, other, rolled_back = connect(), connect(), connect()
    for publisher, stream in ((late, "s"), (rolled_back, "t")):
        publisher.execute("select headrace.publish(%s, '1')", [stream])
        publisher.execute("set constraints all immediate")
    sequencer.execute("select headrace.leave_office()")
    assert do_round(sequencer) == Round(0, 0)
    assert not value(sequencer, "select headrace.nobody_defers()")
    # A publisher that comes now does not rely on the sequencer any more, and does not keep it waiting either.
    rolled_back.rollback()
    other.execute("select headrace.publish('t', '1')")
    other.execute("set constraints all immediate")
    assert not value(sequencer, "select headrace.nobody_defers()")
    late.commit()
    assert value(sequencer, "select headrace.nobody_defers()")
    assert ear.heard() == []
    other.commit()
    assert ear.heard() == ["1 t"]
    assert do_round(sequencer) == Round(1, 0)
    assert ear.heard() == ["1 s"]


def test_the_office_counts_at_commit(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """A transaction that publishes while there is a sequencer, and commits when there is none, numbers by itself."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1')")
    sequencer.execute("select headrace.leave_office()")
    assert value(sequencer, "select headrace.nobody_defers()")
    publisher.commit()
    assert ear.heard() == ["1 s"]
    assert turns(publisher) == []


def test_a_sequencer_leaves_between_two_looks_of_a_publisher(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """A publisher that has seen it in office, and has not said yet that it relies on it, finds out and numbers."""
    publisher, holder = connect(autocommit=True), connect(autocommit=True)
    definition = value(holder, "select pg_get_functiondef('headrace.defers()'::regprocedure)")
    look = "and pg_try_advisory_xact_lock_shared(x'6865616472616364'::bigint)"
    assert definition.count(look) == 1
    holder.execute(
        definition.replace(look, "and pg_advisory_xact_lock_shared(4711)::text is not null " + look).encode()
    )
    holder.execute("select pg_advisory_lock(4711)")
    thread = threading.Thread(target=publisher.execute, args=[b"select headrace.publish('s', '1')"])
    thread.start()
    wait_until_blocked(holder, publisher.info.backend_pid)
    sequencer.execute("select headrace.leave_office()")
    assert value(sequencer, "select headrace.nobody_defers()")
    assert do_round(sequencer) == Round(0, 0)
    holder.execute("select pg_advisory_unlock(4711)")
    thread.join(DEADLINE_S)
    assert ear.heard() == ["1 s"]
    assert do_round(sequencer) == Round(0, 0)
    assert turns(holder) == []


def test_a_publisher_that_may_not_be_waited_for_numbers(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """In the moment in which a sequencer that leaves makes sure that nobody relies on it, no publisher does."""
    connect(autocommit=True).execute("select pg_advisory_lock(x'6865616472616364'::bigint)")
    connect(autocommit=True).execute("select headrace.publish('s', '1')")
    assert ear.heard() == ["1 s"]
    assert do_round(sequencer) == Round(0, 0)


def test_looking_for_a_sequencer_keeps_nobody_from_office(connect: Connect) -> None:
    """An open transaction that has looked for a sequencer holds up neither who takes office nor who leaves it."""
    first, second, third = connect(), connect(), connect(autocommit=True)
    first.execute("select headrace.publish('s', '1'); set constraints all immediate")
    assert value(third, "select headrace.take_office()")
    second.execute("select headrace.publish('t', '1'); set constraints all immediate")
    assert not value(first, "select headrace.take_office()")
    third.execute("select headrace.leave_office()")
    assert value(first, "select headrace.take_office()")


def test_a_transaction_that_has_left_a_turn_leaves_all(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """If the sequencer leaves office between two events of a transaction, others number both, in their order."""
    publisher = connect()
    publisher.execute("select headrace.publish('s', '1'); set constraints all immediate")
    sequencer.execute("select headrace.leave_office()")
    rate = Ear(connect(autocommit=True), "headrace_rate")
    publisher.execute("select headrace.publish('s', '2'); select headrace.publish('t', '3')")
    publisher.commit()
    assert (ear.heard(), rate.heard()) == ([], ["turn"])
    assert do_round(sequencer) == Round(2, 0)
    assert ear.heard() == ["1 t", "2 s"]
    assert events(publisher) == [(1, "1"), (2, "2")]


def test_a_transaction_that_has_numbered_leaves_the_rest(connect: Connect, ear: Ear) -> None:
    """If a sequencer takes office between two events of a transaction, only the second is left to it."""
    publisher, sequencer = connect(), connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1'); set constraints all immediate")
    assert value(sequencer, "select headrace.take_office()")
    publisher.execute("select headrace.publish('s', '2')")
    publisher.commit()
    assert (ear.heard(), turns(publisher)) == (["1 s"], [(2, True)])
    assert do_round(sequencer) == Round(1, 0)
    assert events(publisher) == [(1, "1"), (2, "2")]


def test_a_prepared_transaction_is_waited_for(connect: Connect, ear: Ear, sequencer: Connection) -> None:
    """A transaction that has left a turn can be prepared; it counts as open until it is committed."""
    publisher, lost = connect(), connect()
    publisher.execute("select headrace.publish('s', '1'); prepare transaction 'kept'")
    lost.execute("select headrace.publish('s', '2'); prepare transaction 'lost'")
    sequencer.execute("select headrace.leave_office()")
    assert not value(sequencer, "select headrace.nobody_defers()")
    assert do_round(sequencer) == Round(0, 0)
    publisher.autocommit = lost.autocommit = True
    publisher.execute("commit prepared 'kept'")
    assert not value(sequencer, "select headrace.nobody_defers()")
    lost.execute("rollback prepared 'lost'")
    assert value(sequencer, "select headrace.nobody_defers()")
    assert do_round(sequencer) == Round(1, 0)
    assert ear.heard() == ["1 s"]


@pytest.mark.parametrize("level", OLD_SNAPSHOTS)
def test_an_old_snapshot_knows_who_is_in_office_now(
    connect: Connect, ear: Ear, sequencer: Connection, level: psycopg.IsolationLevel
) -> None:
    """Above READ COMMITTED a turn is left either way; where nobody is in office any more, a shard is woken for it."""
    rate = Ear(connect(autocommit=True), "headrace_rate")
    told: list[list[str]] = []
    for leaves in (False, True):
        publisher = connect()
        publisher.isolation_level = level
        publisher.execute("select * from pg_locks")
        if leaves:
            sequencer.execute("select headrace.leave_office()")
        publisher.execute("select headrace.publish('s', '1')")
        publisher.commit()
        told.append(rate.heard())
    assert told == [[], ["turn"]]
    assert ear.heard() == []
    assert do_round(sequencer) == Round(2, 0)
    assert ear.heard() == ["2 s"]


@pytest.mark.parametrize("level", OLD_SNAPSHOTS)
def test_an_old_snapshot_can_be_prepared_only_beside_a_sequencer(
    connect: Connect, sequencer: Connection, level: psycopg.IsolationLevel
) -> None:
    """Where a shard must be woken, PREPARE TRANSACTION fails with PostgreSQL's error about NOTIFY."""
    publisher = connect()
    publisher.isolation_level = level
    publisher.execute("select headrace.publish('s', '1'); prepare transaction 'two-phase'")
    sequencer.execute("commit prepared 'two-phase'")
    sequencer.execute("select headrace.leave_office()")
    publisher.rollback()
    publisher.execute("select headrace.publish('s', '2')")
    with pytest.raises(errors.FeatureNotSupported, match="NOTIFY"):
        publisher.execute("prepare transaction 'two-phase'")
    publisher.rollback()
    assert do_round(sequencer) == Round(1, 0)
    assert events(publisher) == [(1, "1")]


def test_a_share_of_the_transactions_tells_that_it_notifies(connect: Connect) -> None:
    """Of transactions that number by themselves about one in 16 says so; of others none."""
    publisher, sequencer = connect(autocommit=True), connect(autocommit=True)
    ear = Ear(connect(autocommit=True), "headrace_rate")

    def samples(function: str) -> int:
        for _ in range(400):
            publisher.execute(f"select headrace.{function}('s', 'x')".encode())
        return len(ear.heard())

    assert 3 <= samples("publish") <= 80
    assert 3 <= samples("publish_now") <= 80
    sequencer.execute("select headrace.take_office()")
    assert samples("publish") == 0
