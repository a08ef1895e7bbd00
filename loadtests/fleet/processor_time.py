"""The processor time of a server with all of its processes, living and ended, in seconds since its start."""

import os
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CUTIME: Final = 13
"""The place of cutime and cstime, of children that have ended, behind the name in /proc/pid/stat (proc(5))."""


def seconds(pid: int) -> float:
    """Of the process and its children: those that live, and those that have ended and that it has waited for.

    The children's children do not count; neither PostgreSQL nor Redis has any. A child that ends meanwhile may count
    twice or not at all, with all of its time.
    """
    family = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        family += map(int, task.read_text().split())
    ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_CUTIME : _CUTIME + 2]
    return sum(map(int, ended)) / _TICKS_PER_S + sum(map(_own, family))


def _own(pid: int) -> float:
    """Of one process with all of its threads, 0 for one that is gone.

    It is taken from schedstat, in nanoseconds: utime and stime are in hundredths of a second, of which a backend that
    only answers pings has none for minutes.
    """
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(thread.read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9
