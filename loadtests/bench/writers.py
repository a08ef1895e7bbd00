"""Writers: sessions of pgbench that run one statement after the other, each in a transaction, as fast as they can.

A client in Python would itself be the limit: 16 of its sessions use a whole core.
"""

import math
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loadtests.bench.clients import FailedError
from loadtests.bench.payload import DATA_BYTES
from loadtests.bench.transaction_log import TransactionLog

SESSIONS: Final = 16
STREAMS: Final = 1000
THREADS: Final = 2
WARM_S: Final = 3.0
"""Seconds at the beginning of a run that are not counted: caches fill, and one shard takes office."""
_TPS: Final = re.compile(r"^tps = ([\d.]+) \(without", re.MULTILINE)

PLAIN: Final = f"insert into public.bare (stream, data) values (:stream, repeat('x', {DATA_BYTES}));"
"""The cheapest durable write of this size, into the table that `BARE` makes."""
BARE: Final = """
    create table if not exists public.bare (
        id bigint generated always as identity primary key, stream text not null, data text not null
    )"""

NUMBER: Final = f":count::bigint * {SESSIONS} + :client_id::bigint"
"""SQL: a number that no other transaction of a run of `Writers.logged` has; it rises in each session."""
STAMP: Final = "(extract(epoch from statement_timestamp()) * 1000000)::bigint * 1000 - :clock_ns::bigint"
"""SQL: when the server received the statement, in nanoseconds of this machine's CLOCK_MONOTONIC."""
NUMBERED: Final = f"rpad('n=' || {NUMBER} || ' t=' || {STAMP} || ' ', {DATA_BYTES}, 'x')"
"""SQL: the data of an event that `Subscriber` checks, and whose latency it measures."""


def publishing(prefix: str) -> str:
    """The statement that publishes one event to one of the streams prefix0, prefix1 …"""
    return f"select headrace.publish('{prefix}' || :stream, repeat('x', {DATA_BYTES}));"


class Writers:
    """pgbench, and the database that it writes to. Owned by a scenario."""

    def __init__(self, pgbench: Path, database_url: str) -> None:
        self._pgbench = pgbench
        self._database_url = database_url

    def per_second(self, statement: str, seconds: float) -> float:
        """Run the statement in all sessions, `:stream` drawn uniformly; returns transactions a second.

        Raises FailedError.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(f"\\set stream random(0, {STREAMS - 1})\n{statement}\n")
            script.flush()
            argv = [str(self._pgbench), "--no-vacuum", "--protocol", "prepared", "--client", str(SESSIONS)]
            argv += ["--time", str(max(1, round(seconds))), "--file", script.name, self._database_url]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
        found = _TPS.search(done.stdout)
        if done.returncode or not found:
            raise FailedError(f"pgbench: {(done.stderr or done.stdout).strip()[-1000:]}")
        return float(found[1])

    def logged(self, statements: str, seconds: float, when_warm: Callable[[], None], rate: float = 0) -> TransactionLog:
        """Run statements, a transaction in each session, for WARM_S and then for seconds, which alone are counted.

        The statements may use NUMBER and STAMP. rate is how many transactions a second all sessions begin together, at
        random times; 0: as many as they can. when_warm is called when the warm-up ends. Raises FailedError if
        anything fails.
        """
        with tempfile.TemporaryDirectory(prefix="headrace-bench-log-") as directory, tempfile.TemporaryFile() as said:
            script = Path(directory) / "script.sql"
            script.write_text(f"\\set count :count + 1\n{statements}\n")
            logs = Path(directory) / "logs"
            logs.mkdir()
            argv = [str(self._pgbench), "--no-vacuum", "--protocol", "prepared", "--client", str(SESSIONS)]
            argv += ["--jobs", str(THREADS), "--time", str(math.ceil(WARM_S + seconds)), "--file", str(script)]
            argv += ["--log", "--log-prefix", str(logs / "log"), "--define", "count=0"]
            argv += ["--define", f"clock_ns={time.time_ns() - time.monotonic_ns()}"]
            argv += ["--rate", f"{rate:g}"] if rate else []
            # Before pgbench connects, so that its time ends behind the window's.
            since_s = time.time() + WARM_S
            process = subprocess.Popen([*argv, self._database_url], stdout=said, stderr=subprocess.STDOUT)
            try:
                time.sleep(WARM_S)
                when_warm()
                process.wait(seconds + 120)
            except subprocess.TimeoutExpired:
                raise FailedError(f"pgbench did not end within {seconds + 120:g} s") from None
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                said.seek(0)
                raise FailedError(f"pgbench: {said.read().decode(errors='replace').strip()[-1000:]}")
            return TransactionLog.read(logs, since_s, since_s + seconds)
