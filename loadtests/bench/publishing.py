"""Publishing: how many transactions a second, with live delivery, beside the same without notification."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from loadtests.bench import writers
from loadtests.bench.bench import Bench
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure
from loadtests.bench.publisher import Publisher


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
    """One event a transaction: all delivered, plain inserts, without notification, each notifying by itself."""
    connection = bench.publisher.connection
    connection.execute(writers.BARE)
    pgbench = writers.Writers(bench.node.pgbench(), bench.node.database_url)
    publishing = writers.publishing(_prefix(bench))
    bench.publisher.many(_names(bench))
    pgbench.per_second(publishing, 1)  # until one shard announces, and tables and caches are there
    announced, lat_p50, lat_p99, delivered = _published_live(bench, pgbench)
    plain = pgbench.per_second(writers.PLAIN, bench.seconds)
    with _silence(connection):
        silent = pgbench.per_second(publishing, bench.seconds)
    # In a moment in which nobody may rely on an announcer, every transaction notifies by itself.
    connection.execute("select pg_advisory_lock(x'6865616472616364'::bigint)")
    notifying = pgbench.per_second(publishing, bench.seconds)
    connection.execute("select pg_advisory_unlock(x'6865616472616364'::bigint)")
    return [
        Figure("one event each, delivered; beside no notification", "1/s", announced, silent),
        Figure("one event each, delivered; beside plain inserts", "1/s", announced, plain),
        Figure("one event each, each notifying; beside no notification", "1/s", notifying, silent),
        Figure("publish to receipt meanwhile, p50", "ms", lat_p50),
        Figure("publish to receipt meanwhile, p99", "ms", lat_p99),
        Figure("deliveries meanwhile", "", delivered),
    ]


def _prefix(bench: Bench) -> str:
    return bench.stream.replace(":", ".") + "."  # pgbench takes what follows a colon for a variable


def _names(bench: Bench) -> list[str]:
    return [f"{_prefix(bench)}{number}" for number in range(writers.STREAMS)]


def _published_live(bench: Bench, pgbench: writers.Writers) -> tuple[float, float, float, float]:
    """Publish while each stream has a client: transactions a second, latency of a calm stream in ms, deliveries."""
    names = _names(bench)
    before = _heads(bench, names)
    calm = f"{bench.stream}.calm"
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory, ThreadPoolExecutor(1) as pool:
        paths = Path(directory) / "paths"
        paths.write_text("".join(bench.node.path(name) + "\n" for name in names))
        with (
            bench.here("--streams", str(len(names)), n=len(names), path=f"@{paths}") as clients,
            bench.here(n=1, path=bench.node.path(calm)) as watching,
        ):
            clients.ready()
            watching.ready()
            # Over a connection of its own: the other one waits for pgbench with us.
            with closing(Publisher(bench.node.database_url)) as publisher:
                paced = pool.submit(publisher.paced, calm, bench.seconds, 20.0)
                rate = pgbench.per_second(writers.publishing(_prefix(bench)), bench.seconds)
                paced.result()
            received, watched = clients.result(), watching.result()
    published = _heads(bench, names) - before
    if received["events_total"] != published:
        raise FailedError(f"of {published} events {received['events_total']} were delivered")
    return rate, watched["lat_p50_us"] / 1e3, watched["lat_p99_us"] / 1e3, received["events_total"]


def _heads(bench: Bench, names: Sequence[str]) -> int:
    """The sum of the newest ids."""
    row = bench.publisher.connection.execute(
        "select sum(headrace.head(name)) from unnest(%s::text[]) name", [list(names)]
    ).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def _silence(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Meanwhile publishing transactions neither notify nor let anybody else do it."""
    function = "headrace.announce(int[])"
    row = connection.execute("select pg_get_functiondef(%s::regprocedure)", [function]).fetchone()
    assert row is not None
    connection.execute(
        "create or replace function headrace.announce(stream_ids int[]) returns void language plpgsql security definer"
        " set search_path to pg_catalog, pg_temp as $$ begin end $$"
    )
    try:
        yield
    finally:
        connection.execute(row[0].encode())
