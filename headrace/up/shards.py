"""The shards of one node under supervision: restarting them one by one, adding some, removing some.

Each operation is a generator that the supervisor's loop advances: it yields a line of progress, or None where it
waits, and ends when it is done. It raises HeadraceError where it cannot be; what is not done then, is as before.

A restart loses no client: a successor of the same id starts beside the old process, the old one sees it in the
directory, gives it every connection, and ends by itself.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from headrace.errors import DirectoryUnavailableError, UnavailableError, UsageError
from headrace.node import socket_file
from headrace.up.restart_policy import Unit, UnitState
from headrace.up.supervision_loop import Supervision

START_DEADLINE_S: Final = 300.0
"""More than a successor can take until it is ready or given up."""
HAND_OVER_DEADLINE_S: Final = 60.0
PATIENCE: Final = 3
"""Failures in a row after which a new process is given up."""

Operation = Iterator[str | None]

_PROBE_DEADLINE_S: Final = 1.0


class Shards:
    """The node's shards, by id.

    Owned by the supervisor's loop. make builds the unit of a shard from its id. meet is called before a shard is
    replaced; it raises DirectoryUnavailableError while the two processes could not hear of each other.
    """

    def __init__(
        self,
        supervision: Supervision,
        node: str,
        stage: int,
        make: Callable[[str], Unit],
        meet: Callable[[], object],
    ) -> None:
        self._supervision = supervision
        self._node = node
        self._stage = stage
        self._make = make
        self._meet = meet
        self._units: dict[str, Unit] = {}

    @property
    def ids(self) -> list[str]:
        """The ids, in the order in which they were added."""
        return list(self._units)

    def begin(self, count: int) -> None:
        """Supervise so many new shards, without waiting for them."""
        for _ in range(count):
            index = next(i for i in range(len(self._units) + 1) if self._id(i) not in self._units)
            self._launch(self._id(index))

    def add(self, count: int) -> Operation:
        """Add shards; done when they are ready."""
        before = set(self._units)
        self.begin(count)
        for id_ in [id_ for id_ in self._units if id_ not in before]:
            yield f"starting {id_}"
            yield from self._until_ready(id_, self._units[id_])

    def remove(self, ids: Sequence[str]) -> Operation:
        """Stop shards for good, with a goodbye to clients that are left; drain them before."""
        self._check(ids)
        if len(set(ids)) >= len(self._units):
            raise UsageError("a node keeps at least one shard; stop `headrace up` to stop all")
        for id_ in ids:
            yield f"stopping {id_}"
            unit = self._units.pop(id_)
            unit.stop(time.monotonic())
            while unit.state is not UnitState.ENDED:
                yield None

    def restart(self, ids: Sequence[str]) -> Operation:
        """Replace the processes of these shards, or of all, one after the other."""
        self._check(ids)
        for id_ in ids or self.ids:
            require_meeting(id_, self._meet)
            old = self._units[id_]
            yield f"{id_}: starting the successor of pid {old.program.pid}"
            # Should it die before it has handed over, it must stay so: started again it would be the younger of the
            # two, and the successor would give everything to it and end.
            old.retire(time.monotonic(), START_DEADLINE_S)
            unit = self._launch(id_)
            try:
                yield from self._until_ready(id_, unit)
            except UnavailableError:
                old.stay(time.monotonic())
                self._units[id_] = old if old.state is UnitState.READY else self._launch(id_)
                raise
            yield f"{id_}: pid {old.program.pid} hands its connections to pid {unit.program.pid}"
            old.retire(time.monotonic(), HAND_OVER_DEADLINE_S)
            while old.state is not UnitState.ENDED or unit.state is not UnitState.READY:
                if unit.failures >= PATIENCE:
                    # The old process can give its connections to nobody meanwhile; the other shards must not get there.
                    raise UnavailableError(f"{id_} is started again and again, and no further shard is: {unit.failure}")
                yield None

    def _launch(self, id_: str) -> Unit:
        unit = self._units[id_] = self._make(id_)
        self._supervision.add(unit, self._stage)
        return unit

    def _until_ready(self, id_: str, unit: Unit) -> Operation:
        while unit.state is not UnitState.READY:
            if unit.failures >= PATIENCE:
                unit.stop(time.monotonic())
                raise UnavailableError(f"{id_} {unit.failure}; {unit.program.last_words()}")
            yield None

    def _check(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            if id_ not in self._units:
                raise UsageError(f"there is no shard {id_!r} on node {self._node!r}; it has {', '.join(self._units)}")

    def _id(self, index: int) -> str:
        return f"{self._node}-{index}"


def require_meeting(shard_id: str, meet: Callable[[], object]) -> None:
    """Raise UnavailableError where a shard would not hear of its successor: while meet finds the directory away."""
    try:
        meet()
    except DirectoryUnavailableError as error:
        raise UnavailableError(f"{shard_id} stays, it would not hear of its successor: {error}") from error


def listens(path: Path, pid: int) -> bool:
    """Whether this process, not a predecessor or what a killed one left behind, takes connections at this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(_PROBE_DEADLINE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return socket_file.listener(probe)[0] == pid
