"""The limits of this machine: open files, and connections that wait to be accepted."""

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headrace.doctor.finding import Finding, fail, ok, warn

FEW_DESCRIPTORS: Final = 4096
FEW_LEFT: Final = 20
"""Descriptors, of which a process that has no more cannot open what it loses: a connection to PostgreSQL, a channel."""
SPARE: Final = 200
"""What a process needs beside its clients."""
BACKLOG: Final = 4096
"""Of the router's listening socket."""
SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")


def open_files(pid: int | None) -> int:
    """The soft limit of a process, this one's for None. Raises OSError where the process is gone or another user's."""
    if pid is None:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return int(soft) if soft != "unlimited" else 1 << 30
    raise OSError(f"/proc/{pid}/limits has no limit of open files")


def open_now(pid: int) -> int:
    """How many files a process has open. Raises OSError where it is gone or another user's."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def descriptors(shards: Iterable[int], max_connections: int) -> Finding:
    """Whether shards (by pid; this process's limit where none runs here) may hold as many clients as they are to."""
    limits: list[int] = []
    for pid in shards:
        try:
            limits.append(open_files(pid))
            used = open_now(pid)
        except OSError:
            continue
        if used + FEW_LEFT > limits[-1]:
            found = f"pid {pid} has {used} files open, and may have {limits[-1]}"
            return fail("open files", found, "raise the limit (LimitNOFILE), or see what it holds: ls -l /proc/PID/fd")
    least = min(limits, default=open_files(None))
    whose = f"{len(limits)} shards here may open" if limits else "this shell may open"
    found = f"{whose} {least} files: {max(1, least - SPARE)} clients a shard"
    if max_connections and max_connections + SPARE > least:
        advice = (
            f"HEADRACE_MAX_CONNECTIONS is {max_connections}: raise the limit (LimitNOFILE) to {max_connections + SPARE}"
        )
        return warn("open files", found, advice)
    if least < FEW_DESCRIPTORS:
        return warn("open files", found, "raise the limit: LimitNOFILE of the unit, or ulimit -n, to 65536")
    return ok("open files", found)


def somaxconn(path: Path = SOMAXCONN) -> Finding:
    """Whether the kernel lets as many connections wait as may come at once after a restart."""
    try:
        most = int(path.read_text())
    except (OSError, ValueError) as error:
        return warn("somaxconn", f"cannot be read: {error}", "see that net.core.somaxconn is at least 4096")
    if most < BACKLOG:
        advice = f"sysctl -w net.core.somaxconn={BACKLOG}: when thousands reconnect at once, the rest is turned away"
        return warn("somaxconn", str(most), advice)
    return ok("somaxconn", str(most))
