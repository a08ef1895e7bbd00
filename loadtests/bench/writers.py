"""Writers: sessions of pgbench that run one statement after the other, each in a transaction, as fast as they can.

A client in Python would itself be the limit: 16 of its sessions use a whole core.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from loadtests.bench.clients import FailedError
from loadtests.bench.payload import DATA_BYTES

SESSIONS: Final = 16
STREAMS: Final = 1000
_TPS: Final = re.compile(r"^tps = ([\d.]+) \(without", re.MULTILINE)

PLAIN: Final = f"insert into public.bare (stream, data) values (:stream, repeat('x', {DATA_BYTES}));"
"""The cheapest durable write of this size, into the table that `BARE` makes."""
BARE: Final = """
    create table if not exists public.bare (
        id bigint generated always as identity primary key, stream text not null, data text not null
    )"""


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
            raise FailedError(f"pgbench: {done.stderr.strip()[-1000:]}")
        return float(found[1])
