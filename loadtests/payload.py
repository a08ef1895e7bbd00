"""The data of the events that a load test publishes: when, where and by which publisher, for the receiver to check.

    t=81234567890 w=1790000000000000000 b=3f2c9a01 p=c0ffee12 n=17 ....

t   CLOCK_MONOTONIC of the publisher's machine, nanoseconds, just before publishing
w   wall clock, nanoseconds since the epoch; for a receiver on another machine
b   the publisher's machine and boot: t can be compared by receivers with the same only
p   the publisher
n   the number of this event among the publisher's committed events on this stream, from 1; 0 if it is rolled back
"""

import functools
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FORM = re.compile(r"t=(\d+) w=(\d+) b=(\w+) p=(\w+) n=(\d+) \.*")


@dataclass(frozen=True, slots=True)
class Payload:
    """One event's data, read back."""

    monotonic_ns: int
    wall_ns: int
    boot: str
    publisher: str
    number: int

    @classmethod
    def decode(cls, text: str) -> "Payload | None":
        """Read an event's data; returns None if no load test has published it."""
        match = _FORM.fullmatch(text)
        if match is None:
            return None
        monotonic_ns, wall_ns, boot, publisher, number = match.groups()
        return cls(int(monotonic_ns), int(wall_ns), boot, publisher, int(number))

    def encode(self, size: int = 0) -> str:
        """The text, padded to this size in bytes."""
        text = f"t={self.monotonic_ns} w={self.wall_ns} b={self.boot} p={self.publisher} n={self.number} "
        return text.ljust(size, ".")

    def age_ms(self) -> float:
        """Milliseconds since it was published; between two machines only as exact as their clocks agree."""
        if self.boot == this_boot():
            return (time.monotonic_ns() - self.monotonic_ns) / 1e6
        return (time.time_ns() - self.wall_ns) / 1e6


class Writer:
    """Numbers the events that one publisher commits, per stream.

    Owned by one greenlet. After a commit whose outcome is unknown the publisher MUST go on with a new Writer, since
    this one does not know whether its numbers were used.
    """

    def __init__(self) -> None:
        self.publisher = secrets.token_hex(4)
        self._committed: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Writer {self.publisher} {self._committed.total()} committed>"

    def texts(self, streams: Sequence[str], size: int = 0, *, phantom: bool = False) -> list[str]:
        """Data for one transaction's events on these streams, in order; `committed` MUST be called if it commits.

        phantom marks events that are never to arrive.
        """
        numbers = self._committed.copy()
        texts = []
        for stream in streams:
            numbers[stream] += 1
            number = 0 if phantom else numbers[stream]
            payload = Payload(time.monotonic_ns(), time.time_ns(), this_boot(), self.publisher, number)
            texts.append(payload.encode(size))
        return texts

    def committed(self, streams: Sequence[str]) -> None:
        """Note that the transaction with these streams' events has committed."""
        self._committed.update(streams)


@functools.cache
def this_boot() -> str:
    """A word that stands for this machine until it is booted again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
