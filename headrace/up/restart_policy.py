"""What the supervisor knows and decides about one program: when to start it, when to give up, when to kill it."""

import enum
import random
from collections.abc import Callable
from typing import Protocol

from headrace.errors import HeadraceError
from headrace.node.child_process import describe_exit


class Runnable(Protocol):
    """Something with a process: an embedded server or a program of ours."""

    @property
    def pid(self) -> int | None:
        """The process id, None if there is no process."""

    def launch(self) -> None:
        """Start the process. Raises HeadraceError or OSError."""

    def poll(self) -> int | None:
        """The exit status, None while the process runs."""

    def probe(self) -> bool:
        """Whether it does its work. May raise HeadraceError if it has ended."""

    def terminate(self) -> None:
        """Ask for an orderly stop."""

    def hurry(self) -> None:
        """Ask for the quickest stop that harms no data."""

    def kill(self) -> None:
        """Kill it."""

    def last_words(self) -> str:
        """What it said last."""


class UnitState(enum.Enum):
    """Where a unit is in its life."""

    WAITING = "waiting"  # for its time to be started
    STARTING = "starting"  # runs, but does not answer yet
    READY = "ready"
    RETIRING = "retiring"  # hands over to a successor and ends by itself
    STOPPING = "stopping"
    ENDED = "ended"


class Unit:
    """One program and the policy for it: `step`, called with the time, does what is due.

    A program that ends, or does not become ready within start_deadline_s, is started again after a wait that doubles
    from FIRST_WAIT_S to at most LONGEST_WAIT_S, and shrinks to the first again when the program has been ready for
    STEADY_S. Waits are drawn from their upper half, since what dies together must not come back together.

    Owned by the supervisor's loop.
    """

    FIRST_WAIT_S = 0.2
    LONGEST_WAIT_S = 30.0
    STEADY_S = 10.0
    HURRIED_DEADLINE_S = 5.0

    def __init__(
        self,
        name: str,
        program: Runnable,
        *,
        say: Callable[[str], None],
        start_deadline_s: float = 30.0,
        stop_deadline_s: float = 10.0,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name = name
        self.program = program
        self.state = UnitState.WAITING
        self.failures = 0  # deaths since the program was last steady
        self.failure = ""  # the last one, in words
        self._say = say
        self._start_deadline_s = start_deadline_s
        self._stop_deadline_s = stop_deadline_s
        self._draw = draw
        self._due = float("-inf")  # when the state's next decision falls due
        self._hurried = False
        self._pid: int | None = None  # of the last process, which may have ended

    def __repr__(self) -> str:
        return f"<Unit {self.name!r} {self.state.value}, pid {self.program.pid}, {self.failures} failures>"

    def step(self, now: float) -> None:
        """Do what is due at the time now, in seconds of a monotonic clock."""
        if self.state is UnitState.WAITING:
            if now >= self._due:
                self._launch(now)
        elif self.state is UnitState.STOPPING:
            self._see_stopping(now)
        elif self.state is UnitState.RETIRING:
            self._see_retiring(now)
        elif self.state is not UnitState.ENDED:
            self._see_running(now)

    def wait_s(self, now: float) -> float | None:
        """Seconds until `step` must be called again though no signal arrives; None if nothing will fall due."""
        if self.state is UnitState.ENDED or (self.state is UnitState.READY and not self.failures):
            return None
        wait_s = max(0.0, self._due - now)
        # Whether a program answers is found out by asking.
        return min(wait_s, 0.05) if self.state is UnitState.STARTING else wait_s

    def stop(self, now: float) -> None:
        """Begin the orderly stop."""
        if self.state is UnitState.WAITING:
            self.state = UnitState.ENDED
        elif self.state in (UnitState.STARTING, UnitState.READY, UnitState.RETIRING):
            self.state = UnitState.STOPPING
            self._due = now + self._stop_deadline_s
            self.program.terminate()

    def retire(self, now: float, deadline_s: float) -> None:
        """Expect the program to end by itself, and stop it if it has not within deadline_s.

        Whatever ends it, it is not started again. A second call puts the deadline off.
        """
        if self.state in (UnitState.STARTING, UnitState.READY, UnitState.RETIRING):
            self.state = UnitState.RETIRING
            self._due = now + deadline_s
        else:
            self.stop(now)

    def stay(self, now: float) -> None:
        """Take a retirement back, if the program still runs."""
        if self.state is UnitState.RETIRING:
            self.state = UnitState.READY
            self._due = now + self.STEADY_S

    def hurry(self, now: float) -> None:
        """Stop without further patience."""
        self.stop(now)
        if self.state is UnitState.STOPPING and not self._hurried:
            self._hurried = True
            self._due = now + self.HURRIED_DEADLINE_S
            self.program.hurry()

    def _launch(self, now: float) -> None:
        try:
            self.program.launch()
        except (HeadraceError, OSError) as error:
            self._failed(now, f"cannot be started: {error}")
        else:
            self.state = UnitState.STARTING
            self._due = now + self._start_deadline_s
            self._pid = self.program.pid

    def _see_running(self, now: float) -> None:
        status = self.program.poll()
        if status is not None:
            self._failed(now, f"(pid {self._pid}) ended with {describe_exit(status)}")
        elif self.state is UnitState.STARTING:
            if self._answers():
                self.state = UnitState.READY
                self._due = now + self.STEADY_S
            elif now >= self._due:
                self.program.kill()
                self._failed(now, f"(pid {self._pid}) was not ready within {self._start_deadline_s:g} s")
        elif now >= self._due:
            self.failures = 0

    def _see_retiring(self, now: float) -> None:
        status = self.program.poll()
        if status is not None:
            self.state = UnitState.ENDED
            if status:
                self._say(f"{self.name} (pid {self._pid}) ended with {describe_exit(status)} while handing over")
        elif now >= self._due:
            self._say(f"{self.name} (pid {self._pid}) has not handed over in time; stopping it")
            self.stop(now)

    def _see_stopping(self, now: float) -> None:
        if self.program.poll() is not None:
            self.state = UnitState.ENDED
        elif now >= self._due:
            if self._hurried:
                self.program.kill()
            else:
                self._say(f"{self.name} does not stop within {self._stop_deadline_s:g} s; killing it")
                self.hurry(now)

    def _answers(self) -> bool:
        try:
            return self.program.probe()
        except HeadraceError:
            return False  # it has ended; the next poll tells how

    def _failed(self, now: float, how: str) -> None:
        wait_s = min(self.LONGEST_WAIT_S, self.FIRST_WAIT_S * 2.0 ** min(self.failures, 30))
        wait_s = self._draw(wait_s / 2, wait_s)
        self.failures += 1
        self.failure = how
        self.state = UnitState.WAITING
        self._due = now + wait_s
        self._say(f"{self.name} {how}; starting it again in {wait_s:.1f} s")
