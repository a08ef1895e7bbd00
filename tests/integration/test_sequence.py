"""Rounds: what they number, what they pass over, and what meets them half-way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import errors

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema.migrations import migrate
from tests.fixtures.ear import Ear, channel
from tests.fixtures.postgres import Connect, Connection, execute, scratch_postgres
from tests.fixtures.read_after import value
from tests.fixtures.rounds import BUSY, Round, behind, do_round, events, turns
from tests.fixtures.waiting import DEADLINE_S, wait_until, wait_until_blocked

BELL = 4711
"""An advisory lock at which the tests hold a session in the middle of a function."""


def hold_at(holder: Connection, signature: str, place: str) -> None:
    """From now on whoever comes behind this place of the function waits, until the holder gives the lock BELL up."""
    definition = value(holder, "select pg_get_functiondef(%s::regprocedure)", signature)
    assert definition.count(place) == 1
    holder.execute(definition.replace(place, f"{place} perform pg_advisory_xact_lock_shared({BELL});").encode())
    holder.execute(f"select pg_advisory_lock({BELL})".encode())


def pages(connection: Connection, statement: str) -> int:
    """How many pages of tables and indexes the statement touches."""
    plan = value(connection, f"explain (analyze, buffers, format json) {statement}")
    return int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"])


@pytest.fixture
def publisher(connect: Connect) -> Connection:
    """A session whose statements are transactions."""
    return connect(autocommit=True)


# Locked streams


def test_a_locked_stream_is_passed_over_and_comes_later(
    connect: Connect, ear: Ear, sequencer: Connection, publisher: Connection
) -> None:
    """While a transaction holds a stream, rounds number all others; later each of its turns is numbered once."""
    holder = connect()
    publisher.execute("select headrace.publish_many(array['s', 't'], array['1', '1'])")
    holder.execute("select headrace.publish_now('s', '2')")
    assert do_round(sequencer) == Round(1, 1)
    for number in range(3, 6):
        publisher.execute("select headrace.publish_many(array['s', 't'], array[%s, %s])", [str(number)] * 2)
        assert do_round(sequencer) == Round(1, 1)
        assert behind(publisher) == ["s"]
    assert do_round(sequencer) == Round(0, 1)
    assert ear.heard() == ["1 t", "2 t", "3 t", "4 t"]
    holder.commit()
    publisher.execute("select headrace.publish_many(array['s', 't'], array['6', '6'])")
    assert do_round(sequencer) == Round(5, 0)
    assert ear.heard() == ["2 s", "5 t", "6 s"]
    assert behind(publisher) == []
    assert events(publisher) == [(number, str(number)) for number in range(1, 7)]
    assert do_round(sequencer) == Round(0, 0)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_was_passed_over_is_numbered_at_commit(
    connect: Connect, sequencer: Connection, publisher: Connection, end: str
) -> None:
    """A transaction that numbers in a stream which rounds have passed over takes all that waits in it; none is lost."""
    holder = connect()
    publisher.execute("select headrace.publish('s', '1')")
    assert do_round(sequencer) == Round(1, 0)
    publisher.execute("select headrace.publish('s', '2')")
    holder.execute("select 1 from headrace.stream for update")
    assert do_round(sequencer) == Round(0, 1)
    publisher.execute("select headrace.publish('s', '3')")
    assert do_round(sequencer) == Round(0, 1)
    holder.rollback()
    holder.execute("select headrace.publish_now('s', '4')")
    publisher.execute("select headrace.publish('s', '5')")
    getattr(holder, end)()
    assert do_round(sequencer) == Round(1 if end == "commit" else 3, 0)
    expected = ["1", "2", "3", "4", "5"] if end == "commit" else ["1", "2", "3", "5"]
    assert events(publisher) == list(enumerate(expected, 1))
    assert behind(publisher) == []


def test_streams_that_others_are_making_are_passed_over(
    connect: Connect, ear: Ear, sequencer: Connection, publisher: Connection
) -> None:
    """A round waits for nobody who makes a stream, or removes one of the slot: it makes and numbers the others."""
    makers = [connect() for _ in range(3)]
    for number, maker in enumerate(makers):
        maker.execute("select headrace.publish_now(%s, 'x')", [f"held {number}"])
    names = [f"held {number}" for number in range(3)] + [f"new {number}" for number in range(20)] + ["t"]
    publisher.execute("select headrace.publish_many(%s, array_fill('1'::text, array[24]))", [names])
    # Bounds each wait of the round for a lock, of which a round for three streams may have a few.
    sequencer.execute("set statement_timeout = '10s'")
    first = do_round(sequencer)
    assert first.skipped >= 3
    assert first.transactions + first.skipped == 24

    def others() -> bool:
        done = do_round(sequencer)
        return done.skipped == 3 and behind(publisher) == names[:3]

    wait_until(others, "the others are numbered")  # in one round, unless the machine is slow
    assert ear.heard() == ["1 t"]
    for end, maker in zip(("commit", "rollback", "commit"), makers, strict=True):
        getattr(maker, end)()
    assert do_round(sequencer) == Round(3, 0)
    assert [events(publisher, name)[-1] for name in names[:3]] == [(2, "1"), (1, "1"), (2, "1")]
    assert value(publisher, "select count(*) from headrace.event") == 24 + 2


def test_a_removed_stream_is_made_again_for_what_waits(ear: Ear, sequencer: Connection, publisher: Connection) -> None:
    """What has no id yet survives the removal of its stream; ids go on above all that it ever had."""
    publisher.execute("select headrace.publish_many(array['s', 't', 's'], array['1', '1', '2'])")
    do_round(sequencer)
    ear.heard()
    publisher.execute("select headrace.publish('s', '3')")
    publisher.execute("delete from headrace.stream")
    assert value(publisher, "select count(*) from headrace.payload") == 1
    assert do_round(sequencer) == Round(1, 0)
    assert (ear.heard(), events(publisher)) == (["3 s"], [(3, "3")])


# Transactions that end at any moment of a round


@pytest.mark.parametrize("prepared", [False, True])
def test_a_transaction_that_was_open_during_rounds_is_numbered(
    connect: Connect, ear: Ear, sequencer: Connection, publisher: Connection, prepared: bool
) -> None:
    """Older than what two rounds have numbered, it is found by the first round after its commit, and once."""
    first, second = connect(), connect()
    first.execute("select headrace.publish('s', 'early'); set constraints all immediate")
    second.execute("select headrace.publish('t', 'earlier')")
    if prepared:
        second.execute("prepare transaction 'two-phase'")
    for _ in range(2):
        publisher.execute("select headrace.publish('u', 'x')")
        assert do_round(sequencer) == Round(1, 0)
        sequencer.execute("select headrace.forget_turns()")
    if prepared:
        publisher.execute("commit prepared 'two-phase'")
    else:
        second.commit()
    assert do_round(sequencer) == Round(1, 0)
    assert ear.heard() == ["1 t"]
    first.commit()
    publisher.execute("select headrace.publish('t', 'x')")
    assert do_round(sequencer) == Round(2, 0)
    assert ear.heard() == ["1 s", "2 t"]
    assert do_round(sequencer) == Round(0, 0)


@pytest.mark.parametrize("place", ["seen := pg_current_snapshot();", "for no key update skip locked\n    );"])
@pytest.mark.parametrize("meanwhile", ["publish", "publish_now"])
def test_a_commit_in_the_middle_of_a_round_is_numbered_once(
    connect: Connect, sequencer: Connection, publisher: Connection, place: str, meanwhile: str
) -> None:
    """A transaction ends once a round has noted who is open, before or after the round has its streams."""
    other, holder = connect(autocommit=True), connect(autocommit=True)
    publisher.execute("select headrace.publish_many(array['s', 't'], array['1', '1'])")
    hold_at(holder, "headrace.sequence()", place)
    done: list[Round] = []
    thread = threading.Thread(target=lambda: done.append(do_round(sequencer)))
    thread.start()
    wait_until_blocked(holder, sequencer.info.backend_pid)
    committing = threading.Thread(target=other.execute, args=[f"select headrace.{meanwhile}('s', '2')".encode()])
    committing.start()
    if meanwhile == "publish_now" and "skip locked" in place:
        wait_until_blocked(holder, other.info.backend_pid)  # the round has the stream
    else:
        committing.join(DEADLINE_S)
    holder.execute(f"select pg_advisory_unlock({BELL})".encode())
    for each in (thread, committing):
        each.join(DEADLINE_S)
    do_round(sequencer)
    assert events(publisher) == [(1, "1"), (2, "2")]
    assert events(publisher, "t") == [(1, "1")]
    assert do_round(sequencer) == Round(0, 0)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_stream_that_is_given_back_in_the_middle_of_a_round(
    connect: Connect, sequencer: Connection, publisher: Connection, end: str
) -> None:
    """The round that has passed it over keeps its old bound, even if nobody holds it any more when the round ends."""
    taker, holder = connect(), connect(autocommit=True)
    publisher.execute("select headrace.publish_many_now(array['s', 't'], array['0', '0'])")
    publisher.execute("select headrace.publish_many(array['s', 't'], array['1', '1'])")
    taker.execute("select headrace.publish_now('s', '2')")
    hold_at(holder, "headrace.sequence()", "for no key update skip locked\n    );")
    done: list[Round] = []
    thread = threading.Thread(target=lambda: done.append(do_round(sequencer)))
    thread.start()
    wait_until_blocked(holder, sequencer.info.backend_pid)
    getattr(taker, end)()
    publisher.execute("select headrace.publish('s', '3')")
    holder.execute(f"select pg_advisory_unlock({BELL})".encode())
    thread.join(DEADLINE_S)
    assert done == [Round(1, 1)]
    assert do_round(sequencer) == Round(1 if end == "commit" else 2, 0)
    assert [data for _, data in events(publisher)] == (["0", "1", "2", "3"] if end == "commit" else ["0", "1", "3"])
    assert behind(publisher) == []


def test_a_sequencer_that_dies_before_its_commit(
    connect: Connect, ear: Ear, sequencer: Connection, publisher: Connection
) -> None:
    """A round that was not committed has numbered nothing; a successor does all of it, and each event gets one id."""
    successor = connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1')")
    sequencer.execute("begin")
    assert do_round(sequencer) == Round(1, 0)
    publisher.execute("select headrace.publish('t', '1')")
    assert do_round(successor) == BUSY
    assert ear.heard() == []
    publisher.execute("select pg_terminate_backend(%s)", [sequencer.info.backend_pid])
    wait_until(lambda: value(successor, "select headrace.take_office()"), "the office is free")
    assert do_round(successor) == Round(2, 0)
    assert ear.heard() == ["1 s", "1 t"]
    assert events(publisher) == [(1, "1")]


def test_two_rounds_at_once(connect: Connect, ear: Ear, sequencer: Connection, publisher: Connection) -> None:
    """One session does a round at a time; another that tries comes back at once, and numbers nothing."""
    other, holder = connect(autocommit=True), connect(autocommit=True)
    for number in range(50):
        publisher.execute("select headrace.publish('s', %s)", [str(number)])
    hold_at(holder, "headrace.sequence()", "seen := pg_current_snapshot();")
    done: list[Round] = []
    thread = threading.Thread(target=lambda: done.append(do_round(sequencer)))
    thread.start()
    wait_until_blocked(holder, sequencer.info.backend_pid)
    assert do_round(other) == BUSY
    holder.execute(f"select pg_advisory_unlock({BELL})".encode())
    thread.join(DEADLINE_S)
    assert done == [Round(50, 0)]
    assert do_round(other) == Round(0, 0)
    assert ear.heard() == ["50 s"]
    assert events(publisher) == [(number + 1, str(number)) for number in range(50)]


def test_a_round_that_begins_as_another_commits(connect: Connect, sequencer: Connection, publisher: Connection) -> None:
    """It reads the bound once more when it has the lock: what the other has numbered is not numbered again."""
    late, holder = connect(autocommit=True), connect(autocommit=True)
    publisher.execute("select headrace.publish('s', '1')")
    definition = value(holder, "select pg_get_functiondef('headrace.sequence()'::regprocedure)")
    definition = definition.replace("headrace.sequence(", "headrace.late(").replace("sequence.seen", "late.seen")
    holder.execute(definition.encode())
    hold_at(holder, "headrace.late()", "seen := before;")  # it has looked, and has no lock yet
    numbered: list[int] = []
    thread = threading.Thread(target=lambda: numbered.append(value(late, "select transactions from headrace.late()")))
    thread.start()
    wait_until_blocked(holder, late.info.backend_pid)
    assert do_round(sequencer) == Round(1, 0)
    holder.execute(f"select pg_advisory_unlock({BELL})".encode())
    thread.join(DEADLINE_S)
    assert numbered == [0]
    publisher.execute("select headrace.publish('s', '2')")
    assert do_round(sequencer) == Round(1, 0)
    assert events(publisher) == [(1, "1"), (2, "2")]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_round_needs_read_committed(sequencer: Connection, publisher: Connection, level: str) -> None:
    """With a snapshot that may be older than the last round it is refused, and numbers nothing."""
    publisher.execute("select headrace.publish('s', '1')")
    sequencer.execute(f"begin isolation level {level}".encode())
    with pytest.raises(errors.ActiveSqlTransaction, match="needs a READ COMMITTED transaction"):
        do_round(sequencer)
    sequencer.execute("rollback")
    assert do_round(sequencer) == Round(1, 0)


def test_a_round_of_a_transaction_that_has_published(connect: Connect, sequencer: Connection) -> None:
    """A snapshot takes its own transaction for ended. So such a round does nothing, and the events are not lost."""
    own, later, other = connect(), connect(), connect(autocommit=True)
    other.execute("select headrace.publish('s', '1')")
    own.execute("select headrace.publish('s', '2')")
    later.execute("select pg_current_xact_id()")
    other.execute("create table later ()")  # so that the snapshot ends above the transaction
    assert do_round(own) == Round(0, 0)
    own.commit()
    assert do_round(sequencer) == Round(2, 0)
    assert events(other) == [(1, "1"), (2, "2")]


# What rounds cost, and what they leave


def test_a_round_does_not_come_across_what_was_numbered(
    connect: Connect, sequencer: Connection, publisher: Connection
) -> None:
    """While an old snapshot keeps the turns of 2,000 transactions, a round, a commit and a page touch few pages."""
    old = connect()
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    old.execute("select count(*) from headrace.turn")
    publisher.execute(
        "create procedure publish_often() language plpgsql as $$ begin"
        " for number in 1..2000 loop perform headrace.publish('s', 'x'); commit; end loop; end $$"
    )
    publisher.execute("call publish_often()")
    everything = "select count(*) from headrace.turn"
    assert do_round(sequencer) == Round(2000, 0)
    forgotten = value(sequencer, "select headrace.forget_turns()")
    assert value(publisher, everything) == 0
    counted: list[int] = []
    for _ in range(3):  # the first ones read catalogs
        publisher.execute("select headrace.publish('s', 'x')")
        watermark = pages(publisher, "select headrace.watermark('s')")
        round_ = pages(sequencer, "select headrace.sequence()")
        forgetting = pages(sequencer, f"select headrace.forget_turns('{forgotten}')")
        counted = [watermark, round_, forgetting]
    assert max(counted) < 60, counted
    sequencer.execute("select headrace.leave_office()")
    for _ in range(3):
        at_once = pages(publisher, "select headrace.publish_now('s', 'x')")
    assert at_once < 120
    assert pages(publisher, everything) < 1000


def test_turns_are_forgotten_when_they_are_numbered(
    connect: Connect, sequencer: Connection, publisher: Connection
) -> None:
    """Only those that no round can need any more go: neither an open transaction's, nor any of a locked stream."""
    open_, holder = connect(), connect()
    for number in range(1, 4):
        publisher.execute("select headrace.publish_many(array['s', 't'], array[%s, %s])", [str(number)] * 2)
        if number == 1:
            open_.execute("select headrace.publish('t', '9'); set constraints all immediate")
            holder.execute("select headrace.publish_now('s', '9')")
    forget = "select headrace.forget_turns(%s::xid8)"
    assert do_round(sequencer) == Round(3, 1)
    since = value(sequencer, forget, "0")
    assert [[first for first, _ in turns(publisher, stream)] for stream in "st"] == [[1, 2, 3], [1, 2, 3]]
    holder.commit()
    assert do_round(sequencer) == Round(2, 0)
    since = value(sequencer, forget, since)
    assert [[first for first, _ in turns(publisher, stream)] for stream in "st"] == [[2, 3], [2, 3]]
    open_.commit()
    assert do_round(sequencer) == Round(1, 0)
    assert int(value(sequencer, forget, since)) > int(since)
    assert value(publisher, "select count(*) from headrace.turn") == 0
    assert [data for _, data in events(publisher)] == ["1", "9", "2", "3"]
    assert [data for _, data in events(publisher, "t")] == ["1", "2", "3", "9"]


def test_ticks_are_few(sequencer: Connection, publisher: Connection) -> None:
    """Each round that does something appends a tick, and old ticks are removed; others write nothing."""
    for _ in range(30):
        publisher.execute("select headrace.publish('s', 'x')")
        do_round(sequencer)
    newest = "select max(n), count(*) from headrace.tick"
    before = publisher.execute(newest.encode()).fetchone()
    assert before is not None
    assert before[1] <= 22
    for _ in range(3):
        assert do_round(sequencer) == Round(0, 0)
    assert publisher.execute(newest.encode()).fetchone() == before


# Durability


def test_a_round_asks_for_a_durable_commit(sequencer: Connection, publisher: Connection) -> None:
    """It raises synchronous_commit from off to local for its transaction, as does a transaction that leaves turns."""
    for connection, statement in ((publisher, "headrace.publish('s', '1')"), (sequencer, "headrace.sequence()")):
        connection.execute("set synchronous_commit = off")
        connection.execute("begin")
        connection.execute(f"select {statement}".encode())
        connection.execute("set constraints all immediate")
        assert value(connection, "show synchronous_commit") == "local"
        connection.execute("commit")
        assert value(connection, "show synchronous_commit") == "off"
    assert events(publisher) == [(1, "1")]


@contextmanager
def waiting_for_a_standby(server: EmbeddedPostgres, observer: Connection) -> Iterator[None]:
    """Within the block commits are flushed, and wait; afterwards they have ended."""
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    execute(server, "alter system set synchronous_standby_names = 'nobody'")
    execute(server, "select pg_reload_conf()")
    wait_until(lambda: value(observer, "show synchronous_standby_names") == "nobody", "commits wait for a standby")
    execute(server, "checkpoint")  # by the process that tells the others that commits wait now
    yield
    execute(server, "alter system reset synchronous_standby_names")
    execute(server, "select pg_reload_conf()")
    wait_until(lambda: value(observer, waits) == 0, "commits do not wait")


def test_nothing_is_numbered_before_it_is_durable() -> None:
    """While a commit is flushed and waits for a standby, its turn is invisible to rounds, and its round to readers."""
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    with scratch_postgres() as server:
        migrate(server.url)
        with (
            psycopg.connect(server.url, autocommit=True) as sequencer,
            psycopg.connect(server.url, autocommit=True) as publisher,
            psycopg.connect(server.url, autocommit=True) as observer,
        ):
            ear = Ear(observer, channel("s"))
            assert value(sequencer, "select headrace.take_office()")
            threads = [
                threading.Thread(target=publisher.execute, args=[b"select headrace.publish('s', '1')"]),
                threading.Thread(target=do_round, args=[sequencer]),
            ]
            with waiting_for_a_standby(server, observer):
                threads[0].start()
                wait_until(lambda: value(observer, waits) == 1, "the publisher waits")
                assert do_round(sequencer) == Round(0, 0)
            threads[0].join(DEADLINE_S)
            with waiting_for_a_standby(server, observer):
                threads[1].start()
                wait_until(lambda: value(observer, waits) == 1, "the round waits")
                assert (value(observer, "select headrace.head('s')"), events(observer)) == (0, [])
                assert list(observer.notifies(timeout=0)) == []  # not by the ear, whose notification would wait, too
            threads[1].join(DEADLINE_S)
            assert (ear.heard(), events(observer)) == (["1 s"], [(1, "1")])
