"""What a publishing application feels: its transactions beside the same without headrace, and the way to a receipt.

    plain inserts or updates, for as long as publishing    ─┐
    publishing, in 16 sessions, one event a transaction    ─┴─ a pair, with one set of subscribers
    plain, publishing, plain, publishing, …                    the repetitions of a scenario

Live delivery is on in both halves of a pair: two shards run, and each stream has a subscriber, which receives nothing
in the plain half. So a ratio is of publishing itself, with the work that headrace does for it meanwhile.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

import headrace
from loadtests.bench.bench import Bench
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure
from loadtests.bench.node import PUBLISHER
from loadtests.bench.subscriber import Subscriber
from loadtests.bench.transaction_log import TransactionLog
from loadtests.bench.writers import NUMBER, NUMBERED, STAMP, STREAMS, Writers

IDLE_PER_S: Final = 20.0
"""Events a second of an idle system: so few that no shard numbers for all."""
BUSY_PER_S: Final = 2000
ROWS: Final = 10_000
PATIENCE_S: Final = 120.0
"""How long the subscribers may take to receive what is left after the last commit."""

_PLAIN: Final = """
    create table if not exists public.bench_plain (
        id bigint generated always as identity primary key, stream text not null, type text, data text not null,
        visible_to text, created_at timestamptz default clock_timestamp()
    )"""
# Short names first in the JSON of a row, which has the shortest keys first: subscribers look for n and t at its start.
_ROWS: Final = """
    create table public.{0} (
        id int primary key, n bigint not null, t bigint not null, state text not null, note text not null
    )"""


def hot_stream(bench: Bench) -> list[Figure]:
    """16 sessions publish to one stream."""
    stream = _plain_name(bench)
    plain, published = _statements("", f"'{stream}'")
    return _pair(bench, [stream], plain, published)


def thousand_streams(bench: Bench) -> list[Figure]:
    """16 sessions publish uniformly to 1,000 streams."""
    prefix = f"{_plain_name(bench)}."
    plain, published = _statements(f"\\set stream random(0, {STREAMS - 1})\n", f"'{prefix}' || :stream")
    return _pair(bench, [f"{prefix}{number}" for number in range(STREAMS)], plain, published)


def table_changes(bench: Bench) -> list[Figure]:
    """16 sessions update rows of a table whose changes are published to one stream, and of one without a trigger."""
    stream, connection = _plain_name(bench), bench.publisher.connection
    bench.node.publisher_url()  # which makes the role
    for table in ("bench_rows", "bench_changes"):
        connection.execute(f"drop table if exists public.{table}")
        connection.execute(_ROWS.format(table))
        connection.execute(
            f"insert into public.{table} select id, 0, 0, 'new', repeat('x', 120) from generate_series(1, {ROWS}) id"
        )
        connection.execute(f"grant select, update on public.{table} to {PUBLISHER}")
        connection.execute(f"vacuum analyze public.{table}")
    connection.execute("select headrace.publish_changes('public.bench_changes', %s)", [stream])
    update = (
        f"\\set id random(1, {ROWS})\nupdate public.{{0}} set n = {NUMBER}, t = {STAMP}, state = 'paid' where id = :id;"
    )
    return _pair(bench, [stream], update.format("bench_rows"), update.format("bench_changes"))


def publish_latency(bench: Bench) -> list[Figure]:
    """From publishing to receipt: idle but for one event at a time; then while 16 sessions publish at a fixed rate."""
    _wait_until_nobody_numbers_for_all(bench)
    idle = bench.paced(IDLE_PER_S, headrace.publish)
    found = [_latency("idle", idle, quantile) for quantile in ("p50", "p99")]
    prefix = f"{_plain_name(bench)}."
    pgbench = Writers(bench.node.pgbench(), bench.node.publisher_url())
    for name, count in (("one stream", 1), (f"{STREAMS:,} streams", STREAMS)):
        streams = [f"{prefix}{count}.{number}" for number in range(count)]
        _, published = _statements(f"\\set stream random(0, {count - 1})\n", f"'{prefix}{count}.' || :stream")
        with _followed(bench, streams) as subscriber:
            log = pgbench.logged(published, bench.seconds, subscriber.forget, BUSY_PER_S)
            result = subscriber.whole(log.commits, PATIENCE_S)
        found.append(Figure(f"commits, of {BUSY_PER_S:,} wanted, to {name}", "1/s", log.per_second))
        found += [_latency(f"meanwhile, {name}", result, quantile) for quantile in ("p50", "p99")]
    return found


def _pair(bench: Bench, streams: Sequence[str], plain: str, published: str) -> list[Figure]:
    """Run the plain transactions, then the publishing ones, while each of the streams has a subscriber."""
    pgbench = Writers(bench.node.pgbench(), bench.node.publisher_url())
    with _followed(bench, streams) as subscriber:
        _settle(bench)
        beside = pgbench.logged(plain, bench.seconds, subscriber.forget)
        if received := subscriber.received():
            raise FailedError(f"{received} events were received before anything was published")
        _settle(bench)
        log = pgbench.logged(published, bench.seconds, subscriber.forget)
        result = subscriber.whole(log.commits, PATIENCE_S)
    return [
        Figure("commits; beside plain", "1/s", log.per_second, beside.per_second),
        Figure("a transaction, p50; beside plain", "ms", log.p50_ms, beside.p50_ms),
        Figure("a transaction, p99; beside plain", "ms", log.p99_ms, beside.p99_ms),
        Figure("backlog after the last commit", "ms", _backlog_ms(log, result)),
        _latency("publish to receipt", result, "p50"),
        _latency("publish to receipt", result, "p99"),
        Figure("events, each received once", "", log.commits),
    ]


def _backlog_ms(log: TransactionLog, result: dict[str, Any]) -> float:
    """From when the last session knew of its commit until the last event was received; 0 if that was earlier."""
    received_s = (int(result["last_event_ns"]) + time.time_ns() - time.monotonic_ns()) / 1e9
    return max(0.0, 1e3 * (received_s - log.last_commit_s))


def _latency(name: str, result: dict[str, Any], quantile: str) -> Figure:
    return Figure(f"{name}, {quantile}", "ms", result[f"lat_{quantile}_us"] / 1e3)


def _plain_name(bench: Bench) -> str:
    return bench.stream.replace(":", ".")  # pgbench takes what follows a colon for a variable


def _statements(variables: str, stream: str) -> tuple[str, str]:
    """The scripts of pgbench that insert, and that publish, one event of 200 bytes; stream is an SQL expression."""
    return (
        f"{variables}insert into public.bench_plain (stream, data) values ({stream}, {NUMBERED});",
        f"{variables}select headrace.publish({stream}, {NUMBERED});",
    )


@contextmanager
def _followed(bench: Bench, streams: Sequence[str]) -> Iterator[Subscriber]:
    """New streams, each with one event and a subscriber who begins behind it."""
    bench.publisher.begin(streams)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        paths = Path(directory) / "paths"
        paths.write_text("".join(path + "\n" for path in bench.node.paths(streams)))
        with Subscriber(bench.tools.subscriber, bench.node.address, f"@{paths}", len(streams)) as subscriber:
            subscriber.ready()
            yield subscriber


def _wait_until_nobody_numbers_for_all(bench: Bench) -> None:
    give_up = time.monotonic() + PATIENCE_S
    with psycopg.connect(bench.node.superuser_url, autocommit=True) as superuser:
        while superuser.execute("select headrace.defers()").fetchone() == (True,):
            if time.monotonic() > give_up:
                raise FailedError(f"a shard numbers for all after {PATIENCE_S:g} s in which nothing was published")
            time.sleep(0.1)


def _settle(bench: Bench) -> None:
    """Make the table of plain inserts, and write to disk what is dirty, so that no half pays for the one before.

    Raises FailedError where PostgreSQL does not wait for the disk: plain inserts would gain more by it.
    """
    connection = bench.publisher.connection
    for setting in ("fsync", "synchronous_commit"):
        if connection.execute(f"show {setting}").fetchone() != ("on",):
            raise FailedError(f"PostgreSQL runs with {setting} off")
    connection.execute(_PLAIN)
    connection.execute(f"grant insert on public.bench_plain to {PUBLISHER}")
    with psycopg.connect(bench.node.superuser_url, autocommit=True) as superuser:
        superuser.execute("checkpoint")
