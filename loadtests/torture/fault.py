"""What every fault is."""

import random
from typing import ClassVar

from loadtests.torture.publishers import Publishing
from loadtests.torture.system import System


class Fault:
    """One kind of fault. lasts_s is the range of its length in a run of a minute; shorter runs shorten it."""

    lane: ClassVar[str] = "database"
    lasts_s: ClassVar[tuple[float, float]] = (0.0, 0.0)

    def __init__(self, system: System, publishing: Publishing, chance: random.Random) -> None:
        self.system = system
        self.publishing = publishing
        self.chance = chance

    def inject(self, lasts_s: float) -> str:
        """Begin; returns whom it has hit."""
        raise NotImplementedError

    def heal(self) -> None:
        """End."""
