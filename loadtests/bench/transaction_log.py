"""What pgbench writes down of its transactions, one a line, with the options `--log --log-prefix DIRECTORY/…`.

    client  number in its session  duration, µs  script  end: s  end: µs  [behind schedule, µs]
    3       17                     1250          0       17...   123456

The end is a time of day, when the session has read the server's answer. Where transactions are scheduled (`--rate`),
the duration begins at the scheduled time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.clients import FailedError


@dataclass(frozen=True, slots=True)
class TransactionLog:
    """Transactions of all sessions. commits is how many there were at all, and last_commit_s when the last one ended.

    The other values are of the window alone: commits a second, and percentiles of the duration in milliseconds.
    """

    commits: int
    last_commit_s: float
    per_second: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, lines: Iterable[bytes], since_s: float, until_s: float) -> "TransactionLog":
        """Read lines; the window is from since_s to until_s, seconds of the time of day.

        Raises FailedError if a transaction has failed, or if none ended within the window.
        """
        commits, last_us = 0, 0
        since_us, until_us = round(since_s * 1e6), round(until_s * 1e6)
        durations: list[int] = []
        for line in lines:
            fields = line.split()
            if not fields[2].isdigit():
                raise FailedError(f"pgbench: a transaction {fields[2].decode()}")
            commits += 1
            end_us = int(fields[4]) * 1_000_000 + int(fields[5])
            last_us = max(last_us, end_us)
            if since_us <= end_us < until_us:
                durations.append(int(fields[2]))
        if not durations:
            raise FailedError(f"pgbench: of {commits} transactions none ended within {until_s - since_s:g} s")
        durations.sort()
        return cls(
            commits,
            last_us / 1e6,
            len(durations) / (until_s - since_s),
            _percentile(durations, 50) / 1e3,
            _percentile(durations, 99) / 1e3,
        )

    @classmethod
    def read(cls, directory: Path, since_s: float, until_s: float) -> "TransactionLog":
        """As `of`, from all files of a directory: pgbench's threads write one each."""
        return cls.of(_lines(directory), since_s, until_s)


def _lines(directory: Path) -> Iterator[bytes]:
    for path in directory.iterdir():
        with path.open("rb") as file:
            yield from file


def _percentile(ordered: list[int], percent: int) -> int:
    """The smallest value that at least so many percent of the values do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
