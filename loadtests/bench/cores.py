"""Which processor core runs what: the server under test alone on one, everything else on the other."""

import contextlib
import os
from pathlib import Path
from typing import Final

ALL: Final = frozenset(os.sched_getaffinity(0))
_ORDERED: Final = sorted(ALL)
SERVER: Final = frozenset(_ORDERED[:1])
CLIENT: Final = frozenset(_ORDERED[1:2] or _ORDERED)


def pin(pid: int, cores: frozenset[int]) -> None:
    """Bind all threads of a process (0: this one) to the cores, also those it starts later.

    A dead process is passed over.
    """
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid or 'self'}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scheduled_seconds(pid: int) -> float:
    """The same to the nanosecond, of the main thread alone; see the kernel's documentation of scheduler statistics."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def resident_bytes(pid: int) -> int:
    """The resident set of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
