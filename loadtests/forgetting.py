"""Forgetting idle streams at its real size: `python -m loadtests.forgetting`.

The run starts a PostgreSQL of its own (fsync on). It publishes one event each to a million streams, removes the events,
and forgets the streams, as a shard's pruner does it. Meanwhile a session publishes, one event a transaction: in turn
while streams are forgotten, and while the pruner rests. Then a second million of streams is published to.

    names         what a new stream costs, in microseconds: in the first million, and in the second
    growth        how much larger the tables are after the second million than after the first
    publishing    transactions a second, and their p50 and p99, beside forgetting and without it

The exit status is 1 if the tables have grown by more than 5 %, or if a stream was left that should be forgotten. How
fast publishing is, is printed and not judged: one machine's noise is more than what is measured.

Marks are aged by a trigger of the run's own, since nobody waits for thirty days. autovacuum runs as it does anywhere,
and a VACUUM before each look at the tables does what it would do a minute later.
"""

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import click
import psycopg

from headrace.embedded.postgres import OWNER, EmbeddedPostgres
from headrace.schema.migrations import migrate
from headrace.shard.postgres.pruner import FORGET_BATCH, FORGET_PAUSE_S

BATCH: Final = 1000
"""Streams that one transaction makes."""
WINDOW_S: Final = 4.0
"""How long the pruner forgets, and then rests, in turn."""
MOST_GROWTH: Final = 0.05
AGED: Final = """
    create function public.aged() returns trigger language plpgsql as $$
    begin
        new.used_at := '-infinity';
        return new;
    end $$;
    create trigger aged before insert or update on headrace.trimmed for each row execute function public.aged();
    select headrace.set_retention('*', '1 microsecond');
    select headrace.set_retention('busy:*', '1 day')"""
TABLES: Final = ("stream", "trimmed", "event", "payload", "removed", "jump", "turn", "slot_floor")
SIZES: Final = """
    select sum(pg_total_relation_size('headrace.' || t)) from unnest(%s::text[]) as t"""

Connection = psycopg.Connection[Any]


class Busy(threading.Thread):
    """A session that publishes one event a transaction, nine of ten to old streams and one to a new one.

    Owned by the main thread, which reads seconds when the thread has ended: the durations, for each window.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.seconds: list[list[float]] = [[]]
        self.ended = threading.Event()
        self._url = url

    def run(self) -> None:
        """Publish until the end is told."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            number = 0
            while not self.ended.is_set():
                number += 1
                name = f"busy:{number % 50}" if number % 10 else f"busy:new:{number}"
                began = time.perf_counter()
                connection.execute("select headrace.publish(%s, 'busy')", (name,))
                self.seconds[-1].append(time.perf_counter() - began)


def _make(connection: Connection, generation: str, streams: int) -> float:
    """Publish one event to each of so many new streams; the microseconds that a stream took."""
    began = time.perf_counter()
    for first in range(0, streams, BATCH):
        names = [f"{generation}:{number}" for number in range(first, min(first + BATCH, streams))]
        connection.execute("select headrace.publish_many_now(%s, %s)", (names, ["once"] * len(names)))
    return (time.perf_counter() - began) / streams * 1e6


def _prune(connection: Connection) -> None:
    while connection.execute("select headrace.prune(10000)").fetchone() != (0,):
        pass


def _size(connection: Connection) -> int:
    for table in TABLES:
        connection.execute(f"vacuum headrace.{table}".encode())
    row = connection.execute(SIZES, (list(TABLES),)).fetchone()
    assert row is not None
    return int(row[0])


def _forget(connection: Connection, until: float, pause_s: float) -> tuple[int, bool]:
    """Forget until then, seconds of the monotonic clock, or until nothing is left: how many, and whether more are."""
    forgotten, more = 0, True
    while more and time.monotonic() < until:
        row = connection.execute("select * from headrace.forget_streams('1 hour', %s)", (FORGET_BATCH,)).fetchone()
        assert row is not None
        forgotten, more = forgotten + row[0], row[1]
        time.sleep(pause_s)
    return forgotten, more


def _beside(connection: Connection, url: str, windows: int) -> int:
    """Forget and rest in turn while a session publishes, and print what it felt; how many streams were forgotten."""
    busy = Busy(url)
    busy.start()
    forgotten = 0
    try:
        for _ in range(windows):
            busy.seconds.append([])
            forgotten += _forget(connection, time.monotonic() + WINDOW_S, FORGET_PAUSE_S)[0]
            busy.seconds.append([])
            time.sleep(WINDOW_S)
    finally:
        busy.ended.set()
        busy.join()
    beside, without = busy.seconds[1::2], busy.seconds[2::2]
    pairs = [len(one) / len(other) for one, other in zip(beside, without, strict=True)]
    for name, found in (("beside forgetting", beside), ("without", without)):
        cuts = quantiles([1e3 * second for window in found for second in window], n=100)
        rate = median(len(window) for window in found) / WINDOW_S
        click.echo(f"publishing, {name}: {rate:.0f} transactions/s, p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")
    click.echo(f"publishing beside forgetting, as a part of publishing without: {median(pairs):.1%} (median of pairs)")
    click.echo(f"forgotten meanwhile: {forgotten / windows / WINDOW_S:.0f} streams/s")
    return forgotten


def _measure(url: str, streams: int, windows: int) -> bool:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(AGED.encode())
        first_us = _make(connection, "first", streams)
        _prune(connection)
        first = _size(connection)
        forgotten = _beside(connection, url, windows)
        # What the session has published goes as well.
        connection.execute("select headrace.set_retention('busy:*', null)")
        _prune(connection)
        began = time.monotonic()
        more = True
        while more:
            count, more = _forget(connection, time.monotonic() + 60, 0.0)
            forgotten += count
        click.echo(f"forgotten: {forgotten} streams, those that were left in {time.monotonic() - began:.0f} s")
        _size(connection)
        second_us = _make(connection, "second", streams)
        _prune(connection)
        growth = _size(connection) / first - 1
    click.echo(f"names: {first_us:.0f} µs each in the first generation, {second_us:.0f} µs in the second")
    click.echo(f"tables: {first / 1e6:.0f} MB after the first generation, {growth:+.1%} after the second")
    return forgotten >= streams and growth <= MOST_GROWTH


@click.command()
@click.option("--streams", default=1_000_000, show_default=True, type=click.IntRange(1000), help="Of each generation.")
@click.option(
    "--windows", default=12, show_default=True, type=click.IntRange(2), help="Pairs of windows of publishing."
)
def main(streams: int, windows: int) -> None:
    """Forget a generation of streams, and publish to the next one."""
    directory = Path(tempfile.mkdtemp(prefix="headrace-forgetting-"))
    directory.chmod(0o711)
    server = EmbeddedPostgres(directory)
    try:
        server.start()
        with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"create database forgetting owner {OWNER}".encode())
        url = server.owned_url("forgetting")
        migrate(url)
        good = _measure(url, streams, windows)
    finally:
        server.hurry()
        server.stop()
        shutil.rmtree(directory)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
