"""The greenlet that keeps the placement up to date with the directory, through outages of Redis."""

import logging
import random
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Protocol

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.outage import Outage
from headrace.router.client_placement import Candidate, ClientPlacement

logger = logging.getLogger(__name__)


class Readable(Protocol):
    """The part of `headrace.node.directory.Directory` that is needed here."""

    def read(self, known: DirectorySnapshot | None = None, node: str = "") -> DirectorySnapshot:
        """What is of the node; known spares reading again what has not changed."""

    def changes(self, *, timeout_s: float) -> Generator[bool, None, None]:
        """True after each change, False after so many seconds without one."""


class DirectoryFollower:
    """Reads what is of its node on every change and every interval_s, and calls learned() after each read.

    Owned by its own greenlet, which calls run().
    """

    def __init__(
        self,
        directory: Readable,
        placement: ClientPlacement,
        *,
        node: str,
        interval_s: float,
        learned: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory = directory
        self._placement = placement
        self._node = node
        self._interval_s = interval_s
        self._learned = learned
        self._sleep = sleep
        self._outage = Outage(logger, "going on with the shards last known", "Redis is back")

    def run(self) -> None:
        """Follow until killed. Yields. The log has one line when an outage of Redis begins and one when it ends."""
        while True:
            try:
                self._follow()
            except DirectoryUnavailableError as error:
                self._outage.failed(error, error.condition)
                self._placement.lose_directory(error.condition)
            # The pauses differ, so that not all routers ask a returning Redis at once.
            self._sleep(self._interval_s * random.uniform(0.5, 1.5))

    def _follow(self) -> None:
        known: DirectorySnapshot | None = None
        with closing(self._directory.changes(timeout_s=self._interval_s)) as changes:
            for _ in changes:
                known = self._directory.read(known, self._node)
                self._placement.learn(known)
                self._learned()
                self._outage.ended()


def sockets_in(runtime_dir: Path) -> list[Candidate]:
    """The hand-off sockets of a runtime directory: a shard's is named `<shard id>.sock`."""
    return [Candidate(path.stem, str(path)) for path in sorted(runtime_dir.glob("*.sock"))]
