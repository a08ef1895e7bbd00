"""Publishing: how many transactions a second with live delivery, beside the same without notifications."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import psycopg

from loadtests.bench import writers
from loadtests.bench.bench import Bench
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure
from loadtests.bench.publisher import BenchPublisher

TURNS: Final = 5
"""Turns with live delivery and without notifications alternate, since the machine's speed changes within minutes."""

OFFICE_S: Final = 20.0
"""How long a shard may take to leave office when no session publishes; it looks back over two seconds."""


@dataclass(frozen=True, slots=True)
class Live:
    """One turn with live delivery: transactions a second, the latency of a calm stream, all that clients received."""

    per_second: float
    p50_ms: float
    p99_ms: float
    deliveries: int


def publish(bench: Bench) -> list[Figure]:
    """16 sessions publish to 1,000 streams, one event a transaction, all delivered; and 1,000 events a transaction."""
    found = _beside_silence(bench)
    names = _names(bench)
    began = time.monotonic()
    many = bench.publisher.flood(names, bench.seconds, 1000) / (time.monotonic() - began)
    began = time.monotonic()
    one = bench.publisher.flood(names[:1], bench.seconds, 1000) / (time.monotonic() - began)
    return [
        *found,
        Figure("1,000 events each, to 1,000 streams", "events/s", many),
        Figure("1,000 events each, to one stream", "events/s", one),
    ]


def unpinned(bench: Bench) -> list[Figure]:
    """Single events as `publish` does, with every process on any core: publishers compete with the shard, too."""
    with bench.node.everywhere():
        return _beside_silence(bench)


def _beside_silence(bench: Bench) -> list[Figure]:
    """One event a transaction: delivered live, as plain inserts, without notifications, each notifying by itself."""
    connection = bench.publisher.connection
    connection.execute(writers.BARE)
    pgbench = writers.Writers(bench.node.pgbench(), bench.node.database_url)
    publishing = writers.publishing(_prefix(bench))
    bench.publisher.begin(_names(bench))
    live, silent = [], []
    for _ in range(TURNS):
        live.append(_published_live(bench, pgbench))
        with _silence(connection), _calm(bench):
            silent.append(pgbench.per_second(publishing, bench.seconds))
    plain = pgbench.per_second(writers.PLAIN, bench.seconds)
    # While this lock is held no transaction leaves a turn to a shard, so each numbers and notifies by itself.
    connection.execute("select pg_advisory_lock(x'6865616472616364'::bigint)")
    with _calm(bench):
        notifying = pgbench.per_second(publishing, bench.seconds)
    connection.execute("select pg_advisory_unlock(x'6865616472616364'::bigint)")
    delivered = mean(turn.per_second for turn in live)
    return [
        Figure("one event each, delivered; beside no notification", "1/s", delivered, mean(silent)),
        Figure("one event each, delivered; beside plain inserts", "1/s", delivered, plain),
        Figure("one event each, each notifying; beside no notification", "1/s", notifying, mean(silent)),
        Figure("publish to receipt meanwhile, p50", "ms", median(turn.p50_ms for turn in live)),
        Figure("publish to receipt meanwhile, p99", "ms", median(turn.p99_ms for turn in live)),
        Figure("deliveries meanwhile", "", sum(turn.deliveries for turn in live)),
    ]


def _prefix(bench: Bench) -> str:
    return bench.stream.replace(":", ".") + "."  # pgbench takes what follows a colon for a variable


def _names(bench: Bench) -> list[str]:
    return [f"{_prefix(bench)}{number}" for number in range(writers.STREAMS)]


def _published_live(bench: Bench, pgbench: writers.Writers) -> Live:
    """Publish while each stream has a client."""
    names = _names(bench)
    before = bench.publisher.heads(names)
    publishing = writers.publishing(_prefix(bench))
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        paths = Path(directory) / "paths"
        paths.write_text("".join(path + "\n" for path in bench.node.paths(names)))
        with (
            # A session's first transaction takes long, and 16 of them on a busy core more than a second.
            bench.here("--streams", str(len(names)), "--idle", "3", n=len(names), path=f"@{paths}") as clients,
            bench.here(n=1, path=bench.node.path(_calm_stream(bench))) as watching,
        ):
            clients.ready()
            watching.ready()
            pgbench.per_second(publishing, 1)  # until one shard is in office
            with _calm(bench):
                rate = pgbench.per_second(publishing, bench.seconds)
            received, watched = clients.result(), watching.result()
    published = bench.publisher.heads(names) - before
    if received["events_total"] != published:
        raise FailedError(f"of {published} events {received['events_total']} were delivered")
    return Live(rate, watched["lat_p50_us"] / 1e3, watched["lat_p99_us"] / 1e3, received["events_total"])


def _calm_stream(bench: Bench) -> str:
    return f"{bench.stream}.calm"


@contextmanager
def _calm(bench: Bench) -> Iterator[None]:
    """Within the block 20 events a second are published to a stream of their own, in every variant that is compared."""
    # Over a connection of its own, since this thread is busy waiting for pgbench.
    with ThreadPoolExecutor(1) as pool, closing(BenchPublisher(bench.node.database_url)) as publisher:
        paced = pool.submit(publisher.paced, _calm_stream(bench), bench.seconds, 20.0)
        yield
        paced.result()


@contextmanager
def _silence(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Within the block publishing transactions number at commit and notify nobody."""
    definitions = [
        connection.execute("select pg_get_functiondef(%s::regprocedure)", [f"headrace.{function}"]).fetchone()
        for function in ("announce(int[])", "defers()")
    ]
    try:
        connection.execute(
            "create or replace function headrace.announce(stream_ids int[]) returns void language plpgsql"
            " security definer set search_path to pg_catalog, pg_temp as $$ begin end $$"
        )
        connection.execute(
            "create or replace function headrace.defers() returns boolean language sql as 'select false'"
        )
        _wait_for_office(connection)
        yield
    finally:
        connection.execute("select headrace.leave_office()")
        for row in definitions:
            assert row is not None
            connection.execute(row[0].encode())


def _wait_for_office(connection: psycopg.Connection[Any]) -> None:
    """Take office as soon as the shard leaves it for lack of commits: until then it would do rounds for nothing."""
    deadline = time.monotonic() + OFFICE_S
    while connection.execute("select headrace.take_office()").fetchone() != (True,):
        if time.monotonic() > deadline:
            raise FailedError(f"a shard is in office still, {OFFICE_S:g} s after the last event")
        time.sleep(0.1)
