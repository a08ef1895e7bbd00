"""The PostgreSQL that is tortured, and the standby that takes its place. Starting, killing and promoting, in short."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Self

import psycopg

from headrace.embedded.postgres import OWNER, EmbeddedPostgres
from headrace.schema.migrations import migrate

TEMPLATE: Final = "log_template"
SETTINGS: Final = {
    "max_prepared_transactions": "64",
    # The application's transactions deadlock often, and would spend the run waiting for the detector.
    "deadlock_timeout": "50ms",
    # A kill of the server then loses what no commit has flushed.
    "wal_writer_delay": "10s",
}
PROMOTION_DEADLINE_S: Final = 60.0
LAZY_S: Final = 0.3
"""For so long before a kill nobody asks for durable commits."""


class Cluster:
    """A server with a migrated template database, and where a fail-over is wanted, a standby.

    Owned by the main thread; all threads read `url`, `era` and `before_kill`. before_kill says what clients do just
    before a kill of the server, when nobody asks for durable commits, so that a commit which the log does not make
    durable is lost: `turns`, publishers leave turns, and sequencers do no rounds; or `numbers`, publishers number at
    once; None at other times. synchronous: commits wait for the standby. `binaries` names the directory of another
    PostgreSQL than the embedded one.
    """

    def __init__(self, binaries: Path | None = None, *, synchronous: bool = False) -> None:
        self.era = 0
        self.before_kill: Literal["turns", "numbers"] | None = None
        self._binaries = binaries
        self.synchronous = synchronous
        self.database = "postgres"
        self._crashes = 0
        self._directories: list[Path] = []
        self._servers: list[EmbeddedPostgres] = []

    def __enter__(self) -> Self:
        try:
            server = self._new()
            server.start()
            for name, value in SETTINGS.items():
                _execute(server, f"alter system set {name} = '{value}'")
            server.stop()
            server.start()
            _execute(server, f"create database {TEMPLATE} owner {OWNER}")
            migrate(server.owned_url(TEMPLATE))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.hurry()
            server.stop()
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """The tortured database, as its owner. After a fail-over it is on the server that was promoted."""
        return self._servers[self.era].owned_url(self.database)

    @property
    def standby_url(self) -> str:
        """The tortured database on the standby; after the fail-over the same as `url`."""
        return self._servers[-1].owned_url(self.database)

    @property
    def old_url(self) -> str:
        """The database on the server from which the last fail-over came."""
        return self._servers[self.era - 1].owned_url(self.database)

    def create(self, name: str) -> None:
        """Make a database with headrace's schema; `url` leads there from now on."""
        self.database = name
        _execute(self._servers[self.era], f"create database {name} template {TEMPLATE} owner {OWNER}")

    def drop(self) -> None:
        """Remove the database, which MUST have no prepared transactions any more."""
        _execute(self._servers[self.era], f"drop database {self.database} with (force)")

    def crash(self) -> None:
        """Kill the server as a power failure would, and start it again."""
        self._crashes += 1
        self.before_kill = "turns" if self._crashes % 2 else "numbers"
        time.sleep(LAZY_S)
        self._servers[self.era].kill()
        self.before_kill = None
        self._servers[self.era].start()

    def add_standby(self) -> None:
        """Make a server that follows this one. The server is stopped and started meanwhile."""
        primary, standby = self._servers[self.era], self._new()
        standby.start()
        standby.stop()
        primary.stop()
        data = standby.home / "data"
        shutil.rmtree(data)
        subprocess.run(["cp", "-a", primary.home / "data", data], check=True)
        for kept in ("postgres.password", "postgres.owner"):
            shutil.copy(primary.directory / kept, standby.directory / kept)
        signal = data / "standby.signal"
        signal.touch()
        owner = data.stat()
        os.chown(signal, owner.st_uid, owner.st_gid)
        primary.start()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{primary.database_url('postgres')}'\n")
        standby.start()
        following = "select count(*) = 1 from pg_stat_replication where state = 'streaming'"
        _until(lambda: bool(_ask(primary, following)), "the standby streams")
        if self.synchronous:
            _execute(primary, "alter system set synchronous_standby_names = '*'")
            _execute(primary, "select pg_reload_conf()")

    def cut_standby(self) -> None:
        """Let the standby receive nothing any more; commits go on without it, unless they wait for it."""
        standby = self._servers[self.era + 1]
        _execute(standby, "alter system set primary_conninfo = ''")
        _execute(standby, "select pg_reload_conf()")
        _until(lambda: not _ask(standby, "select count(*) from pg_stat_wal_receiver"), "the standby receives nothing")

    def fail_over(self) -> int:
        """Kill the server and promote the standby, which `url` leads to afterwards.

        Returns the position in the write-ahead log up to which the standby has everything.
        """
        primary, standby = self._servers[self.era], self._servers[self.era + 1]
        primary.kill()
        _execute(standby, "select pg_promote()")
        _until(lambda: not _ask(standby, "select pg_is_in_recovery()"), "the standby is promoted")
        self.era += 1
        return int(_ask(standby, "select pg_last_wal_replay_lsn() - '0/0'"))

    def start_old(self) -> None:
        """Start the server from which the last fail-over came, to see what it had. Nobody waits for a standby there."""
        old = self._servers[self.era - 1]
        with (old.home / "data" / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\n")
        old.start()

    def _new(self) -> EmbeddedPostgres:
        directory = Path(tempfile.mkdtemp(prefix="headrace-log-torture-"))
        directory.chmod(0o711)  # so that a run of root's can keep the data, of another user, inside
        self._directories.append(directory)
        server = EmbeddedPostgres(directory, binaries=self._binaries, durable=False)
        self._servers.append(server)
        return server


def _execute(server: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(statement.encode())


def _ask(server: EmbeddedPostgres, question: str) -> Any:
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        row = connection.execute(question.encode()).fetchone()
        return row[0] if row else None


def _until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PROMOTION_DEADLINE_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {PROMOTION_DEADLINE_S:g} s: {what}")
        time.sleep(0.02)
