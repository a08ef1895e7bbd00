"""The runtime directory: where the processes of one node have their unix sockets.

A shard's socket is `<runtime directory>/<shard id>.sock` whatever Redis says: who can write into Redis must not decide
to whom clients are given.

<shard id>.sock                          where a shard accepts clients
<shard id>.prom, router-<n>.prom         where a process tells its metrics; see headrace/node/metrics_sockets.py
router-<n>.lock                          locked by the router worker that has the name
deployment                               the identity of the deployment; see headrace/node/deployment_identity.py
.<file>.<pid>                            a socket before it is put in place; see headrace/node/socket_file.py
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Final

from headrace.errors import SettingsError

LONGEST_PATH_BYTES: Final = 107
"""sun_path of unix(7) has 108 bytes, the last of them NUL."""
_LARGEST_PID: Final = 4_194_304
"""The largest process id of Linux; see proc(5)."""
# No path into another directory, and no hidden file, which is a socket that is not in place yet.
_PLAIN: Final = re.compile(r"[^./\0][^/\0]{0,199}")


def is_plain(shard_id: str) -> bool:
    """Whether a shard with this id has a socket in the runtime directory itself."""
    return _PLAIN.fullmatch(shard_id) is not None


def hand_off_socket(directory: Path, shard_id: str) -> Path:
    """Where the shard of this node with a plain id accepts clients: an absolute path."""
    return directory.absolute() / f"{shard_id}.sock"


def longest_path(directory: Path, process: str) -> Path:
    """The longest path of a socket that a process binds in the directory. process is a shard's id, or `router-<n>`."""
    return directory / f".{process}.sock.{_LARGEST_PID}"


def fits(directory: Path, process: str) -> bool:
    """Whether all sockets of the process can be bound in the directory: their paths are short enough."""
    return len(os.fsencode(longest_path(directory, process))) <= LONGEST_PATH_BYTES


def prepare(directory: Path, process: str) -> None:
    """Make the directory if there is none, mode 0700, and check that the process can have its sockets there.

    Raises SettingsError, which says why it cannot, and what to do.
    """
    if not fits(directory, process):
        raise SettingsError(
            f"HEADRACE_RUNTIME_DIR is {str(directory)!r}, with which socket paths such as "
            f"{str(longest_path(directory, process))!r} exceed {LONGEST_PATH_BYTES} bytes; choose a shorter one"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise SettingsError(
            f"HEADRACE_RUNTIME_DIR is {str(directory)!r}, which cannot be used: {error.strerror}; choose a directory "
            f"in which user {os.geteuid()} may make files"
        ) from error
