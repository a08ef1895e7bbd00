"""What the tortured processes use over time: descriptors, memory, greenlets, connections to PostgreSQL.

Greenlets are counted inside each shard: `predicates`, which every shard loads, starts `count_greenlets`.
"""

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import gevent
import greenlet

VARIABLE: Final = "TORTURE_FOOTPRINT"
"""The environment variable that names the directory into which the shards write their counts."""
INTERVAL_S: Final = 5.0


def count_greenlets() -> None:
    """From now on write, every few seconds, how many greenlets this process has."""
    directory = os.environ.get(VARIABLE)
    if directory:
        gevent.spawn(_count, Path(directory) / f"greenlets-{os.getpid()}")


def _count(file: Path) -> None:
    while True:
        alive = sum(isinstance(one, greenlet.greenlet) and not one.dead for one in gc.get_objects())
        fresh = file.with_suffix(".fresh")
        fresh.write_text(str(alive))
        fresh.replace(file)
        gevent.sleep(INTERVAL_S)


@dataclass(frozen=True, slots=True)
class Growth:
    """One quantity of one process: medians over the first and the last third of its life, after its first tenth."""

    process: str
    quantity: str
    early: float
    late: float


class Footprints:
    """Samples by process. Owned by one greenlet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._samples: dict[tuple[str, str], list[float]] = {}

    def take(self, processes: Mapping[str, int], backends: int | None) -> None:
        """Note what each process (by name) uses now; a process that has just ended is passed over."""
        for name, pid in processes.items():
            try:
                fields = Path(f"/proc/{pid}/statm").read_text().split()
                found = {
                    "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
                    "resident MB": int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
                }
            except (FileNotFoundError, ProcessLookupError):
                continue
            counted = self._directory / f"greenlets-{pid}"
            if counted.exists():
                found["greenlets"] = int(counted.read_text())
            for quantity, value in found.items():
                self._samples.setdefault((f"{name} ({pid})", quantity), []).append(value)
        if backends is not None:
            self._samples.setdefault(("PostgreSQL", "connections of shards"), []).append(backends)

    def growth(self) -> list[Growth]:
        """The growth of every process that has enough samples."""
        found = []
        for (process, quantity), all_values in sorted(self._samples.items()):
            values = all_values[len(all_values) // 10 :]
            third = len(values) // 3
            if third >= 3:
                found.append(Growth(process, quantity, median(values[:third]), median(values[-third:])))
        return found
