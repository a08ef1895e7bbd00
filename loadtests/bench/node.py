"""headrace as users run it: `headrace up` in a directory of its own, with one shard on a core of its own."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
import psycopg

import headrace
from headrace.embedded.postgres import USER
from headrace.environment_file import environ_with_file
from headrace.node.child_process import spawn
from loadtests.bench import cores
from loadtests.bench.clients import FailedError

READY_S: Final = 90.0
PUBLISHER: Final = "bench_publisher"
_READY: Final = re.compile(r"^headrace ready http://([\d.]+):(\d+)\n", re.MULTILINE)
_STATEMENT: Final = re.compile(r"LOG:  (?:statement|execute [^:]*):")
_ROOT: Final = Path(__file__).parents[2]


class Node:
    """A running node. Owned by the bench.

    One shard alone gets a core to itself, and everything else runs on the other one, with the clients. Of several
    shards none is pinned. root is the directory of the headrace that runs; settings are variables of its environment.
    If counts_statements, PostgreSQL writes each statement to its log, to be counted.
    """

    def __init__(
        self,
        shards: int,
        router_workers: int,
        root: Path = _ROOT,
        settings: Mapping[str, str] | None = None,
        *,
        counts_statements: bool = False,
    ) -> None:
        self.root = root
        self.settings = settings or {}
        self.counts_statements = counts_statements
        self.shards = shards
        self.router_workers = router_workers
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
        self.directory.chmod(0o711)
        self._output = self.directory / "up.log"
        self._up: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node; returns when it serves clients."""
        cores.pin(0, cores.CLIENT if self.shards == 1 else cores.ALL)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        environ |= self.settings
        environ["PYTHONPATH"] = os.pathsep.join([str(self.root), *filter(None, [environ.get("PYTHONPATH")])])
        argv = [sys.executable, "-P", "-m", "headrace.cli", "up", "--port", "0", "--node", "b"]
        argv += ["--shards", str(self.shards), "--router-workers", str(self.router_workers)]
        with self._output.open("wb") as output:
            self._up = spawn(
                argv, death_signal=signal.SIGTERM, environ=environ, directory=self.directory, output=output
            )
        deadline = time.monotonic() + READY_S
        while not (found := _READY.search(self._output.read_text())):
            if self._up.poll() is not None or time.monotonic() > deadline:
                raise FailedError("`headrace up` did not get ready:\n" + self._output.read_text()[-2000:])
            time.sleep(0.1)
        self.address = found[1], int(found[2])
        self._environ = environ_with_file({}, self.directory / ".headrace" / "env")
        self.shard_pids = self._pids("headrace.shard")
        self.router_pids = self._pids("gunicorn")
        if self.shards == 1:
            cores.pin(self.shard_pids[0], cores.SERVER)
        if self.counts_statements:
            self._log_statements()

    def stop(self) -> None:
        """End the node and remove its directory."""
        if self._up is not None and self._up.poll() is None:
            self._up.terminate()
            try:
                self._up.wait(40)
            except subprocess.TimeoutExpired:
                self._up.kill()
                self._up.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process of `headrace up`."""
        assert self._up is not None
        return self._up.pid

    @property
    def database_url(self) -> str:
        """The URL of its PostgreSQL."""
        return self._environ["HEADRACE_DATABASE_URL"]

    @property
    def superuser_url(self) -> str:
        """The URL of its PostgreSQL for the superuser, whom `headrace up` uses only to make the database."""
        return self._url_of(USER, (self.directory / ".headrace" / "postgres.password").read_text().strip())

    def publisher_url(self) -> str:
        """The URL for a role that may only publish, as an application's role may. The first call makes the role."""
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            connection.execute(
                f"do $$ begin create role {PUBLISHER} login password '{PUBLISHER}' in role headrace_publisher;"
                " exception when duplicate_object then null; end $$"
            )
        return self._url_of(PUBLISHER, PUBLISHER)

    def _url_of(self, user: str, password: str) -> str:
        url = urlsplit(self.database_url)
        return url._replace(netloc=f"{user}:{password}@{url.hostname}:{url.port}").geturl()

    def path(self, stream: str, since: str = "") -> str:
        """The signed path of a stream, by default from its head on."""
        return headrace.sign(
            stream, since=since or self._heads([stream])[0], secrets=[self._environ["HEADRACE_SECRET"]]
        )

    def paths_of_users(self, stream: str, n: int) -> list[str]:
        """Signed paths of a stream from its head on, each for a user of its own and valid for an hour."""
        secrets, (since,) = [self._environ["HEADRACE_SECRET"]], self._heads([stream])
        return [headrace.sign(stream, since=since, user=f"u{i}", ttl_s=3600, secrets=secrets) for i in range(n)]

    def paths(self, streams: Sequence[str]) -> list[str]:
        """The signed paths of many streams, each from its head on."""
        secrets = [self._environ["HEADRACE_SECRET"]]
        heads = self._heads(streams)
        return [headrace.sign(name, since=head, secrets=secrets) for name, head in zip(streams, heads, strict=True)]

    def _heads(self, streams: Sequence[str]) -> list[str]:
        # An id and not `now`: a client that begins at `now` is told its cursor in an event, which the load client
        # counts.
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return [str(headrace.head(connection, stream)) for stream in streams]

    def scrape(self) -> str:
        """The text of /metrics."""
        host, port = self.address
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=20) as response:
            return str(response.read().decode())

    def counted(self, name: str) -> int:
        """The sum of a metric over all shards. Raises FailedError if no shard has it."""
        found = re.findall(rf"^{name}\{{.*\}} (\S+)$", self.scrape(), re.MULTILINE)
        if not found:
            raise FailedError(f"no shard has a metric {name}")
        return sum(int(float(value)) for value in found)

    def held_by_shards(self, ports: set[int]) -> list[int]:
        """How many of the connections from these ports each shard holds."""
        return [
            sum(bool(one.raddr) and one.raddr.port in ports for one in psutil.Process(pid).net_connections("tcp4"))
            for pid in self.shard_pids
        ]

    def questions(self) -> tuple[int, int]:
        """How many statements PostgreSQL has run so far, and how many of them read pages of the log.

        Raises FailedError if PostgreSQL has written none to its log.
        """
        text = (self.directory / ".headrace" / "postgres.log").read_text(errors="replace")
        if not (statements := len(_STATEMENT.findall(text))):
            raise FailedError("PostgreSQL has written no statement to its log")
        return statements, text.count("from headrace.read_log(")

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """Within the block all processes of the node, and this one, may run on every core."""
        assert self._up is not None
        mine = os.sched_getaffinity(0)
        processes: dict[int, frozenset[int]] = {}
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's come and go
                processes[process.pid] = frozenset(process.cpu_affinity())
        cores.pin(0, cores.ALL)
        for pid in processes:
            cores.pin(pid, cores.ALL)
        try:
            yield
        finally:
            cores.pin(0, frozenset(mine))
            for process in self._processes():
                cores.pin(process.pid, processes.get(process.pid, cores.CLIENT))

    def pgbench(self) -> Path:
        """The program pgbench that belongs to its PostgreSQL. Raises FailedError where there is none."""
        beside = Path(self._postgres().exe()).with_name("pgbench")
        found = beside if beside.exists() else shutil.which("pgbench")
        if found is None:
            raise FailedError(
                f"there is no pgbench beside {str(beside.parent)!r} or on PATH; install PostgreSQL's programs"
            )
        return Path(found)

    def kill_postgres(self) -> None:
        """Kill its PostgreSQL, all processes at once; `up` starts it again."""
        master = self._postgres()
        for process in (master, *master.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _log_statements(self) -> None:
        # Only a superuser may set this, and headrace's processes connect as the database's owner.
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            connection.execute("alter system set log_statement = 'all'")
            connection.execute("select pg_reload_conf()")
            # Other sessions have it as soon as their next statement begins after the postmaster has passed it on.
            deadline = time.monotonic() + READY_S
            while connection.execute("show log_statement").fetchone() != ("all",):
                if time.monotonic() > deadline:
                    raise FailedError(f"PostgreSQL does not log statements within {READY_S:g} s")
                time.sleep(0.02)

    def _postgres(self) -> psutil.Process:
        assert self._up is not None
        (master,) = [p for p in psutil.Process(self._up.pid).children() if p.name() == "postgres"]
        return master

    def _processes(self) -> list[psutil.Process]:
        assert self._up is not None
        up = psutil.Process(self._up.pid)
        return [up, *up.children(recursive=True)]

    def _pids(self, module: str) -> list[int]:
        assert self._up is not None
        found = []
        for process in psutil.Process(self._up.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's come and go
                if module in process.cmdline()[:4]:
                    found.append(process.pid)
        return sorted(found)
