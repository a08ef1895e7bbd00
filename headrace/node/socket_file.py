"""The files of unix sockets in the runtime directory: how a process puts one in place, and whom it meets at another's.

A process binds its socket under a hidden name and renames the file, so that a path leads at every moment to a process
that accepts connections: the predecessor, then its successor. Each removes only the file that it has put there itself.

Redis must not decide to whom clients, and what clients are sent, are given. So a process connects only to paths in its
own runtime directory, and trusts a listener there that runs as its own user, as root, or as the owner of the runtime
directory, who could put another socket there anyway.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Final, Protocol

_CREDENTIALS: Final = struct.Struct("3i")  # pid, user, group


class Bindable(Protocol):
    """A unix socket, of the standard library or of gevent, that is not bound yet."""

    def bind(self, address: str, /) -> None:
        """Give it a path."""

    def listen(self, backlog: int, /) -> None:
        """Accept connections, and let so many wait."""


class SocketFile:
    """The file of a unix socket, which listens from now on; it takes the place of a file that is there.

    Its mode is 0600: a process that can connect can have clients served without a token. Raises OSError if the path
    cannot be bound.
    """

    def __init__(self, listening: Bindable, path: Path, *, backlog: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        # A process with our id may have been killed just before it renamed its own.
        fresh.unlink(missing_ok=True)
        listening.bind(str(fresh))
        # Before listen(), so that no other user can connect meanwhile.
        fresh.chmod(0o600)
        listening.listen(backlog)
        self._inode = fresh.stat().st_ino
        fresh.rename(path)

    def remove(self) -> None:
        """Remove the file, unless another process has put its own in its place."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def listener(connected: socket.socket) -> tuple[int, int]:
    """The process id, and the user id, that called listen() for the other end of a unix socket; see unix(7).

    Raises OSError.
    """
    pid, user, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, user


def require_trusted(connected: socket.socket, path: str | Path) -> None:
    """Raise PermissionError if a user whom this process does not trust listens at path, to which it has connected."""
    _, user = listener(connected)
    if user not in (os.geteuid(), 0) and user != os.stat(os.path.dirname(path)).st_uid:
        raise PermissionError(f"user {user} listens at {str(path)!r}, who is neither this process's nor root")
