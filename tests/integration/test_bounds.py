"""What a shard's read brings at most, and what is known of the events that retention has removed."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from headrace.shard.messages import Page
from headrace.shard.postgres import sql_functions
from tests.fixtures.postgres import Connection


@pytest.fixture
def read(connection: Connection) -> Callable[..., dict[str, Page]]:
    """Reads the pages of streams after ids, within a number of bytes."""

    def read(total: int = 1 << 20, **after: int | None) -> dict[str, Page]:
        pages, _, _ = sql_functions.read_pages(connection, list(after), list(after.values()), 100, 1 << 20, total)
        return dict(zip(after, pages, strict=True))

    return read


def publish(connection: Connection, stream: str, *labels: str | None, size: int = 1) -> None:
    """Publish one event for each label; every third has its payload in its own row."""
    for number, label in enumerate(labels):
        function = "publish_now" if number % 3 == 2 else "publish"
        statement = f"select headrace.{function}(%s, %s, visible_to => %s)"
        connection.execute(statement.encode(), [stream, "x" * size, label])


def trim(connection: Connection, stream: str, keep: int) -> None:
    connection.execute("select headrace.set_retention(%s, '1 day', %s)", [stream, keep])
    removed = 1
    while removed > 0:
        ((removed,),) = connection.execute("select headrace.prune(1000)").fetchall()


def test_a_read_of_many_streams_is_bounded(connection: Connection, read: Callable[..., dict[str, Page]]) -> None:
    """All pages together have no more bytes than are asked for; a stream beyond is told of, but not read."""
    for name in "abcdef":
        publish(connection, name, None, None, size=1000)
    pages = read(4000, a=0, b=None, c=2, d=0, e=0, f=1)
    assert [len(page.frames) for page in pages.values()] == [2, 0, 0, 1, 0, 0]
    assert [name for name, page in pages.items() if page.unread] == ["e", "f"]
    assert {page.head for page in pages.values()} == {2}
    assert [frame.id for frame in read(4000, e=0, f=1)["f"].frames] == [2]


def test_the_first_event_counts_for_nothing(connection: Connection, read: Callable[..., dict[str, Page]]) -> None:
    """However little room there is, a read brings one event if there is one, so that reading goes on."""
    publish(connection, "large", None, None, size=5000)
    publish(connection, "small", None)
    pages = read(1, none=0, large=0, small=0)
    assert [len(page.frames) for page in pages.values()] == [0, 1, 0]
    assert [page.unread for page in pages.values()] == [False, False, True]


def test_many_small_events_count_as_well(connection: Connection, read: Callable[..., dict[str, Page]]) -> None:
    """An event costs memory beside its data, so a read has a bounded number of them, too."""
    for name in "ab":
        publish(connection, name, *[None] * 40)
    pages = read(257 * 50, a=0, b=0)
    assert [len(page.frames) for page in pages.values()] == [40, 10]
    assert not pages["b"].unread


def test_the_audiences_of_what_was_removed(connection: Connection, read: Callable[..., dict[str, Page]]) -> None:
    """Of each audience the newest removed event is known, and from that who missed something above an id."""
    publish(connection, "s", None, "staff", "ops", "staff", None, "staff", "ops")
    trim(connection, "s", 1)
    (page,) = read(s=1).values()
    assert (page.trimmed_to, dict(page.removed)) == (6, {"": 5, "staff": 6, "ops": 3})
    assert page.missed_by(1) == {"", "staff", "ops"}
    assert page.missed_by(4) == {"", "staff"}
    assert page.missed_by(5) == {"staff"}
    assert dict(read(s=5)["s"].removed) == {"staff": 6}
    assert read(s=6)["s"].removed == () == read(s=None)["s"].removed


def test_what_was_removed_before_is_everybodys(connection: Connection, read: Callable[..., dict[str, Page]]) -> None:
    """A stream without audiences has no marks; its first ones leave what was removed before to everybody."""
    publish(connection, "s", None, None, None)
    trim(connection, "s", 1)
    page = read(s=0)["s"]
    assert (page.removed, page.missed_by(0)) == ((), {""})
    assert connection.execute("select count(*) from headrace.removed").fetchone() == (0,)
    publish(connection, "s", "staff", "staff")
    trim(connection, "s", 1)
    assert dict(read(s=0)["s"].removed) == {"": 3, "staff": 4}
    publish(connection, "s", None, None)
    trim(connection, "s", 1)
    assert dict(read(s=0)["s"].removed) == {"": 6, "staff": 5}


def test_marks_are_bounded(connection: Connection, read: Callable[..., dict[str, Page]]) -> None:
    """Beyond 64 audiences the oldest marks are everybody's: then somebody may be told of a gap who missed nothing."""
    publish(connection, "s", *(f"user:{number}" for number in range(1, 101)), None)
    trim(connection, "s", 1)
    removed = dict(read(s=0)["s"].removed)
    assert removed == {"": 36} | {f"user:{number}": number for number in range(37, 101)}


def test_marks_go_with_their_stream(connection: Connection) -> None:
    """A removed stream leaves nothing behind, nor do all streams that are truncated."""
    for name in "ab":
        publish(connection, name, "staff", "staff")
    trim(connection, "*", 1)

    def marks() -> list[Any]:
        return connection.execute(
            "select distinct s.name from headrace.removed r left join headrace.stream s using (stream_id)"
        ).fetchall()

    assert sorted(marks()) == [("a",), ("b",)]
    connection.execute("delete from headrace.stream where name = 'a'")
    assert marks() == [("b",)]
    connection.execute("truncate headrace.stream")
    assert marks() == []
    assert connection.execute("select count(*) from headrace.payload").fetchone() == (0,)


def test_older_shards_read_as_before(connection: Connection) -> None:
    """The function that shards of older releases call is there, and answers in the old shape."""
    publish(connection, "s", None)
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        (row,) = cursor.execute("select * from headrace.read_after(array['s'], array[0], 10, 1000)").fetchall()
    assert (row["head"], row["id"], "unread" in row) == (1, 1, False)
