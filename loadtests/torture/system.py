"""The tortured system: PostgreSQL and Redis of its own, the wires to PostgreSQL, and `headrace up` as users run it."""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from headrace.node.child_process import spawn
from headrace.up.shards import listens
from loadtests.torture import footprint
from loadtests.torture.bus_wire import BusWire
from loadtests.torture.judge import Death
from loadtests.torture.machine import Machine, Postgres, Redis
from loadtests.torture.plan import Plan
from loadtests.torture.wire import Wire

NODE: Final = "t"
_COMMONPLACE: Final = ("outcome=accepted", "client taken", "client closed")
_HANDED: Final = re.compile(r" hand-off .*\boutcome=accepted .*\brequest_id=(\S+) shard=(\S+)")
_ENDED: Final = re.compile(r"^up\s+\| (\S+) \(pid (\d+)\) (ended with|was not ready)")
_ALARMING: Final = (
    "could not handle",
    "could not write to",
    "[critical",
    "Error handling request",
    "Exception in worker",
)
_ROOT: Final = Path(__file__).parents[2]


class System:
    """All processes. Owned by the run; faults act on them, and note here which processes they have killed."""

    def __init__(self, plan: Plan, command: str = "", log: Path | None = None) -> None:
        self.plan = plan
        self._log = log
        self.secret = secrets.token_urlsafe(24)
        self.lines: list[tuple[float, str]] = []
        self.shard_of: dict[str, str] = {}
        self.deaths: list[Death] = []
        self.killed: set[int] = set()
        self.alarms: list[tuple[float, str]] = []
        self.unasked: list[tuple[float, str]] = []
        self.address = ("127.0.0.1", 0)
        self.closing = False
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-torture-"))
        self.directory.chmod(0o711)
        self.machine = Machine(self.directory)
        self.postgres = Postgres(self.directory, self.machine)
        self.redis = Redis(self.directory, self.machine)
        self._command = shlex.split(command) or [sys.executable, "-P", "-m", "headrace.cli"]
        self._up: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()

    # -- from start to end

    def start(self) -> None:
        """Start everything; returns when the system serves clients."""
        self.postgres.start()
        self.redis.start()
        self.wires: dict[str, Wire] = {name: Wire(self.postgres.port) for name in ("reads", "listen")}
        self.bus = self.wires["bus"] = BusWire(self.redis.port, self.plan.random("bus"))
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        environ |= self.plan.settings | self.machine.environ
        environ |= {
            "HEADRACE_DATABASE_URL": self.wires["reads"].url(self.postgres.url),
            "HEADRACE_LISTEN_DATABASE_URL": self.wires["listen"].url(self.postgres.url),
            "HEADRACE_REDIS_URL": self.bus.url(self.redis.url),
            "HEADRACE_SECRET": self.secret,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            footprint.VARIABLE: str(self.directory),
        }
        reading, writing = os.pipe()
        arguments = ["up", "--port", "0", "--shards", str(self.plan.shards), "--router-workers", "2", "--node", NODE]
        self._up = spawn(
            [*self._command, *arguments],
            death_signal=signal.SIGTERM,
            environ=environ,
            directory=self.directory,
            output=writing,
        )
        os.close(writing)
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        if not self._ready.wait(60) or self._up.poll() is not None:
            raise RuntimeError("`headrace up` did not get ready:\n" + "\n".join(line for _, line in self.lines[-30:]))

    def stop(self) -> None:
        """End all processes and remove the directory."""
        self.closing = True
        if self._log is not None:
            self._log.write_text("".join(f"{at:.3f} {line}\n" for at, line in self.lines))
        for process in self.postgres_processes():
            _send(process, signal.SIGCONT)
        for pid in self.shards().values():
            _send(pid, signal.SIGCONT)
        if self._up is not None and self._up.poll() is None:
            self._up.terminate()
            try:
                self._up.wait(20)
            except subprocess.TimeoutExpired:
                self._up.kill()
        for wire in getattr(self, "wires", {}).values():
            wire.close()
        self.redis.stop()
        self.postgres.hurry()
        self.postgres.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, name: str = "torture", timeout_s: int = 10) -> psycopg.Connection[Any]:
        """A connection to PostgreSQL that does not go over the wires."""
        return psycopg.connect(
            self.postgres.url, autocommit=True, connect_timeout=timeout_s, application_name=name, prepare_threshold=None
        )

    # -- its processes

    def shards(self) -> dict[str, int]:
        """The shards' ids with their processes."""
        found = {}
        for process in self._children():
            words = _words(process)
            if (
                "headrace.shard" in words
                and "--id" in words
                and "headrace/node/child_process.py" not in " ".join(words)
            ):
                found[words[words.index("--id") + 1]] = process.pid
        return dict(sorted(found.items()))

    def serving(self) -> dict[str, int]:
        """The shards that take clients now; the others are starting, or have just ended."""
        run = self.directory / ".headrace" / "run"
        return {shard: pid for shard, pid in self.shards().items() if listens(run / f"{shard}.sock", pid)}

    def router_master(self) -> int | None:
        """gunicorn's master."""
        masters = [p for p in self._children() if any("gunicorn" in word for word in _words(p))]
        return next((p.pid for p in masters if p.ppid() == self._up_pid), None)

    def router_workers(self) -> list[int]:
        """gunicorn's workers."""
        master = self.router_master()
        try:
            return sorted(child.pid for child in psutil.Process(master).children()) if master else []
        except psutil.NoSuchProcess:
            return []

    def postgres_processes(self) -> list[int]:
        """The postmaster first, then its children."""
        try:
            main = psutil.Process(self.postgres.pid) if self.postgres.pid else None
            return [main.pid, *(child.pid for child in main.children(recursive=True))] if main else []
        except psutil.NoSuchProcess:
            return []

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, and note that the process ends because of it."""
        self.killed.add(pid)
        _send(pid, number)

    def fell(self, shard: str, pid: int, how: str, lasts_s: float = 0.0) -> None:
        """Note for the judge that a shard's process (stopped in this moment) is `killed`, `stopped` or `paused`."""
        now = time.monotonic()
        try:
            connections = psutil.Process(pid).net_connections("inet4")
            ports = frozenset(c.raddr.port for c in connections if c.laddr.port == self.address[1] and c.raddr)
        except psutil.Error:
            ports = frozenset()
        self.deaths.append(Death(shard, now, how, ports, now + lasts_s))

    def headrace(self, *arguments: str) -> str:
        """Run a headrace command as an operator does; returns arguments, status and, if it failed, its last line."""
        try:
            done = self.run(*arguments)
        except subprocess.TimeoutExpired:
            return f"{' '.join(arguments)} (given up after 60 s)"
        words = (done.stdout + done.stderr).strip().splitlines()
        return f"{' '.join(arguments)} ({done.returncode}{': ' + words[-1][:100] if done.returncode and words else ''})"

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a headrace command as on another machine, without this environment.

        Raises subprocess.TimeoutExpired after a minute.
        """
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")} | {"PYTHONPATH": str(_ROOT)}
        argv = [*self._command, *arguments]
        return subprocess.run(
            argv, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    def around(self, at: float, request_id: str = "", process: str = "", within_s: float = 2.0) -> list[str]:
        """Log lines of all processes, or of one, around that time; and lines about the request at any time."""
        chosen = []
        for said, line in self.lines:
            ours = bool(request_id) and f"request_id={request_id}" in f"{line} "
            near = abs(said - at) <= within_s and not any(word in line for word in _COMMONPLACE)
            if ours or (near and line.startswith(process)):
                chosen.append(f"{said - at:+7.2f} s  {line[:240]}")
        return chosen

    @property
    def _up_pid(self) -> int:
        assert self._up is not None
        return self._up.pid

    def _children(self) -> Sequence[psutil.Process]:
        try:
            return psutil.Process(self._up_pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _listen(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb", buffering=0) as pipe:
            rest = b""
            while data := _read(pipe.fileno()):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._line(line.decode(errors="replace"))
        self._ready.set()
        if not self.closing:
            self.unasked.append((time.monotonic(), "`headrace up` has ended by itself"))

    def _line(self, line: str) -> None:
        now = time.monotonic()
        self.lines.append((now, line))
        if found := _HANDED.search(line):
            self.shard_of[found[1]] = found[2]
        elif (found := _ENDED.match(line)) and int(found[2]) not in self.killed and not self.closing:
            self.unasked.append((now, line))
        elif any(word in line for word in _ALARMING):
            self.alarms.append((now, line))
        elif line.startswith("headrace ready http://"):
            host, _, port = line.removeprefix("headrace ready http://").rpartition(":")
            self.address = host, int(port)
            self._ready.set()


def _read(descriptor: int) -> bytes:
    # Under gevent a pipe must not block the process.
    os.set_blocking(descriptor, False)
    while True:
        try:
            return os.read(descriptor, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return b""


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
