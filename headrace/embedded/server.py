"""What the embedded servers share: a place, a password, a port, and a process with a beginning and an end.

Of a server called `name`, started in a directory, these files outlive it (all mode 0600):

    <name>.password    made once
    <name>.port        chosen once; chosen again only if another program listens there
    <name>.location    the home of the data if it had to be elsewhere (see location.py)
    <name>.log         what the server says, appended; moved to <name>.log.1 at a start when it is long

A start is `launch`, which may take seconds when the data are made, and then `probe` until it is true. A supervisor
does something else between the probes; a caller that wants to wait calls `start`, which does both.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from headrace.embedded import free_port as ports
from headrace.embedded.account import Account
from headrace.embedded.data_home import find_home
from headrace.errors import EmbeddedServerError
from headrace.node import private_file
from headrace.node.child_process import describe_exit, spawn

logger = logging.getLogger(__name__)

_LOG_BYTES = 8 << 20
_LEFTOVER_DEADLINE_S = 20.0
_POLL_INTERVAL_S = 0.02
_WRONG = re.compile(r"error\b|fatal\b|panic\b|could not|cannot|can't", re.IGNORECASE)


class EmbeddedServer(ABC):
    """A server process below a directory.

    Owned by one thread, which MUST live as long as the process (the main thread): the server is stopped when the
    thread that launched it ends. Two processes MUST NOT use one directory at a time.
    """

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]  # the orderly stop; also sent by the kernel when we die
    hurry_signal: ClassVar[signal.Signals]  # the quickest stop that harms nothing
    ready_deadline_s: ClassVar[float]
    stop_deadline_s: ClassVar[float]

    def __init__(self, directory: Path, *, binaries: Path | None = None) -> None:
        self.directory = directory.absolute()
        self.log = self.directory / f"{self.name}.log"
        self._binaries = binaries
        self._account: Account | None = None
        self._home: Path | None = None
        self._port: int | None = None
        self._password = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._refusal = ""  # what a client that asked for an answer was told last

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid is not None else "not running"
        return f"<{type(self).__name__} {str(self.directory)!r}, {state}>"

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; known, and fixed, once the server has been launched."""
        if self._port is None:
            raise EmbeddedServerError(f"{self.name} has no port yet; start it first")
        return self._port

    @property
    def home(self) -> Path:
        """The directory that holds the data; known once the server has been launched."""
        if self._home is None:
            raise EmbeddedServerError(f"{self.name} has no place yet; start it first")
        return self._home

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, with the password."""

    def start(self) -> None:
        """Start the server unless it runs, and return when it answers.

        Raises EmbeddedServerError, naming the log and its last line, if that does not come to pass.
        """
        try:
            self.launch()
            deadline = time.monotonic() + self.ready_deadline_s
            while not self.probe():
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"{self.name} does not answer within {self.ready_deadline_s:g} s; {self.last_words()}"
                    )
                time.sleep(_POLL_INTERVAL_S)
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start the process unless it runs, without waiting until it answers.

        Takes some seconds when data are made, or when an earlier server of a killed parent still shuts down.
        Raises EmbeddedServerError if that fails.
        """
        if self.pid is not None:
            return
        try:
            account = self._settle()
            self._await_leftovers()
            self._claim_port()
            argv = self._prepare(account)
            self._rotate_log()
            with self._open_log() as log:
                self._process = spawn(
                    argv,
                    death_signal=self.death_signal,
                    environ=self._environ(),
                    directory=self.home,
                    output=log,
                    account=account.ids,
                )
        except OSError as error:
            raise EmbeddedServerError(f"{self.name} could not be started: {error}") from error
        self._stopping = False

    def probe(self) -> bool:
        """Whether the server answers its clients. Raises EmbeddedServerError if it has ended."""
        status = self.poll()
        if status is not None:
            raise EmbeddedServerError(f"{self.name} ended ({describe_exit(status)}); {self.last_words()}")
        return self._answers()

    def poll(self) -> int | None:
        """The exit status of the process, None while it runs. MUST NOT be called before `launch`."""
        assert self._process is not None
        return self._process.poll()

    def terminate(self) -> None:
        """Ask for an orderly stop, without waiting."""
        self._stopping = True
        self._send(self.death_signal)

    def hurry(self) -> None:
        """Ask for the quickest stop that harms no data, without waiting."""
        self._send(self.hurry_signal)

    def kill(self) -> None:
        """Kill the process as a crash would, and wait for its end; the next start recovers."""
        self._send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """Stop the server and wait for its end; harmless when it does not run. Data, port and password stay."""
        if self.pid is not None:
            self.terminate()
            for quicker in (self.hurry, self.kill):
                assert self._process is not None
                try:
                    self._process.wait(self.stop_deadline_s)
                    break
                except subprocess.TimeoutExpired:
                    logger.warning("%s (pid %s) does not stop within %g s", self.name, self.pid, self.stop_deadline_s)
                    quicker()
        self._stopping = True

    def last_words(self) -> str:
        """What it last told who asked it, its log's name, and its last lines with an error, for an error's message."""
        asked = f"who asks it is told: {self._refusal!r}; " if self._refusal else ""
        line = ""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
            # After the reason a server may say what followed from it, and that it cleans up.
            wrong = [line for line in lines if _WRONG.search(line)]
            line = " … ".join(wrong[-2:] or lines[-1:])
        return asked + (f"its log {str(self.log)!r} ends: {line!r}" if line else f"its log {str(self.log)!r} is empty")

    @abstractmethod
    def _prepare(self, account: Account) -> list[str]:
        """Make what is missing for a start; return the command line, absolute."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether a client can connect and get an answer now; within a second. If not, keeps why in _refusal."""

    @abstractmethod
    def _marker(self) -> str | None:
        """A text that only the command lines of this server's own processes contain; None before a first start."""

    def _environ(self) -> dict[str, str]:
        # Nothing of ours: neither secrets nor PGDATA and its like are the server's business.
        return {"PATH": os.defpath, "LC_ALL": "C"}

    def _settle(self) -> Account:
        """Find the account, the home and the password, and make what there is not yet."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            self.directory.chmod(0o711)
        if self._account is None:
            account = Account.for_servers()
            self._home = find_home(self.directory, self.name, account)
            with contextlib.suppress(FileNotFoundError):
                owner = (self._home / "data").stat().st_uid
                if owner not in (0, account.uid):
                    # Data made by another user (say, before somebody tried `sudo`) stay that user's.
                    if os.geteuid() != 0:
                        raise EmbeddedServerError(
                            f"the data in {str(self._home)!r} belong to user {Account.of(owner).name!r}; run "
                            "headrace as that user or as root, or in another directory"
                        )
                    account = Account.of(owner)
            self._account = account
        self._password = private_file.read(self._file("password")) or ""
        if not self._password:
            if (self.home / "data").exists():
                raise EmbeddedServerError(
                    f"the data of {self.name} in {str(self.home)!r} have lost their password "
                    f"{str(self._file('password'))!r}; put it back, or remove the data to start without any"
                )
            self._password = secrets.token_urlsafe(24)
            private_file.write(self._file("password"), f"{self._password}\n")
        return self._account

    def _claim_port(self) -> None:
        """Take the port of the last start if it is free, else another.

        A server that crashed keeps its port even if that is taken, since clients have the URL: it fails, and is
        tried again, until the port is free.
        """
        if self._port is not None and not self._stopping:
            return
        kept = private_file.read(self._file("port"))
        if kept is not None and kept.isascii() and kept.isdigit() and ports.is_free(int(kept)):
            self._port = int(kept)
            return
        self._port = ports.choose()
        if kept is not None:
            logger.warning("port %s of %s is taken by another program; it moves to %d", kept, self.name, self._port)
        private_file.write(self._file("port"), f"{self._port}\n")

    def _await_leftovers(self) -> None:
        """Wait until no process of an earlier server is left; a killed parent's server is still shutting down.

        Raises EmbeddedServerError, naming a process, if that takes too long.
        """
        deadline = time.monotonic() + _LEFTOVER_DEADLINE_S
        while left := list(self._leftovers()):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"an earlier {self.name} in {str(self.directory)!r} is still running (pid {left[0]}); stop it first"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _leftovers(self) -> Iterator[int]:
        # Command lines are readable for everybody, unlike what else /proc tells about another user's process.
        marker = self._marker()
        for entry in Path("/proc").iterdir() if marker else ():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if marker is not None and marker in line:
                        yield int(entry.name)

    def _file(self, suffix: str) -> Path:
        return self.directory / f"{self.name}.{suffix}"

    def _rotate_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_BYTES:
                self.log.replace(self.log.with_name(f"{self.log.name}.1"))

    @contextlib.contextmanager
    def _open_log(self) -> "Iterator[int]":
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
