"""A program of ours that the supervisor runs: a command line, its output line by line, and how to see it is ready."""

import contextlib
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace.node.child_process import ended, spawn

_LONGEST_LINE_BYTES = 64 << 10
_LAST_LINES = 12


class Program:
    """A child in a process group of its own, whose death takes the whole group with it.

    Owned by the supervisor's loop, whose selector tells when there is output: the key's data is then to be called.
    is_ready is given the process id.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        directory: Path,
        selector: selectors.BaseSelector,
        on_line: Callable[[str], None],
        is_ready: Callable[[int], bool],
    ) -> None:
        self._argv = argv
        self._environ = environ
        self._directory = directory
        self._selector = selector
        self._on_line = on_line
        self._is_ready = is_ready
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._group: int | None = None

    def __repr__(self) -> str:
        return f"<Program {self._argv[-1]!r}, pid {self.pid}>"

    @property
    def pid(self) -> int | None:
        """The process id, of the last process if it has ended; None before the first launch."""
        return self._process.pid if self._process is not None else None

    def launch(self) -> None:
        """Start the process. Raises OSError if the system refuses."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = spawn(
                self._argv,
                death_signal=signal.SIGTERM,
                environ=self._environ,
                directory=self._directory,
                output=writing,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._group = self._process.pid
        self._last_lines.clear()
        Output(reading, self._selector, self._line)

    def poll(self) -> int | None:
        """The exit status; None while the process runs. What it left of its group is killed."""
        assert self._process is not None
        if self._process.returncode is None and self._group is not None and ended(self._process.pid):
            # Not collected yet, so that nobody else's group can have this number.
            self._signal_group(signal.SIGKILL)
            self._group = None
        return self._process.poll()

    def probe(self) -> bool:
        """Whether the program does its work."""
        assert self._process is not None
        return self._is_ready(self._process.pid)

    def terminate(self) -> None:
        """Ask the process for an orderly stop."""
        self.send(signal.SIGTERM)

    def hurry(self) -> None:
        """Kill the process and its group: what it keeps is elsewhere."""
        self._signal_group(signal.SIGKILL)

    kill = hurry

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def last_words(self) -> str:
        """Its last lines of output, for an error's message."""
        if not self._last_lines:
            return "it said nothing"
        return "its last lines:\n  " + "\n  ".join(self._last_lines)

    def _signal_group(self, number: signal.Signals) -> None:
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, number)

    def _line(self, line: str) -> None:
        self._last_lines.append(line)
        self._on_line(line)


class Output:
    """The reading end of a child's output, cut into lines; it is the data of its key in the selector.

    It closes itself when every process that writes to it has ended. Owned by the supervisor's loop.
    """

    def __init__(self, descriptor: int, selector: selectors.BaseSelector, on_line: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._selector = selector
        self._on_line = on_line
        self._rest = b""
        os.set_blocking(descriptor, False)
        selector.register(descriptor, selectors.EVENT_READ, self)

    def __call__(self) -> None:
        """There is something to read: pass on the lines that are complete."""
        try:
            data = os.read(self._descriptor, _LONGEST_LINE_BYTES)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._pass_on(line)
        if not data:
            self.close()

    def close(self) -> None:
        """Pass on an unfinished last line and forget the descriptor."""
        if self._rest:
            self._pass_on(self._rest)
        self._selector.unregister(self._descriptor)
        os.close(self._descriptor)

    def _pass_on(self, line: bytes) -> None:
        self._on_line(line.decode(errors="replace").rstrip("\r"))
