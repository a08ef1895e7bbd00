"""The supervisor's loop, over small programs of the shell."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.errors import UnavailableError
from headrace.up.program import Program
from headrace.up.restart_policy import Unit
from headrace.up.supervision_loop import Supervision
from tests.fixtures.waiting import wait_until

# Writes its name when told to stop, and stops.
POLITE = "trap 'echo {name} >> order; exit 0' TERM; touch {name}.up; while :; do sleep 0.02; done"
STUBBORN = "trap '' TERM; touch {name}.up; while :; do sleep 0.02; done"


class Node:
    """A supervision of shell scripts in a directory."""

    def __init__(self, supervision: Supervision, directory: Path) -> None:
        self.supervision = supervision
        self.directory = directory
        self.lines: list[str] = []

    def add(self, name: str, stage: int, script: str = POLITE, **options: float) -> Program:
        flag = self.directory / f"{name}.up"
        program = Program(
            ["sh", "-c", script.format(name=name)],
            environ={"PATH": os.defpath},
            directory=self.directory,
            selector=self.supervision.selector,
            on_line=self.lines.append,
            is_ready=lambda _: flag.exists(),
        )
        self.supervision.add(Unit(name, program, say=self.supervision.say, **options), stage)
        return program


@contextmanager
def supervised(directory: Path, said: list[str]) -> Iterator[Node]:
    with Supervision(said.append) as supervision:
        yield Node(supervision, directory)


def after(action: "threading.Timer | threading.Thread") -> None:
    action.daemon = True
    action.start()


def test_starts_and_stops_by_stage(tmp_path: Path) -> None:
    """All units become ready; at the end the highest stage is stopped first, and nothing is left."""
    with supervised(tmp_path, []) as node:
        programs = [node.add(name, stage) for stage, name in enumerate(["postgres", "shard", "router"])]
        assert node.supervision.run_until_ready()
        pids = [program.pid for program in programs]
    assert (tmp_path / "order").read_text().split() == ["router", "shard", "postgres"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_signal_ends_the_run(tmp_path: Path) -> None:
    """SIGTERM ends the loop, and a signal that came during the start ends that."""
    before = signal.getsignal(signal.SIGTERM)
    with supervised(tmp_path, []) as node:
        node.add("a", 0)
        assert node.supervision.run_until_ready()
        os.kill(os.getpid(), signal.SIGTERM)
        node.supervision.run()
        node.add("b", 0)
        assert not node.supervision.run_until_ready()
        assert not node.supervision.interruptibly(lambda: pytest.fail("we are stopping"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_hurries(tmp_path: Path) -> None:
    """A program that ignores the stop is killed at once when a second signal comes."""
    said: list[str] = []

    def interrupt_when_stopping() -> None:
        wait_until(lambda: "stopping" in said, "the stop has begun")
        os.kill(os.getpid(), signal.SIGINT)

    with supervised(tmp_path, said) as node:
        stubborn = node.add("a", 0, STUBBORN, stop_deadline_s=1000)
        assert node.supervision.run_until_ready()
        os.kill(os.getpid(), signal.SIGINT)
        node.supervision.run()
        after(threading.Thread(target=interrupt_when_stopping))
    assert stubborn.poll() == -signal.SIGKILL


def test_work_is_interrupted(tmp_path: Path) -> None:
    """Work that waits for something else is left when a signal comes."""
    with supervised(tmp_path, []) as node:
        after(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)))
        assert not node.supervision.interruptibly(threading.Event().wait)


def test_gives_up_a_start(tmp_path: Path) -> None:
    """What fails again and again before everything was ready ends the start, with its last lines."""
    said: list[str] = []
    with supervised(tmp_path, said) as node:
        node.add("fine", 0)
        assert node.supervision.run_until_ready()
        node.add("broken", 1, "echo no luck; exit 3")
        reason = r"broken \(pid \d+\) ended with exit status 3; its last lines:\n  no luck"
        with pytest.raises(UnavailableError, match=reason):
            node.supervision.run_until_ready()
    assert (tmp_path / "order").read_text() == "fine\n"
    assert len([line for line in said if "starting it again" in line]) == 3


def test_what_dies_takes_its_group_along(tmp_path: Path) -> None:
    """A killed program comes back, and the children it left are gone before."""
    said: list[str] = []
    script = "sleep 1000 & echo $! > child; touch {name}.up; wait"
    with supervised(tmp_path, said) as node:
        program = node.add("a", 0, script)
        assert node.supervision.run_until_ready()
        first, child = program.pid, int((tmp_path / "child").read_text())
        assert first is not None
        os.kill(first, signal.SIGKILL)
        (tmp_path / "a.up").unlink()
        wait_until(lambda: node.supervision._step() or said, "the death is noticed")
        assert node.supervision.run_until_ready()
        assert program.pid != first
        wait_until(lambda: b"sleep" not in command_of(child), "the child is gone")
    assert said[0].startswith(f"a (pid {first}) ended with SIGKILL; starting it again in 0.")


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_lines_are_passed_on(tmp_path: Path) -> None:
    """Output arrives line by line: both streams, unfinished last lines, and lines without an end in pieces."""
    script = "echo out; echo err >&2; head -c 200000 /dev/zero | tr '\\0' x; echo; printf unfinished; touch {name}.up"
    with supervised(tmp_path, []) as node:
        node.add("a", 0, script + "; sleep 1000")
        assert node.supervision.run_until_ready()
    assert node.lines[:2] == ["out", "err"]
    assert node.lines[-1] == "unfinished"
    assert "".join(node.lines[2:-1]) == "x" * 200_000


def test_hang_up_reloads(tmp_path: Path) -> None:
    """SIGHUP is passed on to the program that reloads, when no terminal was closed."""
    said: list[str] = []
    with supervised(tmp_path, said) as node:
        script = "trap 'touch reloaded' HUP; trap 'exit 0' TERM; touch {name}.up; while :; do sleep 0.02; done"
        program = node.add("a", 0, script)
        node.supervision._reloads = program
        assert node.supervision.run_until_ready()
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: node.supervision._step() or (tmp_path / "reloaded").exists(), "the program reloads")
    assert "reloading the router" in said


def test_unread_output_holds_nobody_up(tmp_path: Path) -> None:
    """While the loop is busy elsewhere a program may write a pipe full without losing a line."""
    script = f"{sys.executable} -c 'for i in range(9000): print(i)'; touch {{name}}.up; sleep 1000"
    with supervised(tmp_path, []) as node:
        node.add("a", 0, script)
        assert node.supervision.run_until_ready()
    assert node.lines == [str(i) for i in range(9000)]
