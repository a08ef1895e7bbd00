"""The shards under supervision: how one is seen to take connections, and what becomes of one that is replaced."""

import os
import socket
import time
from pathlib import Path

import pytest

from headrace.errors import DirectoryUnavailableError, UnavailableError
from headrace.up.restart_policy import Unit, UnitState
from headrace.up.shards import PATIENCE, Shards, listens
from tests.unit.test_restart_policy import Scripted


def test_listens(tmp_path: Path) -> None:
    """Only the process that listens counts, not another at the same path, nor the file of one that is gone."""
    path = tmp_path / "n-0.sock"
    assert not listens(path, os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        assert not listens(path, os.getpid())
        listening.listen()
        assert listens(path, os.getpid())
        assert not listens(path, os.getppid())
    assert path.exists()
    assert not listens(path, os.getpid())


class Supervised:
    """Units as the supervisor's loop has them, stepped by the test."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.programs: list[Scripted] = []
        self.away = False
        self.shards = Shards(self, "n", 0, self._make, self._meet)  # type: ignore[arg-type]
        self.shards.begin(1)
        self.step()

    def add(self, unit: Unit, stage: int) -> None:
        self.units.append(unit)

    def step(self) -> None:
        for unit in self.units:
            unit.step(time.monotonic())
            unit.step(time.monotonic())

    def _meet(self) -> None:
        if self.away:
            raise DirectoryUnavailableError()

    def _make(self, id_: str) -> Unit:
        self.programs.append(Scripted())
        self.programs[-1].ready = True
        return Unit(id_, self.programs[-1], say=lambda line: None)


def test_without_the_directory_nothing_is_replaced() -> None:
    """A successor that its predecessor cannot hear of is not started: nobody's connections would go to it."""
    node = Supervised()
    node.away = True
    with pytest.raises(UnavailableError, match=r"n-0 stays, .* HEADRACE_REDIS_URL"):
        next(node.shards.restart(["n-0"]))
    assert len(node.programs) == 1
    assert node.units[0].state is UnitState.READY


def test_a_predecessor_that_dies_stays_dead() -> None:
    """Killed while its successor starts, the old process is not started again: it would be the younger of the two."""
    node = Supervised()
    restart = node.shards.restart(["n-0"])
    next(restart)
    next(restart)
    node.programs[0].status = -9
    for _ in range(5):
        node.step()
        next(restart, None)
    assert [program.asked for program in node.programs] == [["launch"], ["launch"]]
    assert [unit.state for unit in node.units] == [UnitState.ENDED, UnitState.READY]


def test_a_predecessor_whose_successor_fails_is_kept() -> None:
    """Where the successor does not get ready, the old process is supervised as before; a new one if it has died."""
    for dies in (False, True):
        node = Supervised()
        restart = node.shards.restart([])
        next(restart)
        next(restart)
        if dies:
            node.programs[0].status = -9
        node.units[1].failures = PATIENCE
        node.units[1].state = UnitState.WAITING
        node.units[0].step(time.monotonic())
        with pytest.raises(UnavailableError):
            next(restart)
        if dies:
            node.step()
            assert [unit.state for unit in node.units] == [UnitState.ENDED, UnitState.ENDED, UnitState.READY]
        else:
            node.programs[0].status = 1
            node.units[0].step(time.monotonic())
            assert [unit.state for unit in node.units] == [UnitState.WAITING, UnitState.ENDED]


def test_a_successor_that_dies_while_it_is_given_clients_ends_the_restart() -> None:
    """The old process waits for it, as the supervisor starts it again; no further shard is replaced."""
    node = Supervised()
    node.shards.begin(1)
    node.step()
    restart = node.shards.restart([])
    while "hands" not in (next(restart) or ""):
        node.step()
    assert next(restart) is None
    node.units[2].state, node.units[2].failures = UnitState.WAITING, PATIENCE
    with pytest.raises(UnavailableError, match="n-0 is started again and again"):
        next(restart)
    assert [unit.state for unit in node.units] == [UnitState.RETIRING, UnitState.READY, UnitState.WAITING]


def test_a_restart_waits_for_a_successor_that_was_started_again() -> None:
    """A successor that has died once is no reason to give up; its shard has been restarted when it is ready."""
    node = Supervised()
    restart = node.shards.restart([])
    while "hands" not in (next(restart) or ""):
        node.step()
    node.units[1].state, node.units[1].failures = UnitState.WAITING, 1
    node.programs[0].status = 0
    node.units[0].step(time.monotonic())
    assert node.units[0].state is UnitState.ENDED
    assert next(restart) is None
    node.units[1].state = UnitState.READY
    assert list(restart) == []
