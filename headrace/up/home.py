"""The directory `.headrace` of one `headrace up`.

    .gitignore      keeps all of this out of a repository
    lock            holds the process id; locked (flock) while that `up` runs, removed when it ends
    secret          made once, when HEADRACE_SECRET is not set
    env             variables, `NAME=value` one a line, for other commands run beside this directory
    made            those of them that `up` has made itself and was not given, so that the next `up` knows them again
    run/            the shards' sockets, mode 0700
    run.location    where the sockets are instead, when their paths would be too long here
    postgres*, redis*    the embedded servers (see headrace/embedded/server.py)

All files are readable by their owner alone.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from headrace.errors import AlreadyRunningError, UsageError
from headrace.node import private_file, runtime_directory


class Home:
    """The directory and its files. Owned by the main thread of `headrace up`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._elsewhere: Path | None = None

    def __repr__(self) -> str:
        return f"<Home {str(self.path)!r}>"

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock; make the directory if needed. Yields whether an earlier `up` was killed, and left its lock.

        Raises AlreadyRunningError, naming its process id, if another `up` runs here, and UsageError if the directory
        cannot be written.
        """
        with self._usable():
            if not self.path.exists():
                self.path.mkdir(parents=True)
                self.path.chmod(0o711)  # a server's own user has to pass through
            # An application's repository, in which `up` is run, must not take in secrets and data.
            if not (ignore := self.path / ".gitignore").exists():
                private_file.write(ignore, "*\n")
            abandoned, descriptor = self._lock()
        try:
            yield abandoned
        finally:
            (self.path / "lock").unlink(missing_ok=True)
            os.close(descriptor)

    def secret(self) -> str:
        """The kept secret; made at the first call."""
        file = self.path / "secret"
        with self._usable():
            kept = private_file.read(file)
            if kept is None:
                kept = secrets.token_urlsafe(32)
                private_file.write(file, f"{kept}\n")
        return kept

    def write_environ(self, made: Mapping[str, str], given: Mapping[str, str]) -> None:
        """Write the file `env`: variables that this `up` has made, and those that it was given."""
        with self._usable():
            for name, values in (("made", made), ("env", {**made, **given})):
                text = "".join(f"{variable}={value}\n" for variable, value in values.items())
                private_file.write(self.path / name, text)

    def without_made(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment less what an earlier `up` here made and wrote into `env`, which a shell may have read."""
        with self._usable():
            made = (private_file.read(self.path / "made") or "").splitlines()
        return {name: value for name, value in environ.items() if f"{name}={value}" not in made}

    def runtime_dir(self, longest_process: str, chosen: str = "") -> Path:
        """The directory for sockets of processes whose names are at most as long as longest_process; made, mode 0700.

        Raises UsageError if `chosen`, the user's own, is too long for them, or cannot be written.
        """
        directory = self.path.parent / chosen if chosen else self.path / "run"
        if not chosen and not runtime_directory.fits(directory, longest_process):
            directory = self._short_runtime_dir()
        runtime_directory.prepare(directory, longest_process)
        return directory

    def remove_sockets(self, paths: list[Path]) -> None:
        """Remove these files, which processes of an `up` that has ended may have left."""
        for path in paths:
            path.unlink(missing_ok=True)
        if self._elsewhere is not None:
            with contextlib.suppress(OSError):
                self._elsewhere.rmdir()
                (self.path / "run.location").unlink(missing_ok=True)

    def _short_runtime_dir(self) -> Path:
        record = self.path / "run.location"
        with self._usable():
            recorded = private_file.read(record)
            if recorded is not None and _is_private(Path(recorded)):
                self._elsewhere = Path(recorded)
            else:
                self._elsewhere = Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp"))  # short is the point
                private_file.write(record, f"{self._elsewhere}\n")
        return self._elsewhere

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn an OSError, as of a full disk or of somebody else's directory, into a UsageError that names it."""
        try:
            yield
        except OSError as error:
            raise UsageError(f"cannot use {str(self.path)!r}: {error.strerror}; run headrace elsewhere") from error

    def _lock(self) -> tuple[bool, int]:
        file = self.path / "lock"
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # An `up` that ended between the two calls has removed the file that is locked now.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), file.stat()):
                        abandoned = bool(os.read(descriptor, 20))
                        os.truncate(descriptor, 0)
                        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                        return abandoned, descriptor
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode().strip() or "unknown"
                os.close(descriptor)
                raise AlreadyRunningError(
                    f"another `headrace up` (pid {holder}) runs in {str(self.path.parent)!r}; stop it first or use "
                    "another directory"
                ) from None
            os.close(descriptor)


def _is_private(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
