"""The other processes of this node: where the socket of each is, and who may listen there.

Who can write into Redis must not decide to whom clients, and what they are sent, are given. So a shard's socket is
`<runtime directory>/<shard id>.sock` whatever the directory says, and whoever listens there runs as this user, as root,
or as the owner of the runtime directory, who could put another socket there anyway.
"""

import os
import re
import socket
import struct
from pathlib import Path
from typing import Final

_CREDENTIALS: Final = struct.Struct("3i")  # pid, user, group
# No name of another directory, nor one of the hidden files that are sockets in the making.
_PLAIN: Final = re.compile(r"[^./\0][^/\0]{0,199}")


def is_plain(shard_id: str) -> bool:
    """Whether a shard with this id has a socket in the runtime directory itself."""
    return _PLAIN.fullmatch(shard_id) is not None


def hand_off_socket(runtime_dir: Path, shard_id: str) -> Path:
    """Where the shard of this node with a plain id takes clients: an absolute path."""
    return runtime_dir.absolute() / f"{shard_id}.sock"


def listener(connected: socket.socket) -> tuple[int, int]:
    """The process and the user that called listen() for the other end of a unix socket; see unix(7). Raises OSError."""
    pid, user, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, user


def require_trusted(connected: socket.socket, path: str | Path) -> None:
    """Raise PermissionError if a user whom this process need not trust listens at path, where it has connected."""
    _, user = listener(connected)
    if user not in (os.geteuid(), 0) and user != os.stat(os.path.dirname(path)).st_uid:
        raise PermissionError(f"user {user} listens at {str(path)!r}, who is neither this process's nor root")
