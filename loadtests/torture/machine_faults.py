"""Faults of the machine: its clock jumps, its disk is full."""

from loadtests.torture.fault import Fault


class ClockBack(Fault):
    """The clock is set back for all processes of the system, and stays behind."""

    lane = "log"

    def inject(self, lasts_s: float) -> str:
        """Set it back by little or much."""
        by_s = self.chance.choice((3.0, 90.0, 7200.0))
        self.system.machine.set_back(by_s)
        return f"by {by_s:g} s"


class DiskFull(Fault):
    """PostgreSQL's data disk is full: no table or index can grow, transactions that need it fail with 53100.

    The write-ahead log still has room: without it PostgreSQL ends, and `postgres-kill` tries that.
    """

    lasts_s = (1.0, 6.0)

    def inject(self, lasts_s: float) -> str:
        """Fill it."""
        self.system.machine.fill_disk(True)
        return ""

    def heal(self) -> None:
        """Make room."""
        self.system.machine.fill_disk(False)
