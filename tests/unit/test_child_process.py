"""Children that do not outlive their parent. Processes, but no services."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.node.child_process import describe_exit, ended, spawn
from tests.fixtures.up import lives
from tests.fixtures.waiting import DEADLINE_S, wait_until


def run(*argv: str) -> tuple[int, str]:
    child = spawn(argv, death_signal=signal.SIGTERM, environ={"A": "1"}, directory=Path("/"), output=subprocess.PIPE)
    output, _ = child.communicate(timeout=DEADLINE_S)
    return child.returncode, output.decode()


def test_becomes_the_program() -> None:
    """The child is the program: its id, its environment and directory, and no signal ignored that was not."""
    ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn"))
    status, output = run("sh", "-c", "echo $$ $A $PWD; cat /proc/$$/stat; grep SigIgn /proc/$$/status")
    assert status == 0
    variables, stat, ignored = output.splitlines()
    pid = variables.split()[0]
    assert variables == f"{pid} 1 /"
    assert stat.startswith(f"{pid} (sh) ")
    # Python ignores SIGPIPE and SIGXFSZ for itself, which a program must not inherit; what else we ignore, it may.
    assert int(ignored.split()[1], 16) & ~int(ours.split()[1], 16) == 0
    assert not int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGTERM - 1))


def test_missing_program_is_told() -> None:
    """A program that does not exist is named where its output would be."""
    status, output = run("/no/such/program")
    assert status == 127
    assert output == "cannot start /no/such/program: [Errno 2] No such file or directory\n"


def test_ended_does_not_collect() -> None:
    """An ended child is seen as such while its id is still its own."""
    child = spawn(["true"], death_signal=signal.SIGTERM, environ={"PATH": os.defpath}, directory=Path("/"), output=-3)
    wait_until(lambda: ended(child.pid), "the child has ended")
    assert Path(f"/proc/{child.pid}").exists()
    assert child.wait() == 0


def test_dies_with_its_parent() -> None:
    """When the parent is killed, the child gets its signal."""
    script = (
        "import signal; from pathlib import Path; from headrace.node.child_process import spawn\n"
        "child = spawn(['sleep', '1000'], death_signal=signal.SIGTERM, environ={'PATH': '/usr/bin:/bin'},"
        " directory=Path('/'), output=-3)\n"
        "print(child.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        command = Path(f"/proc/{pid}/cmdline")
        wait_until(lambda: command.read_bytes() == b"sleep\0001000\0", "the launcher has become sleep")
        parent.kill()
    wait_until(lambda: not lives(pid), "the child has ended")


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit status 0"), (3, "exit status 3"), (-9, "SIGKILL"), (-250, "signal 250")]
)
def test_exit_in_words(status: int, words: str) -> None:
    """An exit status reads as words."""
    assert describe_exit(status) == words
