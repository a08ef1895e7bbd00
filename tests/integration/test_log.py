"""The log's promises, with real and forced concurrency: order, gaps, locks, cost, names, notifications, rights."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from headrace.stream import slot
from tests.fixtures.postgres import Connect, Connection
from tests.fixtures.read_after import read_after, value
from tests.fixtures.waiting import DEADLINE_S, wait_until_blocked


@pytest.fixture
def observer(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def publish(connection: Connection, stream: str, data: str) -> None:
    connection.execute("select headrace.publish(%s, %s)", [stream, data])


def publish_now(connection: Connection, stream: str, data: str) -> int:
    return int(value(connection, "select headrace.publish_now(%s, %s)", stream, data))


def log(connection: Connection, stream: str) -> list[tuple[int, str]]:
    """Every event of a stream, (id, data), in the order of the ids."""
    return connection.execute(
        "select e.id, e.data from headrace.kept_events() e join headrace.stream s using (stream_id)"
        " where s.name = %s order by e.id",
        [stream],
    ).fetchall()


# Order and gaps


def test_ids_follow_the_order_of_commits(connect: Connect, observer: Connection) -> None:
    """Two transactions that commit in the opposite order of their publishing get ids in the order of commit."""
    first, second = connect(), connect()
    publish(first, "s", "first")
    publish(second, "s", "second")
    second.commit()
    assert log(observer, "s") == [(1, "second")]
    first.commit()
    assert log(observer, "s") == [(1, "second"), (2, "first")]


def test_rollbacks_leave_no_gap(connect: Connect, observer: Connection) -> None:
    """Rolled back transactions and savepoints take their events with them and leave no hole in the ids."""
    connection = connect()
    publish(connection, "s", "rolled back")
    connection.rollback()
    with connection.transaction():
        with connection.transaction(force_rollback=True):
            publish(connection, "s", "first of the transaction, rolled back to a savepoint")
        publish(connection, "s", "a")
        with connection.transaction(force_rollback=True):
            publish(connection, "s", "later one, rolled back to a savepoint")
        with connection.transaction():
            publish(connection, "s", "b")
    with connection.transaction(force_rollback=True):
        publish_now(connection, "s", "numbered and rolled back")
    publish(connection, "s", "c")
    connection.commit()
    assert log(observer, "s") == [(1, "a"), (2, "b"), (3, "c")]
    assert value(observer, "select count(*) from headrace.payload") == 3
    assert value(observer, "select count(*) from headrace.turn") == 0


def test_one_transaction_keeps_its_own_order(connect: Connect, observer: Connection) -> None:
    """Events of one transaction keep the order in which it published them, also from publish_many."""
    connection = connect()
    publish(connection, "s", "1")
    connection.execute("select headrace.publish_many(array['s', 't', 's'], array['2', 'x', '3'])")
    publish(connection, "s", "4")
    connection.commit()
    assert log(observer, "s") == [(1, "1"), (2, "2"), (3, "3"), (4, "4")]
    assert log(observer, "t") == [(1, "x")]


def test_clashing_transactions_do_not_deadlock(connect: Connect, observer: Connection) -> None:
    """Transactions that publish to (a, b) and to (b, a) at once both commit."""
    blocker, first, second = connect(), connect(), connect()
    publish_now(blocker, "a", "0")  # holds a: both others reach their locks, and meet, at commit
    for connection, order in ((first, "ab"), (second, "ba")):
        for stream in order:
            publish(connection, stream, "x")
    threads = [threading.Thread(target=connection.commit) for connection in (first, second)]
    for thread, connection in zip(threads, (first, second), strict=True):
        thread.start()
        wait_until_blocked(observer, connection.info.backend_pid)
    blocker.commit()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [id for id, _ in log(observer, "a")] == [1, 2, 3]
    assert [id for id, _ in log(observer, "b")] == [1, 2]


def test_an_open_transaction_holds_up_nobody(connect: Connect, observer: Connection) -> None:
    """While a transaction that has published stays open, others publish to the same stream."""
    sleeper, other = connect(), connect()
    publish(sleeper, "s", "late")
    other.execute("set lock_timeout = '10s'")
    publish(other, "s", "early")
    other.commit()
    sleeper.commit()
    assert log(observer, "s") == [(1, "early"), (2, "late")]


def test_two_creators_of_one_stream(connect: Connect, observer: Connection) -> None:
    """Two transactions that create the same stream at once share it; if the first fails, the second starts at 1."""
    for stream, end in (("kept", "commit"), ("dropped", "rollback")):
        first, second = connect(), connect()
        publish_now(first, stream, "first")
        publish(second, stream, "second")
        thread = threading.Thread(target=second.commit)
        thread.start()
        wait_until_blocked(observer, second.info.backend_pid)
        getattr(first, end)()
        thread.join(DEADLINE_S)
    assert log(observer, "kept") == [(1, "first"), (2, "second")]
    assert log(observer, "dropped") == [(1, "second")]


def test_a_reader_that_follows_ids_loses_nothing(database_url: str) -> None:
    """Six writers with pauses, savepoints, rollbacks and several streams: a reader gets each event once, in order."""
    stop_at = time.monotonic() + 3
    streams = ["a", "b", "c"]
    committed: dict[str, list[str]] = defaultdict(list)
    faults: list[BaseException] = []

    def write(number: int) -> None:
        chance = random.Random(number)
        with psycopg.connect(database_url) as connection:
            count = 0
            while time.monotonic() < stop_at or sum(map(len, committed.values())) < 300:
                sent: list[tuple[str, str]] = []
                for stream in chance.sample(streams, chance.randint(1, 3)):
                    count += 1
                    publish(connection, stream, f"{number}:{count}")
                    sent.append((stream, f"{number}:{count}"))
                    time.sleep(chance.choice([0, 0, 0.002]))
                if chance.random() < 0.2:
                    with connection.transaction(force_rollback=True):
                        publish(connection, "a", "never")
                if chance.random() < 0.2:
                    connection.rollback()
                    continue
                connection.commit()
                for stream, data in sent:
                    committed[stream].append(data)

    def guarded(number: int) -> None:
        try:
            write(number)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=guarded, args=[number]) for number in range(6)]
    seen: dict[str, list[str]] = {stream: [] for stream in streams}
    with psycopg.connect(database_url, autocommit=True) as reader:
        for thread in threads:
            thread.start()
        last_round = False
        while not last_round:
            last_round = not any(thread.is_alive() for thread in threads)
            for row in read_after(reader, [(stream, len(seen[stream])) for stream in streams]):
                if row["id"] is not None:
                    stream = streams[row["ordinal"] - 1]
                    seen[stream].append(row["data"])
                    assert row["id"] == len(seen[stream]), "ids without gaps, in order"
    assert not faults
    assert sum(map(len, seen.values())) > 100
    for stream in streams:
        # The last page above may have been cut.
        with psycopg.connect(database_url) as connection:
            rest = log(connection, stream)[len(seen[stream]) :]
        assert sorted(seen[stream] + [data for _, data in rest]) == sorted(committed[stream])


# Exceptions to numbering at commit


def test_constraints_set_immediate(connect: Connect, observer: Connection) -> None:
    """SET CONSTRAINTS ALL IMMEDIATE, before or after publishing, numbers at once and loses nothing."""
    connection = connect()
    publish(connection, "s", "before")
    connection.execute("set constraints all immediate")
    assert value(connection, "select headrace.head('s')") == 1
    publish(connection, "s", "after")
    connection.execute("select headrace.publish_many(array['s', 's'], array['many', 'more'])")
    assert value(connection, "select headrace.head('s')") == 4
    connection.execute("set constraints all deferred")
    publish(connection, "s", "deferred again")
    assert value(connection, "select headrace.head('s')") == 4
    connection.commit()
    assert [data for _, data in log(observer, "s")] == ["before", "after", "many", "more", "deferred again"]


def test_publishing_from_a_trigger_at_commit(connect: Connect, observer: Connection) -> None:
    """A deferred trigger of the application may publish at commit, after headrace's own trigger has run."""
    connection = connect()
    connection.execute("create table orders (id int)")
    connection.execute(
        "create function told() returns trigger language plpgsql as"
        " $$ begin perform headrace.publish('orders', new.id::text); return null; end $$"
    )
    connection.execute(
        "create constraint trigger told after insert on orders deferrable initially deferred"
        " for each row execute function told()"
    )
    connection.commit()
    publish(connection, "orders", "first")
    connection.execute("insert into orders values (7), (8)")
    connection.commit()
    assert log(observer, "orders") == [(1, "first"), (2, "7"), (3, "8")]


def test_publishing_where_ordinary_triggers_do_not_fire(superuser: Connection, observer: Connection) -> None:
    """A logical replication worker's session (session_replication_role = replica) publishes like any other."""
    connection = superuser
    connection.execute("set session_replication_role = replica")
    publish(connection, "s", "x")
    connection.commit()
    assert log(observer, "s") == [(1, "x")]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_an_old_snapshot_is_no_conflict(
    connect: Connect, observer: Connection, level: psycopg.IsolationLevel, exists: bool
) -> None:
    """Above READ COMMITTED a stream numbered by another since the snapshot is no failure: the next round numbers."""
    first, second = connect(), connect()
    if exists:
        publish(second, "s", "0")
        second.commit()
    first.isolation_level = level
    first.execute("select 1 from headrace.stream")
    publish(second, "s", "1")
    second.commit()
    publish(first, "s", "2")
    first.commit()
    head = 2 if exists else 1
    assert value(observer, "select headrace.head('s')") == head
    assert value(observer, "select transactions from headrace.sequence()") == 1
    assert log(observer, "s")[-2:] == [(head, "1"), (head + 1, "2")]


def test_prepared_transactions_are_refused(connect: Connect, observer: Connection) -> None:
    """Where nobody numbers for all, PREPARE TRANSACTION after publishing fails with PostgreSQL's error about NOTIFY."""
    connection = connect()
    publish(connection, "s", "x")
    with pytest.raises(errors.FeatureNotSupported, match="NOTIFY"):
        connection.execute("prepare transaction 'two-phase'")
    connection.rollback()
    assert log(observer, "s") == []


def test_a_durable_commit_is_asked_for(connect: Connect) -> None:
    """Publishing raises synchronous_commit from off to local for its transaction, and lowers no other value."""
    connection = connect()
    for before, after in (("off", "local"), ("local", "local"), ("on", "on"), ("remote_apply", "remote_apply")):
        connection.execute("select set_config('synchronous_commit', %s, false)", [before])
        connection.commit()
        publish(connection, "s", "x")
        connection.execute("set constraints all immediate")
        assert value(connection, "show synchronous_commit") == after
        connection.rollback()
        publish_now(connection, "s", "x")
        assert value(connection, "show synchronous_commit") == after
        connection.rollback()
        assert value(connection, "show synchronous_commit") == before


# Cost


def rows_read(connection: Connection, table: str) -> int:
    """Rows of the table that this transaction has read, by any kind of scan."""
    return int(
        value(
            connection,
            "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_all_tables"
            " where relid = %s::regclass",
            table,
        )
    )


@pytest.mark.parametrize("streams", [1, 5000])
@pytest.mark.parametrize("immediate", [False, True])
def test_many_publishes_in_one_transaction_are_linear(connect: Connect, streams: int, immediate: bool) -> None:
    """5,000 publishes in one transaction read a few rows of payloads each, be it to one stream or to 5,000.

    The server's own count of rows is exact where a clock is not, and the square of 5,000 stands out in it.
    """
    connection = connect()
    if immediate:
        connection.execute("set constraints all immediate")
    connection.execute("select headrace.publish('s' || i %% %s, 'x') from generate_series(1, 5000) i", [streams])
    connection.execute("set constraints all immediate")
    assert 5000 <= rows_read(connection, "headrace.payload") <= 4 * 5000
    assert rows_read(connection, "headrace.turn") == 0
    assert value(connection, "select count(*) from headrace.event") == 5000


@pytest.mark.parametrize("streams", [1, 2500])
@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_many_publishes_that_leave_turns_are_linear(connect: Connect, level: str, streams: int) -> None:
    """Where another numbers, 5,000 publishes read few rows of payloads each, and write each turn once or twice."""
    assert value(connect(autocommit=True), "select headrace.take_office()")
    connection = connect()
    connection.execute(f"set transaction isolation level {level}".encode())
    connection.execute("select headrace.publish('s' || i %% %s, 'x') from generate_series(1, 5000) i", [streams])
    connection.execute("set constraints all immediate")
    assert rows_read(connection, "headrace.payload") <= 4 * 5000
    assert rows_read(connection, "headrace.turn") <= 4 * 5000
    written = "select n_tup_ins + n_tup_upd from pg_stat_xact_all_tables where relid = 'headrace.turn'::regclass"
    assert streams <= value(connection, written) <= 2 * streams
    assert value(connection, "select count(*) from headrace.turn") == streams


def test_numbering_joins_without_a_nested_loop(superuser: Connection) -> None:
    """The statement that numbers joins streams to events by hash or merge: a loop would not show in row counts."""
    connection = superuser
    plans: list[str] = []
    connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    try:
        connection.execute("load 'auto_explain'")
    except psycopg.Error as error:
        pytest.skip(f"auto_explain is not installed: {error}")
    connection.execute("set auto_explain.log_min_duration = 0")
    connection.execute("set auto_explain.log_nested_statements = on")
    connection.execute("set client_min_messages = log")
    for _ in range(7):  # the sixth execution of a statement may get a generic plan
        connection.execute("select headrace.publish('s' || i, 'x') from generate_series(1, 3) i")
        connection.commit()
    numbering = [plan for plan in plans if "insert into headrace.event" in plan]
    assert len(numbering) == 7
    assert not [plan for plan in numbering if "Nested Loop" in plan or "Seq Scan" in plan]
    taking = [plan for plan in plans if "update headrace.stream" in plan]
    assert not [plan for plan in taking if "Seq Scan" in plan]


def test_ten_thousand_streams_need_no_ddl(connect: Connect) -> None:
    """10,000 streams are 10,000 rows: no table, index or other relation is made for them."""
    connection = connect()
    before = value(connection, "select count(*) from pg_class")
    connection.execute("select headrace.publish('s' || i, 'x') from generate_series(1, 10000) i")
    connection.commit()
    assert value(connection, "select count(*) from headrace.stream") == 10_000
    assert value(connection, "select count(*) from pg_class") == before


# Names, refusals, notifications, rights


def test_names_are_exact(connect: Connect, observer: Connection) -> None:
    """Names that differ in any byte are different streams, each with the slot that Python computes."""
    names = ["room:1", "room_1", "Room:1", "room:1 ", " ", "ré", "re\u0301", "部屋", "🚿", "%", "a\nb", "x" * 512]
    connection = connect()
    for name in names:
        publish(connection, name, name)
    connection.commit()
    for name in names:
        assert log(observer, name) == [(1, name)]
        assert value(observer, "select headrace.slot(%s)", name) == slot(name)
        assert value(observer, "select slot from headrace.stream where name = %s", name) == slot(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("null, 'x'", "the stream name is null"),
        ("'', 'x'", "1 to 512 bytes, this one has 0"),
        ("repeat('é', 257), 'x'", "1 to 512 bytes, this one has 514"),
        ("'s', null", "the data is null"),
        ("'s', repeat('x', 1048577)", "1048577 bytes, more than headrace.max_payload_bytes"),
        ("'s', 'x', ''", "event type must have 1 to 512 bytes"),
        ("'s', 'x', e'a\\nb'", "line break"),
        ("'s', 'x', e'a\\rb'", "line break"),
        ("'s', 'x', 'headrace:gap'", "reserved"),
        ("'s', 'x', 'message', ''", "audience label must have 1 to 512 bytes"),
    ],
)
@pytest.mark.parametrize("function", ["publish", "publish_now"])
def test_refusals_say_what_is_wrong(connect: Connect, function: str, arguments: str, message: str) -> None:
    """What cannot be published is refused with error 22023 and a sentence that says why."""
    with pytest.raises(errors.InvalidParameterValue, match=message):
        connect().execute(f"select headrace.{function}({arguments})".encode())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("array['s'], null", "is null"),
        ("array['s', 't'], array['x']", "same length: 2 streams, 1 data"),
        ("array['s'], array['x'], array['a', 'b']", "same length"),
        ("array['s'], array['x'], null, array['a', 'b']", "same length"),
        ("array['s', 's'], array['x', null]", "event 2: the data is null"),
        ("array['s', null], array['x', 'x']", "event 2: the stream name is null"),
        ("array['s'], array['x'], array['headrace:x']", "event 1: .*reserved"),
    ],
)
def test_refusals_of_many(connect: Connect, arguments: str, message: str) -> None:
    """publish_many refuses all when one of them cannot be published, and says which."""
    with pytest.raises(errors.InvalidParameterValue, match=message):
        connect().execute(f"select headrace.publish_many({arguments})".encode())


def test_nothing_is_published_by_empty_arrays(connect: Connect, observer: Connection) -> None:
    """publish_many of empty arrays publishes nothing and is no error."""
    connection = connect()
    connection.execute("select headrace.publish_many('{}', '{}')")
    connection.commit()
    assert value(observer, "select count(*) from headrace.stream") == 0


def test_notifications(connect: Connect, observer: Connection) -> None:
    """A transaction notifies once per stream, on the stream's slot, with its new head and name."""
    connection = connect()
    names = ["a b", "ü"]
    for name in names:
        observer.execute(f"listen headrace_slot_{slot(name)}".encode())
    for _ in range(3):
        for name in names:
            publish(connection, name, "x")
    connection.commit()
    publish_now(connection, "ü", "x")
    connection.commit()
    got = [(n.channel, n.payload) for n in observer.notifies(timeout=DEADLINE_S, stop_after=3)]
    assert sorted(got) == sorted(
        [
            (f"headrace_slot_{slot('a b')}", "3 a b"),
            (f"headrace_slot_{slot('ü')}", "3 ü"),
            (f"headrace_slot_{slot('ü')}", "4 ü"),
        ]
    )
    assert list(observer.notifies(timeout=0)) == []


def test_rights_of_a_publisher(connect: Connect) -> None:
    """The role headrace_publisher may publish, ask for heads and watermarks, and touch nothing else."""
    connection = connect()
    publish(connection, "s", "x")
    connection.commit()
    connection.execute("set role headrace_publisher")
    connection.commit()
    publish(connection, "s", "1")
    publish_now(connection, "s", "2")
    connection.execute("select headrace.publish_many(array['s'], array['3'])")
    connection.commit()
    assert value(connection, "select headrace.head('s')") == 4
    assert value(connection, "select headrace.watermark('s')") == "4"
    for statement in (
        "select * from headrace.event",
        "select * from headrace.stream",
        "select * from headrace.stage",
        "select * from headrace.payload",
        "select * from headrace.turn",
        "select * from headrace.tick",
        "select * from headrace.behind",
        "select * from headrace.round",
        "insert into headrace.payload (xid, stream, data, rings) values (pg_current_xact_id(), 's', 'x', true)",
        "insert into headrace.turn (stream, xid, from_seq, alone) values ('s', pg_current_xact_id(), 1, false)",
        "select nextval('headrace.payload_seq_seq')",
        "delete from headrace.event",
        "select headrace.set_retention('*', interval '1 second')",
        "select headrace.prune(1)",
        "select headrace.read_after(array['s'], array[0], 1, 1)",
        "select headrace.read_after(array['s'], array[0], 1, 1, 1)",
        "select headrace.read_events(array['s'], array[0], 1, 1, 1)",
        "select headrace.kept_events()",
        "select headrace.take('s', 1, 1)",
        "select headrace.sequence()",
        "select headrace.forget_turns()",
        "select headrace.number_waiting(array['s'], array[1], array[0])",
        "select headrace.make_streams(array['s'], 1)",
        "select headrace.leave_turns('1', 1)",
        "select headrace.number_own('1', 1)",
        "select headrace.adopt_turns()",
        "select headrace.raise_numbers(1)",
        "create table headrace.mine (x int)",
    ):
        connection.commit()
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement.encode())
        connection.rollback()


def test_public_has_no_rights(connect: Connect) -> None:
    """A user without the role headrace_publisher cannot publish, and every function has a fixed search path."""
    connection = connect()
    readable = connection.execute(
        "select relname from pg_class where relnamespace = 'headrace'::regnamespace"
        " and has_table_privilege('pg_monitor', oid, 'select, insert, update, delete') and relkind = 'r'"
    ).fetchall()
    assert readable == []
    granted = connection.execute(
        "select proname from pg_proc where pronamespace = 'headrace'::regnamespace"
        " and has_function_privilege('pg_monitor', oid, 'execute')"
    ).fetchall()
    assert granted == []
    unfixed = connection.execute(
        "select proname from pg_proc where pronamespace = 'headrace'::regnamespace"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any(proconfig), false)"
    ).fetchall()
    # Two are inlined into functions that have one; the third only such functions may call, and each event does.
    assert sorted(unfixed) == [("defers",), ("fault",), ("rings",)]
    assert not value(
        connection, "select has_function_privilege('headrace_publisher', 'headrace.rings(xid8)', 'execute')"
    )
    invokers = connection.execute(
        "select proname from pg_proc where pronamespace = 'headrace'::regnamespace and not prosecdef order by 1"
    ).fetchall()
    # What turns rows into JSON runs with the rights of who writes the table: a type may have casts of its own.
    made = (
        "make_trigger",
        "publish_change",
        "publish_changes",
        "row_arguments",
        "template_pieces",
        "unpublish_changes",
    )
    rows = ("columns_now", "is_huge", "row_json", "row_key", "row_stream", "row_told", "shown_columns", "stream_of")
    assert [name for (name,) in invokers] == sorted(["defers", "fault", "rings", "table_told", *made, *rows])


def test_the_search_path_of_the_caller_does_not_matter(connect: Connect, observer: Connection) -> None:
    """Functions and operators that the caller puts first in its search path are not called."""
    connection = connect()
    connection.execute("create schema evil")
    connection.execute(
        "create function evil.octet_length(text) returns int language plpgsql as"
        " $$ begin raise exception 'called'; end $$"
    )
    connection.execute("set search_path to evil, pg_catalog")
    connection.commit()
    publish(connection, "s", "x")
    connection.execute("select headrace.publish_many(array['s'], array['y'])")
    connection.commit()
    assert log(observer, "s") == [(1, "x"), (2, "y")]


# Reading


def test_the_head_is_the_watermark_of_its_snapshot(connect: Connect) -> None:
    """In a REPEATABLE READ transaction the head and the page's data are of one moment."""
    reader, writer = connect(), connect()
    writer.execute("create table posts (id int)")
    writer.execute("insert into posts values (1)")
    publish(writer, "posts", "1")
    writer.commit()
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert value(reader, "select count(*) from posts") == 1
    writer.execute("insert into posts values (2)")
    publish(writer, "posts", "2")
    writer.commit()
    assert value(reader, "select headrace.head('posts')") == 1
    reader.rollback()
    assert value(reader, "select headrace.head('posts')") == 2
    assert value(reader, "select headrace.head('unknown')") == 0


# Removal


@pytest.mark.parametrize("removal", ["delete from headrace.stream where name = 's'", "truncate headrace.stream"])
def test_a_stream_made_again_reuses_no_id(connect: Connect, removal: str) -> None:
    """A stream that is removed and made again goes on above all ids of its past, and the jump is recorded."""
    connection = connect()
    connection.execute("select headrace.publish_many(array['s', 's', 'other'], array['1', '2', 'x'])")
    connection.commit()
    connection.execute(removal.encode())
    connection.commit()
    assert read_after(connection, [("s", 0)])[0]["head"] == 0
    publish(connection, "s", "3")
    connection.commit()
    (row,) = read_after(connection, [("s", 1)])
    assert (row["id"], row["data"], row["jumps"]) == (3, "3", [1, 2])
    assert read_after(connection, [("s", 2)])[0]["jumps"] is None


def test_removal_and_creation_at_once(connect: Connect, observer: Connection) -> None:
    """A publisher that waits for the removal of its stream goes on above the removed ids."""
    remover, publisher = connect(), connect()
    publish(publisher, "s", "1")
    publisher.commit()
    remover.execute("delete from headrace.stream where name = 's'")
    publish(publisher, "s", "2")
    thread = threading.Thread(target=publisher.commit)
    thread.start()
    wait_until_blocked(observer, publisher.info.backend_pid)
    remover.commit()
    thread.join(DEADLINE_S)
    assert log(observer, "s") == [(2, "2")]


def test_an_old_snapshot_does_not_hide_a_removal(connect: Connect, observer: Connection) -> None:
    """A stream made and removed since a REPEATABLE READ snapshot goes on above its ids when it is made again for it."""
    old, other = connect(), connect()
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    old.execute("select 1")
    publish(other, "s", "1")
    other.commit()
    other.execute("delete from headrace.stream")
    other.commit()
    publish(old, "s", "2")
    old.commit()
    assert value(observer, "select transactions from headrace.sequence()") == 1
    assert log(observer, "s") == [(2, "2")]
