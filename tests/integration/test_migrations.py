"""Migrating a database that a released version has made, while publishers and a reader of that version are at work."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from headrace.errors import MigrationBlockedError
from headrace.schema.migrations import LOCK_TIMEOUT_S, Migration, migrate, migrations
from tests.fixtures.releases import RELEASES, Release
from tests.fixtures.shard import Shard
from tests.fixtures.waiting import DEADLINE_S, wait_until

STREAMS = ["a", "b", "c"]
# What a shard of version 0.1 asks for, by the names that it uses.
READ = """
    select ordinal, head, trimmed_to, jumps, id, type, data, visible_to
      from headrace.read_after(%s::text[], %s::bigint[], %s, %s)"""
# On top of whatever is pending: each table that publishing uses gets something new.
NEXT = b"""
    alter table headrace.payload add column later int not null default 0;
    alter table headrace.turn add column later int not null default 0;
    alter table headrace.stream add column later int not null default 0;
    alter table headrace.event add column later int;
    create table headrace.later (x int);
"""


class Traffic:
    """Publishers and a reader, each with a thread and a connection of its own. Owned by the test thread."""

    def __init__(self, url: str) -> None:
        self.committed: dict[str, list[str]] = {stream: [] for stream in STREAMS}
        self.read: dict[str, list[str]] = {stream: [] for stream in STREAMS}
        self.slowest_s = 0.0
        self.errors: list[BaseException] = []
        self._url = url
        self._ending = threading.Event()
        work = [self._publish, self._publish_many, self._publish_now, self._follow]
        self._threads = [threading.Thread(target=self._guarded, args=[part], daemon=True) for part in work]
        for thread in self._threads:
            thread.start()

    def count(self) -> int:
        return sum(map(len, self.read.values()))

    def flows(self) -> None:
        """Wait until events go through."""
        before = self.count()
        wait_until(lambda: self.errors or self.count() > before + 60, "events go through")
        assert not self.errors

    def end(self) -> None:
        """Stop publishing and read the rest."""
        self._ending.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        assert not self.errors

    def _guarded(self, part: Callable[[psycopg.Connection[Any]], None]) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                part(connection)
        except BaseException as error:
            self.errors.append(error)

    def _numbers(self, name: str) -> Iterator[str]:
        """What to publish next; what was yielded is committed when the next is asked for, and was timed."""
        for number in itertools.count():
            if self._ending.is_set():
                return
            began = time.monotonic()
            yield f"{name}{number}"
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _publish(self, connection: psycopg.Connection[Any]) -> None:
        for data in self._numbers("p"):
            with connection.transaction():
                for stream in reversed(STREAMS[:2]):
                    connection.execute("select headrace.publish(%s, %s)", [stream, data])
            for stream in STREAMS[:2]:
                self.committed[stream].append(data)

    def _publish_many(self, connection: psycopg.Connection[Any]) -> None:
        for data in self._numbers("m"):
            connection.execute("select headrace.publish_many(%s, %s)", [STREAMS, [data] * 3])
            for stream in STREAMS:
                self.committed[stream].append(data)

    def _publish_now(self, connection: psycopg.Connection[Any]) -> None:
        for data in self._numbers("n"):
            connection.execute("select headrace.publish_now(%s, %s)", ["c", data])
            self.committed["c"].append(data)

    def _follow(self, connection: psycopg.Connection[Any]) -> None:
        heads = [0] * len(STREAMS)
        ending = False
        while True:
            found = connection.execute(READ, [STREAMS, heads, 100, 1 << 20]).fetchall()
            for ordinal, _, _, _, id_, _, data, _ in found:
                if id_ is not None:
                    assert id_ == heads[ordinal - 1] + 1
                    heads[ordinal - 1] = id_
                    self.read[STREAMS[ordinal - 1]].append(data)
            if ending and all(row[4] is None for row in found):
                return
            ending = not any(thread.is_alive() for thread in self._threads[:-1])


def as_released(url: str, release: Release, monkeypatch: pytest.MonkeyPatch) -> list[Migration]:
    """Make the database as that version did; returns what a newer one will apply, with one more."""
    release.migrate(url)
    known = migrations()
    following = Migration(known[-1].version + 1, NEXT)
    monkeypatch.setattr("headrace.schema.migrations.migrations", lambda: [*known, following])
    return [*known[release.schema :], following]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_released_migrations_are_unchanged(release: Release) -> None:
    """What a database was made with stays what it was made with."""
    ours = migrations()[: release.schema]
    assert [migration.sql for migration in ours] == [sql for _, sql in sorted(release.migrations().items())]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_migrating_under_traffic_loses_nothing(
    empty_database_url: str, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From each release on, publishers and a reader go on through the migration, and every event is read once."""
    pending = as_released(empty_database_url, release, monkeypatch)
    traffic = Traffic(empty_database_url)
    traffic.flows()
    assert migrate(empty_database_url) == [migration.version for migration in pending]
    traffic.flows()
    traffic.end()
    for stream in STREAMS:
        assert sorted(traffic.read[stream]) == sorted(traffic.committed[stream])


def test_a_shard_does_not_start_on_an_older_schema(empty_database_url: str) -> None:
    """It ends with the fix before it takes clients, which a shard of the version before still serves."""
    RELEASES[0].migrate(empty_database_url)
    shard = Shard(empty_database_url)
    shard.launch()
    try:
        assert shard.exit_status() == 1
        assert "run `headrace migrate`" in shard.log
        assert not shard.path.exists()
    finally:
        shard.remove()


def test_an_open_transaction_does_not_make_the_migration_hold_up_others(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that cannot get its locks lets publishers go on, names who is in its way, and is done when it can."""
    as_released(empty_database_url, RELEASES[0], monkeypatch)
    said: list[str] = []
    # Bounded, for the day when a migration does wait for it.
    with psycopg.connect(empty_database_url, options="-c idle_in_transaction_session_timeout=45s") as holder:
        holder.execute("select headrace.publish_now('held', 'x')")
        pid = holder.info.backend_pid
        with pytest.raises(MigrationBlockedError, match=f"pid {pid}, open for .* last query .select headrace.publish"):
            migrate(empty_database_url, patience_s=0)
        traffic = Traffic(empty_database_url)
        done: list[list[int]] = []
        thread = threading.Thread(target=lambda: done.append(migrate(empty_database_url, say=said.append)), daemon=True)
        thread.start()
        wait_until(lambda: len(said) > 1, "the migration has given way twice")
        traffic.flows()
        assert f"pid {pid}" in said[-1]
        holder.commit()
    thread.join(DEADLINE_S)
    assert done
    traffic.end()
    assert traffic.slowest_s < LOCK_TIMEOUT_S + 20  # on a machine that does other things; not until the holder ends
    assert len(traffic.read["a"]) == len(traffic.committed["a"])
