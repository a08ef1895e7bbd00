"""The base class of all faults."""

import random
from typing import ClassVar

from loadtests.torture.publishers import Publishing
from loadtests.torture.system import System


class Fault:
    """One kind of fault. lasts_s is the range of how long it lasts in a run of a minute; shorter runs shorten it."""

    lane: ClassVar[str] = "database"
    lasts_s: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def __init__(self, system: System, publishing: Publishing, chance: random.Random) -> None:
        self.system = system
        self.publishing = publishing
        self.chance = chance

    def inject(self, lasts_s: float) -> str:
        """Begin the fault; returns what it has hit, for the report."""
        raise NotImplementedError

    def heal(self) -> None:
        """End the fault."""
