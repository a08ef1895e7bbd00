"""A child process that does not outlive the process that started it, even if that one is killed with SIGKILL.

`spawn` runs this file as a small launcher in the child. The launcher changes the user, asks the kernel for a
signal at its parent's death (prctl(2), PR_SET_PDEATHSIG), and becomes the program with exec; the process id stays.
`preexec_fn` would not do: Python code between fork and exec may deadlock when the parent has threads.
The kernel forgets the request when credentials change, so the user is changed first. The parent may have died before
the request, so its id is compared afterwards. As a launcher this file is run alone (`python -I -S`) and imports nothing
of headrace.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
CANNOT_RUN = 127  # the shells' exit status for a program that cannot be executed


def spawn(
    argv: Sequence[str],
    *,
    death_signal: signal.Signals,
    environ: Mapping[str, str],
    directory: Path,
    output: IO[bytes] | int,
    account: tuple[int, int] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start argv in a session of its own, so that a terminal's Ctrl-C does not reach it, and return it at once.

    The child gets death_signal when the calling THREAD ends: this MUST be called by a thread that lives as long as the
    process, in practice the main thread, or the child is stopped too early. output takes what the child writes to
    stdout and stderr; its stdin is empty. With an account (user id, group id) the child runs as that user, without
    further groups; only root may ask for that. If the program cannot be executed, the child writes the reason to
    output and exits with 127.
    """
    user, group = account or (-1, -1)
    launcher = [
        sys.executable,
        "-I",
        "-S",
        __file__,
        str(os.getpid()),
        str(int(death_signal)),
        str(user),
        str(group),
    ]
    return subprocess.Popen(
        [*launcher, *argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env=dict(environ),
        start_new_session=True,
    )


def ended(process_id: int) -> bool:
    """Whether a child of this process has ended. The child is not collected, so its id and its group's stay taken."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process_id, options) is not None


def describe_exit(status: int) -> str:
    """An exit status, as `subprocess` gives it, in words: `exit status 1` or `SIGKILL`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _become(parent: int, death_signal: int, user: int, group: int, argv: list[str]) -> None:
    if user != -1:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended already")
    # Python ignores these two signals for itself, and a signal that is ignored stays so across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(argv[0], argv)  # noqa: S606  # to become the program is what this is for


if __name__ == "__main__":
    try:
        _become(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    except OSError as error:
        sys.stderr.write(f"cannot start {' '.join(sys.argv[5:6])}: {error}\n")
        sys.exit(CANNOT_RUN)
