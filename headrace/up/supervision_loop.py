"""The loop of `headrace up`: it starts units, starts again what dies, and ends them in order.

One thread. The loop waits for a signal, for a child's output, or until a unit has something due; then it asks every
unit what to do. Signal handlers only record and wake it.
"""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from headrace.errors import UnavailableError
from headrace.up.program import Output, Program
from headrace.up.restart_policy import Unit, UnitState

_LONGEST_WAIT_S = 5.0
_SHORT_WAIT_S = 0.05
_DRAINING_S = 1.0
_PATIENCE = 3  # failures in a row, before everything has been ready once, that end the start
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Supervision:
    """The units of one node and the loop over them.

    Owned by the main thread. As a context it takes over the signals, and at its end no unit is left running.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.selector = selectors.DefaultSelector()
        self._units: list[tuple[int, Unit]] = []  # each with its stage
        self._reloads: Program | None = None
        self._stops = 0  # how often we were asked to stop
        self._reload_asked = False
        self._raising = False
        self._terminal = False
        self._hurry = False
        self.reload: Callable[[], None] = lambda: None  # what SIGHUP asks for, beside the program that reloads
        self.extra: Callable[[], bool] = lambda: False  # called each turn; whether it wants to be called again soon
        self._waking: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> "Supervision":
        self._waking = reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        self.selector.register(reading, selectors.EVENT_READ, lambda: _drain(reading))
        self._old_wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._record) for number in (*_STOPS, signal.SIGHUP, signal.SIGCHLD)
        }
        # Started with nohup, we are meant to outlive the terminal.
        self._terminal = _has_terminal() and self._old_handlers[signal.SIGHUP] is not signal.SIG_IGN
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop_all()
        finally:
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_wakeup)
            for key in list(self.selector.get_map().values()):
                if isinstance(key.data, Output):
                    key.data.close()
            self.selector.close()
            for end in self._waking or ():
                end.close()

    def add(self, unit: Unit, stage: int, *, reloads: Program | None = None) -> None:
        """Supervise one more unit. It relies on those of lower stages, so it is stopped before them.

        `reloads` is the program that SIGHUP is passed on to.
        """
        self._units.append((stage, unit))
        self._reloads = reloads or self._reloads

    def interruptibly(self, work: Callable[[], object]) -> bool:
        """Do work that may take long; false if we were asked to stop, before it or meanwhile."""
        try:
            self._raising = True
            if self._stops:
                return False
            work()
        except _Interrupted:
            return False
        finally:
            self._raising = False
        return True

    def run_until_ready(self) -> bool:
        """Run until every unit is ready; false if we were asked to stop before.

        Raises UnavailableError if a unit fails repeatedly: at this stage nothing is lost by giving up, and the reason
        is on the screen.
        """
        while not self._stops:
            self._step()
            if all(unit.state is UnitState.READY for _, unit in self._units):
                return True
            for _, unit in self._units:
                if unit.failures >= _PATIENCE:
                    self._drain_output()
                    words = unit.program.last_words()
                    told = words in unit.failure
                    raise UnavailableError(f"{unit.name} {unit.failure}" + ("" if told else f"; {words}"))
            self._wait()
        return False

    def run(self) -> None:
        """Run until we are asked to stop."""
        while not self._stops:
            self._step()
            self._wait()

    def _step(self) -> None:
        now = time.monotonic()
        for _, unit in self._units:
            unit.step(now)
        if self._reload_asked:
            self._reload_asked = False
            self._hang_up()
        self._hurry = self.extra()
        # Those that were replaced or removed.
        self._units = [(stage, unit) for stage, unit in self._units if unit.state is not UnitState.ENDED]

    def _wait(self) -> None:
        """Wait for the next event: a signal, output, or that a unit has something due."""
        now = time.monotonic()
        waits = [wait_s for _, unit in self._units if (wait_s := unit.wait_s(now)) is not None]
        longest_s = _SHORT_WAIT_S if self._hurry else _LONGEST_WAIT_S
        self._pump(0 if self._stops else min([longest_s, *waits]))

    def _pump(self, wait_s: float) -> bool:
        """Wait for input and handle it; false if there was none."""
        ready = self.selector.select(wait_s)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def _drain_output(self) -> None:
        """Pass on what programs that have ended wrote last. Bounded, since others may go on writing."""
        deadline = time.monotonic() + _DRAINING_S
        while self._pump(0) and time.monotonic() < deadline:
            pass

    def _hang_up(self) -> None:
        """SIGHUP is a terminal that was closed, if we had one and it is gone; else the request to reload."""
        if self._terminal and not _has_terminal():
            self._stops += 1
        elif self._reloads is not None:
            self.say("reloading the router")
            self._reloads.send(signal.SIGHUP)
            self.reload()

    def _stop_all(self) -> None:
        """Stop the units, stage by stage, the highest first. A further request, when one led here, hurries."""
        if self._units:
            self.say("stopping")
        hurried_at = 2 if self._stops else 1
        for stage in sorted({stage for stage, _ in self._units}, reverse=True):
            units = [unit for of_stage, unit in self._units if of_stage == stage]
            while any(unit.state is not UnitState.ENDED for unit in units):
                now = time.monotonic()
                for unit in units:
                    if self._stops >= hurried_at:
                        unit.hurry(now)
                    else:
                        unit.stop(now)
                    unit.step(now)
                waits = [wait_s for unit in units if (wait_s := unit.wait_s(now)) is not None]
                if waits:
                    self._pump(min(waits))
        self._drain_output()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number in _STOPS:
            self._stops += 1
            if self._raising:
                self._raising = False
                raise _Interrupted
        elif number == signal.SIGHUP:
            self._reload_asked = True


class _Interrupted(BaseException):
    """We were asked to stop while something else than the loop was waiting."""


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal; one that was closed cannot be opened any more."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _drain(waking: socket.socket) -> None:
    with suppress(BlockingIOError):
        waking.recv(4096)
