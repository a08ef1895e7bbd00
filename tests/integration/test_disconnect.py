"""Disconnecting: what `headrace.disconnect` leaves in PostgreSQL for the shards to read, and when."""

import threading
import time
from typing import Any

import psycopg
import pytest

import headrace
from headrace.errors import StreamNameError, UsageError
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.sql_functions import FIRST_FLOOR, Revocation
from tests.fixtures.waiting import DEADLINE_S, wait_until, wait_until_blocked


@pytest.fixture
def reader(database_url: str) -> Any:
    with psycopg.connect(database_url, autocommit=True) as made:
        yield made


def read(reader: Any, floor: str = FIRST_FLOOR) -> list[Revocation]:
    return sql_functions.read_revocations(reader, floor)[1]


def now_ms(reader: Any) -> float:
    """PostgreSQL's clock."""
    (value,) = reader.execute("select extract(epoch from clock_timestamp())::float8 * 1000").fetchone()
    return float(value)


def test_it_happens_with_the_transaction(database_url: str, reader: Any) -> None:
    """Committed it counts, rolled back it never was, also back to a savepoint."""
    with psycopg.connect(database_url) as connection:
        headrace.disconnect(connection, user="ada")
        assert read(reader) == []
        connection.rollback()
        headrace.disconnect(connection, user="bob", reason="signed out")
        with connection.transaction() as savepoint:
            headrace.disconnect(connection, stream="room:1")
            raise psycopg.Rollback(savepoint)
        connection.commit()
    (found,) = read(reader)
    assert (found.user, found.stream, found.reason) == ("bob", None, "signed out")


def test_the_time_is_that_of_the_commit(database_url: str, reader: Any) -> None:
    """Tokens that are signed while the transaction is still open are refused; one signed after it is not."""
    with psycopg.connect(database_url) as connection:
        headrace.disconnect(connection, user="ada")
        meanwhile = int(now_ms(reader))
        time.sleep(0.05)  # the transaction is open for a while; nothing is waited for
        before = int(now_ms(reader))
        connection.commit()
        after = int(now_ms(reader))
    (found,) = read(reader)
    assert meanwhile < before <= found.issued_to_ms <= after


def test_the_time_is_taken_after_all_waiting(database_url: str, reader: Any) -> None:
    """A transaction that waits for a stream when it commits is dated when it has it: tokens are signed meanwhile."""
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url) as waiting:
        headrace.publish_now(holder, "s", "1")
        headrace.disconnect(waiting, user="ada")
        headrace.publish(waiting, "s", "2")
        thread = threading.Thread(target=waiting.commit)
        thread.start()
        wait_until_blocked(reader, waiting.info.backend_pid)
        meanwhile = now_ms(reader)
        holder.commit()
        thread.join(DEADLINE_S)
    (found,) = read(reader)
    assert found.issued_to_ms >= int(meanwhile)


def test_a_replication_worker_dates_it_too(superuser: Any) -> None:
    """A session that fires no ordinary triggers disconnects like any other."""
    reader = superuser
    reader.autocommit = True
    reader.execute("set session_replication_role = replica")
    before = int(now_ms(reader))
    headrace.disconnect(reader, user="ada")
    (found,) = read(reader)
    assert found.issued_to_ms >= before


def test_skew_moves_it(database_url: str, reader: Any) -> None:
    """Tokens issued up to the skew afterwards are refused as well."""
    with psycopg.connect(database_url) as connection:
        headrace.disconnect(connection, user="ada", skew_s=2.5)
        before = now_ms(reader)
    (found,) = read(reader)
    assert int(before) + 2500 <= found.issued_to_ms <= now_ms(reader) + 2500


def test_no_row_is_missed_by_the_order_of_commits(database_url: str, reader: Any) -> None:
    """A row of a transaction that began early and commits late is read, though later ones were read before."""
    with psycopg.connect(database_url) as early, psycopg.connect(database_url) as late:
        headrace.disconnect(early, user="early")
        headrace.disconnect(late, user="late")
        late.commit()
        floor, found = sql_functions.read_revocations(reader, FIRST_FLOOR)
        assert [item.user for item in found] == ["late"]
        floor, found = sql_functions.read_revocations(reader, floor)
        early.commit()
        floor, found = sql_functions.read_revocations(reader, floor)
        assert "early" in [item.user for item in found]

    def over() -> bool:
        nonlocal floor
        floor, found = sql_functions.read_revocations(reader, floor)
        return not found

    # A transaction of anybody, also of PostgreSQL's own housekeeping, that began before is waited for.
    wait_until(over, "they are read no more")


def test_opposite_orders_do_not_deadlock(database_url: str, reader: Any) -> None:
    """Two transactions that publish and disconnect the same in opposite orders both commit."""
    with psycopg.connect(database_url) as one, psycopg.connect(database_url) as two:
        headrace.publish(one, "s", "1")
        headrace.disconnect(two, user="ada")
        headrace.disconnect(one, user="ada")
        headrace.publish(two, "s", "2")
        one.commit()
        two.commit()
    assert [item.user for item in read(reader)] == ["ada", "ada"]


def test_a_publisher_may_disconnect_and_read_nothing(database_url: str, reader: Any) -> None:
    """The role of applications has the function, not the table nor what shards use."""
    reader.execute("set role headrace_publisher")
    headrace.disconnect(reader, stream="room:1")
    for statement in (
        "select * from headrace.revocation",
        "select headrace.read_revocations('0'::xid8)",
        "select headrace.forget_revocations(null)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(statement)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, UsageError),
        ({"user": "a", "stream": "s"}, UsageError),
        ({"user": "a\0"}, UsageError),
        ({"user": "\ud800"}, UsageError),
        ({"user": "a" * 16385}, UsageError),
        ({"stream": ""}, StreamNameError),
        ({"user": "a", "reason": ""}, UsageError),
        ({"user": "a", "reason": "r" * 513}, UsageError),
        ({"user": "a", "skew_s": -1}, UsageError),
        ({"user": "a", "skew_s": float("nan")}, UsageError),
    ],
)
def test_what_is_not_allowed_is_refused_before_it_is_sent(
    reader: Any, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A wrong argument raises and leaves the transaction usable."""
    with reader.transaction():
        with pytest.raises(error):
            headrace.disconnect(reader, **arguments)
        assert reader.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "arguments",
    ["", "null, null", "'a', 's'", "stream => ''", "'a', reason => null", "'a', skew => null", "'a', skew => '-1s'"],
)
def test_sql_refuses_the_same(reader: Any, arguments: str) -> None:
    """From SQL, too, nothing senseless gets into the table."""
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        reader.execute(f"select headrace.disconnect({arguments})")
    assert read(reader) == []


def test_a_user_is_text_as_in_the_token(reader: Any) -> None:
    """A user that is a number is the one that `sign` put into the token."""
    headrace.disconnect(reader, user=7)
    headrace.disconnect(reader, user="")
    assert [item.user for item in read(reader)] == ["7", ""]


def test_what_can_no_longer_matter_is_forgotten(reader: Any) -> None:
    """A user's older rows go, a stream's after an hour, and a user's last only when no token can live so long."""
    for _ in range(3):
        headrace.disconnect(reader, user="ada", reason="first")
    headrace.disconnect(reader, user="ada", reason="last")
    headrace.disconnect(reader, user="bob")
    headrace.disconnect(reader, stream="room:1")
    sql_functions.forget_revocations(reader, 0)
    assert [item.reason for item in read(reader) if item.user == "ada"] == ["last"]
    assert len(read(reader)) == 3
    reader.execute("update headrace.revocation set issued_to_ms = issued_to_ms - 3601000")
    sql_functions.forget_revocations(reader, 0)
    assert [item.user for item in read(reader)] == ["ada", "bob"]
    sql_functions.forget_revocations(reader, 60)
    assert [item.user for item in read(reader)] == ["ada", "bob"]
    sql_functions.forget_revocations(reader, 0.5)
    assert read(reader) == []
