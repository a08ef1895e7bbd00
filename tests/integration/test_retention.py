"""Retention: which events go, in what steps, and what publishers and readers notice of it."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from tests.fixtures.postgres import Connection


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url) as connection:
        yield connection


def publish(connection: Connection, stream: str, count: int, age: str = "0") -> None:
    """Publish `count` events to the stream that are `age` old."""
    connection.execute("select headrace.publish(%s, 'x') from generate_series(1, %s)", [stream, count])
    connection.execute(
        "update headrace.event set created_at = created_at - %s::interval where (stream_id, id) in ("
        " select s.stream_id, s.last_id - n from headrace.stream s, generate_series(0, %s - 1) n"
        " where s.name = %s)",
        [age, count, stream],
    )


def rule(connection: Connection, pattern: str, keep: str | None, count: int | None = None) -> None:
    connection.execute("select headrace.set_retention(%s, %s::interval, %s::bigint)", [pattern, keep, count])


def prune(connection: Connection, batch: int = 1000) -> list[int]:
    """Prune until nothing is left; return what each call removed. No payload is left behind, and none is missing."""
    removed: list[int] = []
    while not removed or removed[-1] > 0:
        row = connection.execute("select headrace.prune(%s)", [batch]).fetchone()
        assert row is not None
        removed.append(row[0])
    placed = "select count(*) from headrace.event where seq is not null"
    joined = "select count(*) from headrace.event join headrace.payload using (xid, seq)"
    payloads = connection.execute(f"select (select count(*) from headrace.payload), ({placed}), ({joined})".encode())
    (counted,) = payloads.fetchall()
    assert len(set(counted)) == 1
    return removed


def kept(connection: Connection, stream: str) -> list[int]:
    rows = connection.execute(
        "select e.id from headrace.kept_events() e where e.stream = %s order by 1",
        [stream],
    )
    return [id for (id,) in rows]


def mark(connection: Connection, stream: str) -> int:
    row = connection.execute(
        "select trimmed_to from headrace.read_after(array[%s], array[null::bigint], 1, 1)", [stream]
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_events_are_kept_for_five_minutes(connection: Connection) -> None:
    """Without rules events older than 5 minutes go, younger ones stay, and the mark is the last that went."""
    publish(connection, "s", 3, "301 seconds")
    publish(connection, "s", 2, "290 seconds")
    publish(connection, "young", 1)
    assert prune(connection) == [3, 0]
    assert kept(connection, "s") == [4, 5]
    assert (mark(connection, "s"), mark(connection, "young")) == (3, 0)


def test_batches_are_bounded_and_end(connection: Connection) -> None:
    """Each call removes at most a batch, lowest ids first; 0 means that nothing is left."""
    publish(connection, "a", 6, "1 hour")
    publish(connection, "b", 4, "1 hour")
    publish(connection, "c", 1)
    assert connection.execute("select headrace.prune(4)").fetchone() == (4,)
    assert kept(connection, "a") == list(range(mark(connection, "a") + 1, 7))
    assert kept(connection, "b") == list(range(mark(connection, "b") + 1, 5))
    assert prune(connection, 4) == [4, 2, 0]
    assert prune(connection, 4) == [0]
    assert [kept(connection, stream) for stream in "abc"] == [[], [], [1]]


def test_many_events_of_one_moment(connection: Connection) -> None:
    """Events with the same created_at, more of them than a slice, all go."""
    publish(connection, "s", 3000)
    connection.execute("update headrace.event set created_at = now() - interval '1 hour'")
    assert sum(prune(connection, 700)) == 3000


def test_later_events_go_when_their_time_comes(connection: Connection) -> None:
    """What a walk has left in place is removed by a later one, once it is old enough."""
    rule(connection, "*", "1 hour")
    publish(connection, "s", 2, "2 hours")
    publish(connection, "s", 2)
    assert prune(connection) == [2, 0]
    rule(connection, "*", "1 microsecond")
    assert prune(connection) == [2, 0]
    publish(connection, "s", 1)
    assert prune(connection) == [1, 0]
    assert mark(connection, "s") == 5


@pytest.mark.parametrize("batch", [1, 1000])
def test_the_longest_matching_pattern_wins(connection: Connection, batch: int) -> None:
    """Of several rules that match a stream only the one with the longest pattern applies."""
    rule(connection, "room:*", "1 day")
    rule(connection, "room:tmp*", "1 minute")
    for stream in ("room:1", "room:tmp", "hall"):
        publish(connection, stream, 1, "2 days")
        publish(connection, stream, 1, "1 hour")
        publish(connection, stream, 1, "2 minutes")
    assert sum(prune(connection, batch)) == 1 + 3 + 2
    assert (kept(connection, "room:1"), kept(connection, "room:tmp"), kept(connection, "hall")) == ([2, 3], [], [3])


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a?c", ["abc", "a?c", "a部c", "a\nc"], ["ac", "abbc", "Abc", "abc "]),
        ("a*c", ["ac", "abbc", "a*c", "a%c"], ["acd", "bac"]),
        ("50%_x", ["50%_x"], ["50ab_x", "50%ax"]),
        ("a\\*", ["a\\", "a\\b"], ["a*", "ab"]),
        ("[ab].c", ["[ab].c"], ["a.c", "b.c", "abc"]),
    ],
)
def test_patterns(connection: Connection, pattern: str, matching: list[str], others: list[str]) -> None:
    """In a pattern * is any text, ? any one character, and everything else is literal and exact."""
    rule(connection, "*", "1 day")
    rule(connection, pattern, "1 minute")
    for stream in matching + others:
        publish(connection, stream, 1, "1 hour")
    prune(connection)
    assert [stream for stream in matching + others if not kept(connection, stream)] == matching


def test_retention_by_count(connection: Connection) -> None:
    """With keep_count each stream keeps its newest events only, by number and not by arithmetic on ids."""
    rule(connection, "log:*", "1 day", 3)
    publish(connection, "log:1", 5)
    publish(connection, "log:2", 3)
    publish(connection, "other", 5)
    connection.execute("update headrace.stream set last_id = 1000 where name = 'log:1'")  # as after a jump
    publish(connection, "log:1", 1)
    assert prune(connection) == [3, 0]
    assert kept(connection, "log:1") == [4, 5, 1001]
    assert mark(connection, "log:1") == 3
    assert (kept(connection, "log:2"), len(kept(connection, "other"))) == ([1, 2, 3], 5)
    publish(connection, "log:2", 2)
    assert prune(connection, 1) == [1, 1, 0]
    assert kept(connection, "log:2") == [3, 4, 5]


def test_age_and_count_apply_together(connection: Connection) -> None:
    """A rule with both removes what is too old and what is too much."""
    rule(connection, "*", "1 hour", 3)
    publish(connection, "s", 2, "2 hours")
    publish(connection, "s", 2)
    publish(connection, "t", 5)
    assert sum(prune(connection)) == 2 + 2
    assert (kept(connection, "s"), kept(connection, "t")) == ([3, 4], [3, 4, 5])


def test_only_a_prefix_is_removed(connection: Connection) -> None:
    """A clock that was set back leaves an older date on a newer id: all before it go with it, none from the middle."""
    publish(connection, "s", 2, "1 minute")
    publish(connection, "s", 1, "1 hour")
    publish(connection, "s", 1, "1 minute")
    assert prune(connection, 2) == [2, 1, 0]
    assert (kept(connection, "s"), mark(connection, "s")) == ([4], 3)


def test_readers_see_events_and_mark_together(connection: Connection, other: Connection) -> None:
    """A snapshot has either the events or the mark that says they are gone."""
    publish(connection, "s", 2, "1 hour")
    sql = "select trimmed_to, id from headrace.read_after(array['s'], array[0], 10, 1000)"
    other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert other.execute(sql).fetchall() == [(0, 1), (0, 2)]
    prune(connection)
    assert other.execute(sql).fetchall() == [(0, 1), (0, 2)]
    other.rollback()
    assert other.execute(sql).fetchall() == [(2, None)]


def test_a_rule_applies_to_events_that_were_passed(connection: Connection) -> None:
    """A shorter, a removed or a new rule applies to events that earlier rules have examined and kept."""
    rule(connection, "a*", "1 day")
    publish(connection, "abc", 2, "1 hour")
    assert prune(connection) == [0]
    rule(connection, "abc", "30 minutes")
    publish(connection, "ab", 1, "1 hour")
    assert prune(connection) == [2, 0]
    rule(connection, "a*", None)
    assert prune(connection) == [1, 0]


def test_the_default_cannot_be_lost(connection: Connection) -> None:
    """Removing the rule `*` brings its 5 minutes back."""
    rule(connection, "*", "1 day")
    publish(connection, "s", 1, "1 hour")
    assert prune(connection) == [0]
    rule(connection, "*", None)
    assert prune(connection) == [1, 0]


def test_an_event_that_becomes_visible_late(connection: Connection, other: Connection) -> None:
    """An event whose transaction commits after walks have passed its time is removed without a later event."""
    rule(connection, "*", "1 microsecond")
    other.execute("select headrace.publish_now('s', 'late')")
    publish(connection, "t", 1)
    assert prune(connection) == [1, 0]
    assert prune(connection) == [0]
    other.commit()
    assert prune(connection) == [1, 0]
    assert mark(connection, "s") == 1


def test_one_session_prunes_at_a_time(connection: Connection, other: Connection) -> None:
    """While another session prunes, prune returns -1 at once."""
    publish(connection, "s", 1, "1 hour")
    assert other.execute("select headrace.prune(1)").fetchone() == (1,)
    assert connection.execute("select headrace.prune(1)").fetchone() == (-1,)
    other.commit()
    assert connection.execute("select headrace.prune(1)").fetchone() == (0,)


def test_publishing_does_not_wait_for_pruning(connection: Connection, other: Connection) -> None:
    """A batch that has not committed holds up no publisher, to the same stream either."""
    publish(connection, "s", 2, "1 hour")
    assert other.execute("select headrace.prune(1)").fetchone() == (1,)
    connection.execute("set lock_timeout = '10s'")
    connection.execute("select headrace.publish('s', 'x')")
    connection.execute("select headrace.publish_now('new', 'x')")
    other.commit()
    assert kept(connection, "s") == [2, 3]


def test_events_without_an_id_are_not_removed(connection: Connection, other: Connection) -> None:
    """However old a payload is, its event is kept from the moment at which it gets its id."""
    rule(connection, "*", "1 microsecond")
    assert other.execute("select headrace.take_office()").fetchone() == (True,)
    other.commit()
    connection.execute("select headrace.publish('s', 'waits')")
    assert connection.execute("select headrace.prune(10)").fetchone() == (0,)
    assert connection.execute("select data from headrace.payload").fetchall() == [("waits",)]
    assert connection.execute("select transactions from headrace.sequence()").fetchone() == (1,)
    assert prune(connection) == [1, 0]
    assert mark(connection, "s") == 1


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_payloads_of_either_kind_go_with_their_events(connection: Connection, batch: int) -> None:
    """Those in tables of their own and those in the events' rows, of one stream and of several."""
    for _ in range(3):
        publish(connection, "s", 2, "1 hour")
        connection.execute("select headrace.publish_many_now(array['s', 't'], array['now', 'now'])")
        publish(connection, "t", 1, "1 hour")
    connection.execute("update headrace.event set created_at = now() - interval '1 hour'")
    publish(connection, "t", 1)
    assert sum(prune(connection, batch)) == 15
    assert (kept(connection, "s"), kept(connection, "t")) == ([], [7])


def test_a_walk_examines_events_once(connection: Connection, database_url: str) -> None:
    """Events that another rule keeps are not read again by each call."""
    rule(connection, "kept", "1 day")
    publish(connection, "kept", 5000, "1 hour")
    assert [prune(connection), prune(connection)] == [[0], [0]]  # the first cannot know what is still to come
    with psycopg.connect(database_url) as fresh:
        fresh.execute("select headrace.prune(1000)")
        row = fresh.execute(
            "select pg_stat_get_xact_tuples_returned(indexrelid) from pg_index"
            " where indexrelid = 'headrace.event_created_at'::regclass"
        ).fetchone()
    assert row is not None
    assert row[0] < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("null, interval '1 day'", "pattern"),
        ("'', interval '1 day'", "pattern"),
        ("'*', interval '0'", "more than nothing"),
        ("'*', interval '-1 day'", "more than nothing"),
        ("'*', interval '101 years'", "at most 100 years"),
        ("'*', interval '1 day', 0", "at least 1 event"),
        ("'a', null, 5", "needs a keep"),
    ],
)
def test_refused_rules(connection: Connection, arguments: str, message: str) -> None:
    """Rules that make no sense are refused with error 22023."""
    with pytest.raises(errors.InvalidParameterValue, match=message):
        connection.execute(f"select headrace.set_retention({arguments})".encode())


def test_refused_batches(connection: Connection) -> None:
    """A batch of no events is refused: a loop with it would never end."""
    with pytest.raises(errors.InvalidParameterValue, match="at least 1 event"):
        connection.execute("select headrace.prune(0)")
