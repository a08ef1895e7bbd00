"""The faults: each is injected, lasts, and is healed. A fault that may end clients' connections notes that with `fell`.

Faults of one lane follow one another; faults of two lanes may happen at the same time.
"""

import contextlib
import random
import resource
import signal
import time
from collections.abc import Callable
from typing import Any, Final

import psutil
import psycopg
import redis

from loadtests.torture.bus_faults import BusForge, BusSqueeze, BusTrouble
from loadtests.torture.fault import Fault
from loadtests.torture.machine_faults import ClockBack, DiskFull
from loadtests.torture.operator_faults import Drain, Move, Rebalance, Restart, Scale
from loadtests.torture.publishers import Publishing
from loadtests.torture.system import System


class ShardKill(Fault):
    """kill -9 of a shard."""

    lane = "service"

    def inject(self, lasts_s: float) -> str:
        """Kill one of those that live."""
        if not (shards := self.system.shards()):
            return "none lives"
        shard = self.chance.choice(sorted(shards))
        _signal(shards[shard], signal.SIGSTOP)
        self.system.fell(shard, shards[shard], "killed")
        self.system.kill(shards[shard])
        return shard


class ShardStop(Fault):
    """SIGTERM to a shard, as in a restart: its clients are owed a goodbye."""

    lane = "service"

    def inject(self, lasts_s: float) -> str:
        """Stop one of those that live."""
        if not (shards := self.system.shards()):
            return "none lives"
        shard = self.chance.choice(sorted(shards))
        _signal(shards[shard], signal.SIGSTOP)
        # A client that does not take the goodbye at once is just closed; for the judge both are `stopped`.
        self.system.fell(shard, shards[shard], "stopped")
        self.system.kill(shards[shard], signal.SIGTERM)
        _signal(shards[shard], signal.SIGCONT)
        return shard


class ShardPause(Fault):
    """SIGSTOP of a shard."""

    lane = "service"
    lasts_s = (2.0, 10.0)

    def inject(self, lasts_s: float) -> str:
        """Stop one of those that live."""
        self._pid = 0
        if not (shards := self.system.shards()):
            return "none lives"
        shard = self.chance.choice(sorted(shards))
        self._pid = shards[shard]
        _signal(self._pid, signal.SIGSTOP)
        self.system.fell(shard, self._pid, "paused", lasts_s + 1)
        return shard

    def heal(self) -> None:
        """Let it go on."""
        if self._pid:
            _signal(self._pid, signal.SIGCONT)


class ShardFiles(Fault):
    """No further file descriptor for a shard, and its connections to PostgreSQL ended, which it must open anew."""

    lane = "service"
    lasts_s = (2.0, 5.0)

    def inject(self, lasts_s: float) -> str:
        """Lower the limit of a process that serves already: with no descriptor left it could not even start."""
        self._process = None
        if not (shards := self.system.serving()):
            return "none serves"
        shard = self.chance.choice(sorted(shards))
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(shards[shard])
            self._limits = process.rlimit(resource.RLIMIT_NOFILE)
            process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), self._limits[1]))
            self._process = process
        _terminate_backends(self.system, f"headrace {shard} %")
        return shard

    def heal(self) -> None:
        """Raise the limit again."""
        with contextlib.suppress(psutil.Error):
            if self._process is not None:
                self._process.rlimit(resource.RLIMIT_NOFILE, self._limits)


class RouterWorkerKill(Fault):
    """kill -9 of a router worker."""

    lane = "service"

    def inject(self, lasts_s: float) -> str:
        """Kill one; gunicorn's master makes another."""
        workers = self.system.router_workers()
        if not workers:
            return "none lives"
        worker = self.chance.choice(workers)
        self.system.kill(worker)
        return f"pid {worker}"


class RouterMasterKill(Fault):
    """kill -9 of gunicorn's master."""

    lane = "service"

    def inject(self, lasts_s: float) -> str:
        """Kill it; the supervisor starts another."""
        master = self.system.router_master()
        if master is None:
            return "none lives"
        self.system.kill(master)
        return f"pid {master}"


class RedisFlush(Fault):
    """FLUSHALL."""

    lane = "service"

    def inject(self, lasts_s: float) -> str:
        """Empty it."""
        with redis.Redis.from_url(self.system.redis.url, socket_timeout=5) as client:
            client.flushall()
        return ""


class RedisRestart(Fault):
    """Redis is killed, away for a while, and comes back empty."""

    lane = "service"
    lasts_s = (0.5, 5.0)

    def inject(self, lasts_s: float) -> str:
        """Kill it."""
        self.system.redis.kill()
        return ""

    def heal(self) -> None:
        """Start it, and lead the wire to its port."""
        self.system.redis.start()
        self.system.bus.target = self.system.redis.port


class RedisPause(Fault):
    """SIGSTOP of Redis."""

    lane = "service"
    lasts_s = (1.0, 6.0)

    def inject(self, lasts_s: float) -> str:
        """Stop it."""
        if pid := self.system.redis.pid:
            _signal(pid, signal.SIGSTOP)
        return ""

    def heal(self) -> None:
        """Let it go on."""
        if pid := self.system.redis.pid:
            _signal(pid, signal.SIGCONT)


class ListenTerminate(Fault):
    """pg_terminate_backend of the LISTEN connections of all shards, or of one."""

    def inject(self, lasts_s: float) -> str:
        """End them."""
        shards = sorted(self.system.shards())
        which = self.chance.choice([*shards, "%", "%"])
        return f"{_terminate_backends(self.system, f'headrace {which} listener')} of {which}"


class ReadersTerminate(Fault):
    """pg_terminate_backend of the shards' readers, in the middle of whatever they read."""

    def inject(self, lasts_s: float) -> str:
        """End them."""
        return str(_terminate_backends(self.system, "headrace % reader %"))


class PostgresStop(Fault):
    """PostgreSQL is stopped (fast) and started again."""

    lasts_s = (0.3, 4.0)

    def inject(self, lasts_s: float) -> str:
        """Stop it; returns when it has ended."""
        self.system.postgres.stop()
        return ""

    def heal(self) -> None:
        """Start it, and lead the wires to its port."""
        self.system.postgres.start()
        for name in ("reads", "listen"):
            self.system.wires[name].target = self.system.postgres.port


class PostgresKill(PostgresStop):
    """kill -9 of all of PostgreSQL's processes; it recovers at the next start."""

    def inject(self, lasts_s: float) -> str:
        """Kill them all."""
        processes = self.system.postgres_processes()
        self.system.postgres.kill()
        for pid in processes[1:]:
            _signal(pid, signal.SIGKILL)
        return f"{len(processes)} processes"


class PostgresPause(Fault):
    """SIGSTOP of all of PostgreSQL's processes: it neither answers nor closes."""

    lasts_s = (3.0, 15.0)

    def inject(self, lasts_s: float) -> str:
        """Stop them."""
        self._stopped = self.system.postgres_processes()
        for pid in self._stopped:
            _signal(pid, signal.SIGSTOP)
        return f"{len(self._stopped)} processes"

    def heal(self) -> None:
        """Let them go on."""
        for pid in reversed(self._stopped):
            _signal(pid, signal.SIGCONT)


class WireCut(Fault):
    """The wires between headrace and PostgreSQL are cut and stay so; publishers are not affected."""

    lasts_s = (0.2, 4.0)

    def inject(self, lasts_s: float) -> str:
        """Cut one or all."""
        self._names = self.chance.choice((["reads"], ["listen"], ["reads", "listen"]))
        for name in self._names:
            self._hit(name)
        return " and ".join(self._names)

    def _hit(self, name: str) -> None:
        self.system.wires[name].cut()

    def heal(self) -> None:
        """Mend them."""
        for name in self._names:
            self.system.wires[name].mend()


class WireSilent(WireCut):
    """The wires drop everything in silence; what was connected stays silent for ever."""

    lasts_s = (1.0, 8.0)

    def _hit(self, name: str) -> None:
        self.system.wires[name].silence()


class SlotsExhausted(Fault):
    """All of PostgreSQL's connection slots are taken by others, just when headrace needs new ones."""

    lasts_s = (1.0, 5.0)

    def __init__(self, system: System, publishing: Publishing, chance: random.Random) -> None:
        super().__init__(system, publishing, chance)
        self._held: list[psycopg.Connection[Any]] = []

    def inject(self, lasts_s: float) -> str:
        """Take the free slots, end headrace's connections and take their slots; then those that headrace got back."""
        self._fill()
        _terminate_backends(self.system, "headrace %", self._held[0] if self._held else None)
        for _ in range(5):
            self._fill()
            time.sleep(0.02)
        return f"{len(self._held)} slots"

    def _fill(self) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while len(self._held) < 200:
                self._held.append(self.system.connect("slots"))

    def heal(self) -> None:
        """Give them back."""
        while self._held:
            self._held.pop().close()


class Retention(Fault):
    """Events of the streams `brief:*` are kept for a moment only, so that retention passes clients' cursors."""

    lane = "log"
    lasts_s = (2.0, 8.0)

    def inject(self, lasts_s: float) -> str:
        """Keep little."""
        keep = self.chance.choice(("10 milliseconds", "500 milliseconds", "2 seconds"))
        keep_count = self.chance.choice((None, None, 3))
        self._set(keep, keep_count)
        return f"{keep}, at most {keep_count or 'any number'}"

    def heal(self) -> None:
        """Keep all."""
        self._set("1 day", None)

    def _set(self, keep: str, keep_count: int | None) -> None:
        for _ in range(200):
            try:
                with self.system.connect() as connection:
                    connection.execute("select headrace.set_retention('brief:*', %s::interval, %s)", [keep, keep_count])
                return
            except psycopg.Error:
                time.sleep(0.2)  # another fault is at PostgreSQL


class Predicates(Fault):
    """Events with labels whose predicates raise, are slow, or are later than their deadline."""

    lane = "log"
    lasts_s = (2.0, 8.0)

    def inject(self, lasts_s: float) -> str:
        """Have publishers use these labels."""
        self.publishing.extreme = ("raises", "slow", "late")
        return ""

    def heal(self) -> None:
        """No more of them."""
        self.publishing.extreme = ()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        psutil.Process(pid).send_signal(number)


def _terminate_backends(system: System, name: str, over: psycopg.Connection[Any] | None = None) -> int:
    query = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like %s"
    try:
        if over is not None:
            return over.execute(query, [name]).rowcount
        with system.connect() as connection:
            return connection.execute(query, [name]).rowcount
    except psycopg.Error:
        return 0  # another fault is at PostgreSQL


FAULTS: Final[dict[str, Callable[[System, Publishing, random.Random], Fault]]] = {
    "shard-kill": ShardKill,
    "shard-stop": ShardStop,
    "shard-pause": ShardPause,
    "shard-files": ShardFiles,
    "drain": Drain,
    "move": Move,
    "rebalance": Rebalance,
    "restart": Restart,
    "scale": Scale,
    "router-worker-kill": RouterWorkerKill,
    "router-master-kill": RouterMasterKill,
    "redis-flush": RedisFlush,
    "redis-restart": RedisRestart,
    "redis-pause": RedisPause,
    "bus-trouble": BusTrouble,
    "bus-squeeze": BusSqueeze,
    "bus-forge": BusForge,
    "listen-terminate": ListenTerminate,
    "readers-terminate": ReadersTerminate,
    "postgres-stop": PostgresStop,
    "postgres-kill": PostgresKill,
    "postgres-pause": PostgresPause,
    "wire-cut": WireCut,
    "wire-silent": WireSilent,
    "slots-exhausted": SlotsExhausted,
    "disk-full": DiskFull,
    "clock-back": ClockBack,
    "retention": Retention,
    "predicates": Predicates,
}
"""Every fault by the name that --faults takes."""
