"""What the supervisor decides about one program, with a scripted program and a clock that the test moves."""

import signal

import pytest

from headrace.errors import EmbeddedServerError
from headrace.up.restart_policy import Unit, UnitState


class Scripted:
    """A program that does what the test says and remembers what it was asked."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.status: int | None = None
        self.ready = False
        self.refusal: Exception | None = None
        self.asked: list[str] = []

    def launch(self) -> None:
        self.asked.append("launch")
        if self.refusal is not None:
            raise self.refusal
        self.pid, self.status = 100 + self.asked.count("launch"), None

    def poll(self) -> int | None:
        return self.status

    def probe(self) -> bool:
        if self.status is not None:
            raise EmbeddedServerError
        return self.ready

    def terminate(self) -> None:
        self.asked.append("terminate")

    def hurry(self) -> None:
        self.asked.append("hurry")

    def kill(self) -> None:
        self.asked.append("kill")

    def last_words(self) -> str:
        return "bye"


def make(program: Scripted, said: list[str] | None = None) -> Unit:
    say = (said if said is not None else []).append
    return Unit("shard-0", program, say=say, start_deadline_s=30, stop_deadline_s=10, draw=lambda low, high: high)


def started(program: Scripted, said: list[str] | None = None) -> Unit:
    unit = make(program, said)
    program.ready = True
    unit.step(0)
    unit.step(0)
    assert unit.state is UnitState.READY
    return unit


def test_becomes_ready() -> None:
    """A unit launches its program at once, asks it until it answers, and then waits for nothing."""
    program = Scripted()
    unit = make(program)
    assert unit.wait_s(0) == 0
    unit.step(0)
    assert (unit.state, program.asked) == (UnitState.STARTING, ["launch"])
    unit.step(1)
    assert unit.state is UnitState.STARTING
    assert unit.wait_s(1) == 0.05
    program.ready = True
    unit.step(2)
    assert unit.state is UnitState.READY
    assert unit.wait_s(2) is None


def test_starts_again_what_died() -> None:
    """A death is told with name, pid, status and delay; the program comes back after the delay, not before."""
    program, said = Scripted(), list[str]()
    unit = started(program, said)
    program.status = -signal.SIGKILL
    unit.step(5)
    assert unit.state is UnitState.WAITING
    assert said == ["shard-0 (pid 101) ended with SIGKILL; starting it again in 0.2 s"]
    assert unit.wait_s(5) == pytest.approx(0.2)
    unit.step(5.1)
    assert program.asked == ["launch"]
    unit.step(5.3)
    assert program.asked == ["launch", "launch"]


def test_waits_double_to_a_limit() -> None:
    """Deaths in a row are answered by waits that double up to the longest."""
    program = Scripted()
    unit = make(program)
    now, waits = 0.0, []
    for _ in range(12):
        unit.step(now)
        program.status = 1
        unit.step(now)
        wait_s = unit.wait_s(now)
        assert wait_s is not None
        waits.append(round(wait_s, 6))
        now += wait_s
    assert waits[:5] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert waits[-1] == Unit.LONGEST_WAIT_S


def test_waits_are_spread() -> None:
    """A wait is drawn from its upper half."""
    program = Scripted()
    program.refusal = OSError("no memory")
    drawn: list[tuple[float, float]] = []
    unit = Unit("u", program, say=lambda text: None, draw=lambda low, high: drawn.append((low, high)) or low)
    unit.step(0)
    assert drawn == [(0.1, 0.2)]
    assert unit.wait_s(0) == 0.1


def test_steady_program_is_forgiven() -> None:
    """After having been ready for a while, a program's next death counts as its first."""
    program = Scripted()
    unit = started(program)
    program.status = 1
    unit.step(1)
    unit.step(2)
    unit.step(2)
    assert (unit.state, unit.failures) == (UnitState.READY, 1)
    assert unit.wait_s(2) == Unit.STEADY_S
    unit.step(2 + Unit.STEADY_S)
    assert unit.failures == 0
    assert unit.wait_s(20) is None


def test_failed_launch_is_a_death() -> None:
    """A program that cannot even be launched is tried again, and its error is kept in words."""
    program, said = Scripted(), list[str]()
    program.refusal = EmbeddedServerError("no such program")
    unit = make(program, said)
    unit.step(0)
    assert (unit.state, unit.failures) == (UnitState.WAITING, 1)
    assert unit.failure == "cannot be started: no such program"
    program.refusal = None
    unit.step(1)
    assert unit.state is UnitState.STARTING


def test_late_program_is_killed() -> None:
    """A program that runs but does not become ready in time is killed and started again."""
    program, said = Scripted(), list[str]()
    unit = make(program, said)
    unit.step(0)
    unit.step(29.9)
    assert program.asked == ["launch"]
    unit.step(30)
    assert program.asked == ["launch", "kill"]
    assert unit.state is UnitState.WAITING
    assert said == ["shard-0 (pid 101) was not ready within 30 s; starting it again in 0.2 s"]


def test_stops_in_order() -> None:
    """A stop is asked for once and is over when the program has ended."""
    program = Scripted()
    unit = started(program)
    unit.stop(1)
    unit.stop(2)
    unit.step(2)
    assert (unit.state, program.asked) == (UnitState.STOPPING, ["launch", "terminate"])
    assert unit.wait_s(2) == 9
    program.status = 0
    unit.step(3)
    assert unit.state is UnitState.ENDED
    unit.step(100)
    assert program.asked == ["launch", "terminate"]


def test_stop_has_a_deadline() -> None:
    """What does not stop in time is hurried, and what does not even react to that is killed."""
    program, said = Scripted(), list[str]()
    unit = started(program, said)
    unit.stop(0)
    unit.step(9.9)
    assert program.asked == ["launch", "terminate"]
    unit.step(10)
    assert program.asked == ["launch", "terminate", "hurry"]
    assert said == ["shard-0 does not stop within 10 s; killing it"]
    unit.step(10 + Unit.HURRIED_DEADLINE_S)
    assert program.asked[-1] == "kill"


def test_hurries_once() -> None:
    """A second request to stop does not wait for the deadline."""
    program = Scripted()
    unit = started(program)
    unit.stop(0)
    unit.hurry(1)
    unit.hurry(2)
    assert program.asked == ["launch", "terminate", "hurry"]


def test_waiting_unit_stops_at_once() -> None:
    """A program that is waiting to be started again is not started any more after a stop."""
    program = Scripted()
    unit = started(program)
    program.status = 1
    unit.step(1)
    unit.stop(1)
    unit.step(100)
    assert (unit.state, program.asked) == (UnitState.ENDED, ["launch"])


def test_who_retires_is_not_started_again() -> None:
    """A program that is to hand over may end as it likes, and its end is final."""
    program, said = Scripted(), list[str]()
    unit = started(program, said)
    unit.retire(1, 300)
    program.status = -9
    unit.step(2)
    unit.step(100)
    assert (unit.state, program.asked) == (UnitState.ENDED, ["launch"])
    assert said == ["shard-0 (pid 101) ended with SIGKILL while handing over"]


def test_a_retirement_is_put_off_and_taken_back() -> None:
    """The deadline counts from the last call, and who stays is supervised as before."""
    program = Scripted()
    unit = started(program)
    unit.retire(0, 10)
    unit.retire(5, 10)
    unit.step(14)
    assert unit.state is UnitState.RETIRING
    unit.stay(14)
    program.status = 1
    unit.step(15)
    assert unit.state is UnitState.WAITING
