"""headrace.read_after: what shards are told of streams, and what it costs."""

from typing import Any

import psycopg

from tests.fixtures.postgres import Connection
from tests.fixtures.read_after import read_after

GREATEST = 2**63 - 1


def test_read_after_answers_each_question_in_order(connection: Connection) -> None:
    """One row at least per question, in its order: events, a head alone for null, zeros for unknown streams."""
    connection.execute("select headrace.publish_many(array['a', 'b', 'a'], array['1', 'x', '2'])")
    connection.execute("select headrace.publish('a', '3', 'tick', 'staff')")
    rows = read_after(connection, [("b", 0), ("none", 0), ("a", 1), ("a", None), ("a", 3), ("a", 99)])
    assert [(row["ordinal"], row["head"], row["id"], row["data"]) for row in rows] == [
        (1, 1, 1, "x"),
        (2, 0, None, None),
        (3, 3, 2, "2"),
        (3, 3, 3, "3"),
        (4, 3, None, None),
        (5, 3, None, None),
        (6, 3, None, None),
    ]
    assert (rows[3]["type"], rows[3]["visible_to"]) == ("tick", "staff")
    assert (rows[2]["type"], rows[2]["visible_to"]) == (None, None)
    assert rows[2]["created_at"] is not None
    assert {row["jumps"] for row in rows} == {None}
    assert {row["trimmed_to"] for row in rows} == {0}


def expected(connection: Connection, stream: str, after: int, events: int, size: int) -> dict[str, Any]:
    """What the tables themselves say of a stream after an id."""
    row = connection.execute(
        "select s.stream_id, s.last_id, coalesce(t.trimmed_to, 0) from headrace.stream s"
        " left join headrace.trimmed t using (stream_id) where s.name = %s",
        [stream],
    ).fetchone()
    assert row is not None
    stream_id, head, trimmed_to = row
    jumps = connection.execute(
        "select from_id, to_id from headrace.jump where stream_id = %s and to_id > %s order by to_id",
        [stream_id, after],
    ).fetchall()
    page: list[tuple[int | None, ...]] = []
    total = 0
    for id_, seq, data, length in connection.execute(
        "select k.id, e.seq, k.data, octet_length(k.data)"
        " from headrace.kept_events() k join headrace.event e using (stream_id, id)"
        " where k.stream_id = %s and k.id > %s order by k.id",
        [stream_id, max(after, trimmed_to)],
    ).fetchall():
        total += length
        if len(page) == events or (page and total > size):
            break
        page.append((id_, seq, data))
    bounds = [bound for jump in jumps for bound in jump] or None
    return {"head": head, "trimmed_to": trimmed_to, "jumps": bounds, "page": page or [(None, None, None)]}


def read_older(connection: Connection, asked: list[tuple[str, int]], *bounds: int) -> list[dict[str, Any]]:
    """The rows of headrace.read_after, by the function that takes so many bounds."""
    cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
    cursor.execute(
        f"select * from headrace.read_after(%s, %s::bigint[], {', '.join(map(str, bounds))})".encode(),
        [[name for name, _ in asked], [after for _, after in asked]],
    )
    return cursor.fetchall()


def test_read_after_tells_what_the_tables_say(connection: Connection) -> None:
    """Of streams with jumps, marks and holes, from every id in and around them, alone and all in one question.

    Some of the events have their payloads in their own rows. Functions of older shards tell the same, in their shapes.
    """
    connection.execute("select headrace.publish(s, repeat('x', 10)) from unnest(array['a','b','c','d','e']) s")
    connection.execute("delete from headrace.stream where name in ('b', 'c')")  # made again, they begin with a jump
    connection.execute("select headrace.publish_many(array['b','c','c','a','e'], array['x','y','z','w','v'])")
    connection.execute("update headrace.stream set timeline = timeline - 1 where name in ('a', 'c')")
    connection.execute("select headrace.publish(s, 'after a fail-over') from unnest(array['a','c','c']) s")
    connection.execute("select headrace.publish_many_now(array['a','d','c'], array['at','once','é'])")
    connection.execute("select headrace.publish('c', 'last')")
    seqs = "select count(*) filter (where seq is null), count(*) filter (where seq is not null) from headrace.event"
    assert connection.execute(seqs.encode()).fetchone() == (3, 12)
    connection.execute(
        "insert into headrace.trimmed select stream_id, case name when 'd' then 1 else last_id - 1 end"
        " from headrace.stream where name in ('c', 'd')"
    )
    connection.execute(
        "delete from headrace.event e using headrace.trimmed t"  # of d the event is there still
        " where t.stream_id = e.stream_id and e.id <= t.trimmed_to and t.trimmed_to > 1"
    )
    edges: set[int] = {0, GREATEST}
    for table in ("jump, unnest(array[from_id, to_id]) id", "event", "trimmed, unnest(array[trimmed_to]) id"):
        for (id_,) in connection.execute(f"select id from headrace.{table}".encode()):
            edges |= {id_ - 1, id_, id_ + 1}
    questions = [(stream, after) for stream in "abcde" for after in sorted(edges)]
    assert len(questions) >= 60
    for events, size in ((100, 1 << 20), (1, 1 << 20), (100, 12)):
        rows = read_after(connection, questions, events, size)  # type: ignore[arg-type]
        alone = [row for question in questions for row in read_after(connection, [question], events, size)]
        assert [row | {"ordinal": 0} for row in rows] == [row | {"ordinal": 0} for row in alone]
        for place, (stream, after) in enumerate(questions, 1):
            mine = [row for row in rows if row["ordinal"] == place]
            found = {key: mine[0][key] for key in ("head", "trimmed_to", "jumps")} | {
                "page": [(row["id"], row["seq"], row["data"]) for row in mine]
            }
            assert found == expected(connection, stream, after, events, size), (stream, after)
        for bounds in ([events, size], [events, size, 1 << 60]):
            older = read_older(connection, questions, *bounds)
            assert older == [{name: row[name] for name in older[0]} for row in rows]


def test_read_after_is_bounded(connection: Connection) -> None:
    """Per stream at most max_events and max_bytes are returned, but always the first event."""
    connection.execute("select headrace.publish('s', repeat('é', 5)) from generate_series(1, 9)")
    assert [row["id"] for row in read_after(connection, [("s", 2)], events=3)] == [3, 4, 5]
    assert [row["id"] for row in read_after(connection, [("s", 2)], size=29)] == [3, 4]
    assert [row["id"] for row in read_after(connection, [("s", 2)], size=30)] == [3, 4, 5]
    assert [row["id"] for row in read_after(connection, [("s", 2)], size=1)] == [3]


def test_read_after_returns_no_event_where_none_is_asked_for(connection: Connection) -> None:
    """A page of no events has none, also where there is one alone."""
    connection.execute("select headrace.publish('s', 'x')")
    (row,) = read_after(connection, [("s", 0)], events=0)
    assert (row["head"], row["id"]) == (1, None)


def test_read_after_looks_for_jumps_once_a_stream(database_url: str, connection: Connection) -> None:
    """However many events a stream's page has, and not at all where the next id is the head."""
    connection.execute(
        "select headrace.publish_many(array_agg('s' || i % 3), array_agg('x'::text)) from generate_series(1, 30) i"
    )
    for after, searches in ((0, 3), (9, 0), (10, 0)):
        with psycopg.connect(database_url) as reader:
            assert len(read_after(reader, [(f"s{i}", after) for i in range(3)])) == max(3, 3 * (10 - after))
            row = reader.execute(
                "select coalesce(seq_scan, 0) + coalesce(idx_scan, 0) from pg_stat_xact_all_tables"
                " where relid = 'headrace.jump'::regclass"
            ).fetchone()
            assert row == (searches,)


def test_read_after_reads_no_more_than_it_returns(database_url: str, connection: Connection) -> None:
    """In a stream of 20,000 events a page of 10 reads 10 places and 10 payloads; each stream is probed by its name."""
    connection.execute("select headrace.publish('s', 'x') from generate_series(1, 20000)")
    connection.execute("select headrace.publish('s' || i, 'x') from generate_series(1, 2000) i")

    def rows_read(reader: Connection) -> int:
        """Since the session began: what a transaction has counted stays in these figures for a while after it."""
        row = reader.execute(
            "select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))"
            " from pg_stat_xact_all_tables where schemaname = 'headrace'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    with psycopg.connect(database_url) as reader:
        assert len(read_after(reader, [("s", 10_000)], events=10)) == 10
        assert rows_read(reader) <= 2 * 10 + 2
    with psycopg.connect(database_url) as reader:
        assert len(read_after(reader, [(f"s{i}", 0) for i in range(1, 101)], events=10)) == 100
        assert rows_read(reader) <= 100 * 4
