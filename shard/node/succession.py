"""Succession under systemd: `systemctl reload` replaces a shard's process, and no client reconnects.

systemd has one process of a unit for its main one, and a reload is a command beside it:

    ExecReload ── replace() ──► the successor, started beside the old process, under the same id
    systemd ◄── READY=1, MAINPID=successor ──┘ serves (see sd_notify(3)); the unit now lives as long as it
    the old process ── its connections ──► the successor; then it ends, and with it replace()

The old process finds its successor in the directory and gives its connections away: `shard/node/registration.py`.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from headrace.errors import UnavailableError
from headrace.up.shards import listens, require_meeting

START_DEADLINE_S: Final = 30.0
HAND_OVER_DEADLINE_S: Final = 50.0
"""Together less than systemd's patience with a reload, which is TimeoutStartSec, 90 s."""
_POLL_S: Final = 0.05


def announce(environ: Mapping[str, str]) -> None:
    """Tell the service manager, if there is one, that this process serves and is the unit's main one."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # "@" stands for the NUL of an abstract address.
    target = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notification, suppress(OSError):
        notification.sendto(f"READY=1\nMAINPID={os.getpid()}\n".encode(), target)


def replace(shard_id: str, path: Path, predecessor: int, meet: Callable[[], object]) -> None:
    """Start a successor of this process, whose socket is at path, and return when it has everything. Yields.

    The successor stays when this process ends. meet raises DirectoryUnavailableError while the two processes could not
    hear of each other. Raises UnavailableError, then or if the successor could not be started, and everything is as
    before; or if the predecessor had not ended in time, and goes on handing over.
    """
    require_meeting(shard_id, meet)
    successor = subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace.shard", "--id", shard_id], start_new_session=True
    )
    give_up = time.monotonic() + START_DEADLINE_S
    while not listens(path, successor.pid):
        if (status := successor.poll()) is not None:
            raise UnavailableError(f"the successor of {shard_id} ended with {status}; its log says why")
        if time.monotonic() >= give_up:
            successor.kill()
            successor.wait()
            raise UnavailableError(f"the successor of {shard_id} did not serve within {START_DEADLINE_S:g} s")
        time.sleep(_POLL_S)
    give_up = time.monotonic() + HAND_OVER_DEADLINE_S
    while _lives(predecessor):
        if time.monotonic() >= give_up:
            raise UnavailableError(
                f"pid {predecessor} still has connections after {HAND_OVER_DEADLINE_S:g} s; see `headrace status`"
            )
        time.sleep(_POLL_S)


def _lives(pid: int) -> bool:
    try:
        # The state stands behind the name, which may contain anything; see proc(5). Z waits to be collected.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
