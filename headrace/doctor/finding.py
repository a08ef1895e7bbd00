"""What a check has found: how bad it is, what it is, and what to do."""

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """fail: events are or will be lost, late or refused. warn: it works, and should be changed before it does not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question. found is what is; advice is what to do, empty where all is well. Each is a line."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        # Much of it is what others have said: libpq's errors have several lines, a query may.
        object.__setattr__(self, "found", " ".join(self.found.split()))
        object.__setattr__(self, "advice", " ".join(self.advice.split()))


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    """It works, and should be changed."""
    return Finding(check, Level.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """It does not work, or will not for long."""
    return Finding(check, Level.FAIL, found, advice)
