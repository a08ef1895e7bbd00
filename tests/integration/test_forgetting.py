"""Forgetting idle streams: which of them go, what is left of them, and what their clients are told."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from headrace.shard.postgres import sql_functions
from tests.fixtures.forgetting import KEEP, age, beside, empty, forget, forget_idle, names
from tests.fixtures.postgres import Connect, Connection
from tests.fixtures.read_after import value
from tests.fixtures.rounds import behind, do_round
from tests.fixtures.waiting import wait_until_blocked


def standing(connection: Connection, stream: str, after: int | None) -> tuple[Any, ...]:
    """What a shard is told of the stream: head, trimmed_to, begins_after, and whether after is not of this log."""
    (page,), _, _ = sql_functions.read_pages(connection, [stream], [after], 10, 1000, 1000)
    return page.head, page.trimmed_to, page.begins_after, page.foreign(after or 0)


def publish(connection: Connection, stream: str, count: int = 1) -> int:
    for _ in range(count):
        last = value(connection, "select headrace.publish_now(%s, 'x')", stream)
    return int(last)


# -- which streams go


def test_an_idle_stream_is_forgotten(connection: Connection) -> None:
    """A stream without events that nobody has used for long goes, with its marks and jumps; the others stay."""
    publish(connection, "busy")
    assert forget_idle(connection, "idle") == 1
    publish(connection, "young")
    assert names(connection) == ["busy", "young"]
    ids = connection.execute("select stream_id from headrace.trimmed").fetchall()
    assert ids == connection.execute("select stream_id from headrace.stream where name = 'busy'").fetchall()


def test_a_stream_is_kept_for_the_time_and_a_quarter(connection: Connection) -> None:
    """The mark of an hour and a quarter is what counts, not of an hour, since notes of its use may be as late."""
    empty(connection, "s")
    connection.execute("update headrace.trimmed set used_at = now() - interval '74 minutes'")
    assert forget(connection) == 0
    age(connection)
    assert forget(connection) == 1


def test_a_stream_with_an_event_is_kept(connection: Connection) -> None:
    """However old the mark of its use, a stream that has an event stays."""
    empty(connection, "s")
    publish(connection, "s")
    age(connection)
    assert forget(connection) == 0


def test_losing_an_event_counts_as_use(connection: Connection) -> None:
    """The time begins anew when retention removes an event of the stream."""
    empty(connection, "s")
    age(connection)
    empty(connection, "s")
    connection.execute("update headrace.forgetting set next_at = '-infinity'")
    assert forget(connection) == 0


def test_a_stream_with_a_subscriber_is_kept(connection: Connection) -> None:
    """A note that the stream is in use keeps it; a note is written only where the last one is old."""
    empty(connection, "used", "unused")
    age(connection)
    asked = "select headrace.note_used(array['used', 'used', 'nobody knows it'], %s)"
    assert [value(connection, asked, KEEP) for _ in range(2)] == [1, 0]
    assert forget(connection) == 1
    assert names(connection) == ["used"]


def test_a_note_comes_while_streams_are_forgotten(connection: Connection, connect: Connect) -> None:
    """A note for a stream that is being forgotten waits for nothing, and one that comes first keeps the stream."""
    empty(connection, "a", "b")
    age(connection)
    forget(connection)  # raises the floors of both slots, and forgets them
    empty(connection, "a", "b")
    age(connection)
    noting, forgetting = connect(), connect()
    assert value(noting, "select headrace.note_used(array['a'], %s)", KEEP) == 1
    forgetting.execute("select headrace.forget_streams(%s, 100)", [KEEP])
    connection.execute("set lock_timeout = '10s'")
    assert value(connection, "select headrace.note_used(array['a', 'b'], %s)", KEEP) == 0
    noting.commit()
    forgetting.commit()
    forget(connection)
    assert names(connection) == ["a"]


def test_a_stream_that_is_numbered_in_is_passed_over(connection: Connection, connect: Connect) -> None:
    """Forgetting waits for no publisher, and forgets nothing that one is publishing to; nor if it rolls back."""
    empty(connection, "s")
    age(connection)
    publisher = connect()
    publisher.execute("select headrace.publish_now('s', 'x')")
    connection.execute("set lock_timeout = '10s'")
    assert forget(connection) == 0
    publisher.rollback()
    age(connection)
    assert forget(connection) == 1


def test_a_stream_whose_events_wait_for_ids_is_kept(connection: Connection, sequencer: Connection) -> None:
    """A turn in the stream, left by a committed transaction, keeps it."""
    empty(connection, "s", "t")
    connection.execute("select headrace.publish('s', 'waits')")
    age(connection)
    assert forget(connection) == 1
    assert names(connection) == ["s"]
    do_round(sequencer)
    assert standing(connection, "s", 1)[0] == 2


def test_a_round_passes_over_a_stream_that_is_forgotten(
    connection: Connection, sequencer: Connection, connect: Connect
) -> None:
    """A turn that comes while its stream is being forgotten is numbered by a later round, above all former ids."""
    empty(connection, "s")
    connection.execute("update headrace.slot_floor set forgotten = 9 where slot = headrace.slot('s')")
    age(connection)
    forgetting = connect()
    assert value(forgetting, "select forgotten from headrace.forget_streams(%s, 100)", KEEP) == 1
    connection.execute("select headrace.publish('s', 'late')")
    assert do_round(sequencer) == (0, 1)
    assert behind(connection) == ["s"]
    forgetting.commit()
    assert do_round(sequencer) == (1, 0)
    assert standing(connection, "s", None)[:2] == (10, 9)


def test_batches_go_on_where_the_last_one_ended(connection: Connection) -> None:
    """However small the batches, all idle streams go, and the search ends; the next one is due in an eighth of keep."""
    idle = [f"idle:{n}" for n in range(25)]
    empty(connection, *idle)
    age(connection)
    publish(connection, "idle:7")
    assert forget(connection, 1) == 24
    assert names(connection) == ["idle:7"]
    due = value(connection, "select next_at - clock_timestamp() between '7 min' and '8 min' from headrace.forgetting")
    assert due
    empty(connection, "idle:7")
    connection.execute("update headrace.trimmed set used_at = '-infinity'")
    assert forget(connection) == 0


def test_one_session_forgets_at_a_time(connection: Connection, connect: Connect) -> None:
    """While another session forgets, a call returns at once with nothing."""
    empty(connection, "s")
    age(connection)
    first = connect()
    first.execute("select headrace.forget_streams(%s, 100)", [KEEP])
    connection.execute("set lock_timeout = '10s'")
    assert forget(connection) == 0
    first.rollback()
    assert forget(connection) == 1


def test_a_crash_within_a_call_leaves_all_as_it_was(connection: Connection, connect: Connect) -> None:
    """What a session has forgotten when it is killed is there again, and is forgotten by the next."""
    empty(connection, "s")
    age(connection)
    assert value(connection, "select forgotten from headrace.forget_streams(%s, 100)", KEEP) == 0  # the floor
    victim = connect()
    assert value(victim, "select forgotten from headrace.forget_streams(%s, 100)", KEEP) == 1
    connection.execute("select pg_terminate_backend(%s)", [victim.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        victim.execute("select 1")
    assert standing(connection, "s", 1)[:2] == (1, 1)
    assert (forget(connection), names(connection)) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'59 minutes', 1", "1 hour or longer"),
        ("null, 1", "1 hour or longer"),
        ("'1 hour', 0", "1 to 100,000"),
        ("'1 hour', null", "1 to 100,000"),
    ],
)
def test_refused_arguments(connection: Connection, arguments: str, message: str) -> None:
    """Times that are too short for shards to know what is forgotten, and batches of nothing, are refused."""
    with pytest.raises(errors.InvalidParameterValue, match=message):
        connection.execute(f"select headrace.forget_streams({arguments})".encode())


def test_an_old_snapshot_may_not_forget(connect: Connect) -> None:
    """A REPEATABLE READ transaction would not see what was published before it got the locks."""
    old = connect()
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(errors.ActiveSqlTransaction):
        old.execute("select headrace.forget_streams('1 hour', 1)")


# -- ids, and what clients are told


def test_no_id_comes_back(connection: Connection) -> None:
    """A stream made again goes on above its own ids, and above those of all forgotten streams of its slot."""
    other, third = beside("s", 2)
    publish(connection, "s", 4)
    publish(connection, other, 6)
    assert forget_idle(connection, "s", other) == 2
    assert publish(connection, "s") == 8
    assert publish(connection, third) == 8
    assert forget_idle(connection, "s") == 1
    assert publish(connection, "s") == 10


def test_a_client_that_missed_events_is_told_of_a_gap(connection: Connection) -> None:
    """A cursor below the last id is below the mark, of the stream that is gone and of the one that was made again."""
    publish(connection, "s", 3)
    assert forget_idle(connection, "s") == 1
    assert standing(connection, "s", 2) == (4, 4, 4, False)
    publish(connection, "s")
    assert standing(connection, "s", 2) == (5, 4, 4, False)


def test_a_client_that_missed_nothing_is_told_nothing(connection: Connection) -> None:
    """A cursor at the last id is at the mark, and gets what is published later."""
    publish(connection, "s", 3)
    forget_idle(connection, "s")
    publish(connection, "s")
    (page,), _, _ = sql_functions.read_pages(connection, ["s"], [4], 10, 1000, 1000)
    assert (page.trimmed_to, [frame.id for frame in page.frames], page.foreign(4)) == (4, [5], False)


def test_a_client_that_cannot_be_told_apart_is_told_of_a_gap(connection: Connection) -> None:
    """Where another forgotten stream of the slot had a higher head, a cursor at the last id is below the mark."""
    (other,) = beside("s", 1)
    publish(connection, other, 5)
    forget_idle(connection, "s", other)
    assert standing(connection, "s", 1) == (6, 6, 6, False)


def test_a_cursor_from_elsewhere_is_not_of_this_log(connection: Connection) -> None:
    """A cursor above all ids of the slot is told so, as it is for a stream that exists."""
    forget_idle(connection, "s")
    assert standing(connection, "s", 2)[3]


def test_other_slots_know_nothing_of_it(connection: Connection) -> None:
    """A stream of a slot without forgotten streams begins at 1, and has no mark."""
    forget_idle(connection, "s")
    assert standing(connection, "t", 0) == (0, 0, 0, False)
    assert publish(connection, "t") == 1
    assert standing(connection, "t", 0)[:3] == (1, 0, 0)


def test_a_page_of_a_forgotten_stream_begins_where_it_goes_on(connection: Connection, sequencer: Connection) -> None:
    """Head and watermark are the mark, so that a page made now is told of no gap, with events without ids or not."""
    forget_idle(connection, "s")
    asked = "select headrace.head('s'), headrace.watermark('s')"
    assert connection.execute(asked).fetchone() == (1, "1")
    connection.execute("select headrace.publish('s', 'waits')")
    found = value(connection, "select headrace.watermark('s')")
    assert found.startswith("1-")
    do_round(sequencer)
    assert standing(connection, "s", 1) == (2, 1, 1, False)


def test_a_snapshot_does_not_see_that_it_was_forgotten(connection: Connection, connect: Connect) -> None:
    """An old snapshot has the stream as it was, and its publisher meets no serialization error."""
    empty(connection, "s")
    old = connect()
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert value(old, "select headrace.watermark('s')") == "1"
    age(connection)
    assert forget(connection) == 1
    assert value(old, "select headrace.watermark('s')") == "1"
    old.execute("select headrace.publish('s', 'late')")
    old.commit()
    do_round(connection)
    assert standing(connection, "s", 1) == (2, 1, 1, False)


def test_ids_of_a_lost_incarnation(connection: Connection) -> None:
    """After a fail-over a cursor at the slot's number may be of lost commits: it is below the new start."""
    forget_idle(connection, "s")
    start = value(connection, "select headrace.begin_block()")
    assert standing(connection, "s", 1) == (start, start, 1, False)
    assert publish(connection, "s") == start + 1
    assert standing(connection, "s", 1) == (start + 1, start, 1, False)


def test_a_stream_that_is_removed_by_hand(connection: Connection) -> None:
    """It leaves a floor above the slot's number: a shard that serves it does not take it for a forgotten one."""
    (other,) = beside("s", 1)
    publish(connection, other, 7)
    forget_idle(connection, other)
    publish(connection, "s", 2)
    connection.execute("delete from headrace.stream where name = 's'")
    assert standing(connection, "s", 9) == (10, 10, 8, False)
    assert publish(connection, "s") == 11
    connection.execute("truncate headrace.stream")
    assert publish(connection, "s") == 12


def test_what_a_stream_made_again_loses(connection: Connection) -> None:
    """Retention by audience goes on in a stream made again: what came before counts as visible to everybody."""
    forget_idle(connection, "s")
    connection.execute("select headrace.publish_now('s', 'x', visible_to => 'staff')")
    empty(connection)
    (page,), _, _ = sql_functions.read_pages(connection, ["s"], [0], 10, 1000, 1000)
    assert (page.missed_by(0), page.missed_by(1)) == ({"", "staff"}, {"staff"})


def test_presence_of_a_stream_that_is_forgotten(connection: Connection) -> None:
    """Members stay, and the companion stream goes on above its ids when somebody leaves."""
    session = "00000000-0000-0000-0000-000000000001"
    report = (
        "select headrace.presence_report(%s, 'n-0', %s, null, %s, array['room'], array['ada'], '{}', '{}')",
        "select headrace.presence_report(%s, 'n-0', %s, %s, false, '{}', '{}', array['room'], array['ada'])",
    )
    connection.execute(report[0], [session, 1, True])
    empty(connection)
    age(connection)
    assert forget(connection) == 1
    assert value(connection, "select headrace.member_count('room')") == 1
    connection.execute(report[1], [session, 2, 1])
    assert value(connection, "select headrace.head('presence:room')") == 2
    assert value(connection, "select headrace.member_count('room')") == 0


def test_revocations_outlive_a_stream(connection: Connection) -> None:
    """A stream's disconnect is by its name, and is read although the stream is gone."""
    forget_idle(connection, "s")
    connection.execute("select headrace.disconnect(stream => 's', reason => 'closed')")
    _, (revocation,) = sql_functions.read_revocations(connection, sql_functions.FIRST_FLOOR)
    assert (revocation.stream, revocation.reason) == ("s", "closed")


# -- locks and plans


def test_who_revives_a_stream_while_it_is_forgotten_does_not_deadlock(connection: Connection, connect: Connect) -> None:
    """A transaction that waits for a stream which goes gives back those that it has locked, before it makes it again.

    The first one has locked `a` and waits for `c`, which is forgotten, and then for `d`. Meanwhile the second one makes
    `c` again, and waits for `a`.
    """
    forget_idle(connection, "c")
    publish(connection, "a")
    publish(connection, "d")
    empty(connection, "c")
    connection.execute("update headrace.slot_floor set forgotten = 9 where slot = headrace.slot('c')")
    age(connection, "c")
    forgetting, holder, first, second = connect(), connect(), connect(), connect()
    assert value(forgetting, "select forgotten from headrace.forget_streams(%s, 100)", KEEP) == 1
    publish(holder, "d")
    with ThreadPoolExecutor() as pool:
        asked = "select headrace.publish_many_now(array['a', 'c', 'd'], array['x', 'x', 'x'])"
        one = pool.submit(value, first, asked)
        wait_until_blocked(connection, first.info.backend_pid, forgetting.info.backend_pid)
        forgetting.commit()
        wait_until_blocked(connection, first.info.backend_pid, holder.info.backend_pid)
        two = pool.submit(value, second, "select headrace.publish_many_now(array['a', 'c'], array['x', 'x'])")
        wait_until_blocked(connection, second.info.backend_pid, first.info.backend_pid)
        holder.commit()
        assert two.result() == [2, 10]
        second.commit()
        assert one.result() == [3, 11, 3]
        first.commit()


def test_names_are_found_one_by_one_after_nearly_all_were_forgotten(connection: Connection) -> None:
    """When PostgreSQL takes the table for empty, 2,000 streams are made without going through it for each."""
    publish(connection, "first")  # what is left is the table's beginning, so that VACUUM truncates the rest
    connection.execute(
        "insert into headrace.stream (name, slot, last_id, timeline)"
        " select 'old:' || n, 0, 1, d.incarnation from generate_series(1, 100000) n, headrace.deployment d"
    )
    connection.execute("alter table headrace.stream disable trigger stream_removed")
    connection.execute("delete from headrace.stream where name <> 'first'")
    connection.execute("alter table headrace.stream enable always trigger stream_removed")
    connection.execute("vacuum analyze headrace.stream")
    connection.execute("vacuum headrace.stream")
    many = [f"s:{n}" for n in range(2000)]
    with psycopg.connect(connection.info.dsn, password=connection.info.password) as fresh:
        fresh.execute("select headrace.publish_many_now(%s, %s)", [many, many])
        fresh.execute("select count(*) from headrace.read_log(%s, %s, 1, 1, 1)", [many, [0] * len(many)])
        row = fresh.execute(
            "select sum(pg_stat_get_xact_tuples_returned(indexrelid)) from pg_index"
            " where indrelid in ('headrace.stream'::regclass, 'headrace.trimmed'::regclass)"
        ).fetchone()
    assert row is not None
    assert row[0] < 30 * len(many)


def test_estimates_of_how_many_streams_there_are(connection: Connection) -> None:
    """They are counted before the first VACUUM, and are what the last one has found after that."""
    for number in range(3):
        publish(connection, f"s:{number}")
    assert sql_functions.estimate_streams(connection) == 3
    connection.execute("vacuum headrace.stream")
    publish(connection, "late")
    assert sql_functions.estimate_streams(connection) == 3
    assert value(connection, "select headrace.count_missing(array['s:1', 'no', 'no', 'nor'])") == 2
