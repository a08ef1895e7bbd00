"""What the clients of the log know and write down while they run: counts, transactions, pages, broken promises."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from loadtests.log_torture.log_calls import Watermark

AT_COMMIT: Final = 1_000_000
"""The step of deferred work of the application that comes before headrace's own at the end of the transaction."""
LAST_TURN: Final = AT_COMMIT + 1
"""The step at which headrace's own constraint does its work, if it was not made immediate before."""
AFTER_TURN: Final = AT_COMMIT + 2
"""The step of deferred work of the application that comes after that."""
TURN_AFTER_WORK: Final = AT_COMMIT + 3
"""The step at which what this work has published comes to its turn."""


@dataclass(frozen=True, slots=True)
class Published:
    """One call of headrace.publish or of its kin. turn is the step at which the event gets its place in the order.

    now: the event was numbered at once, and its id returned.
    """

    token: int
    stream: str
    data: str
    type: str | None
    visible_to: str | None
    step: int
    turn: int | None = None
    now: bool = False


@dataclass(slots=True)
class TransactionNote:
    """One transaction, by the clock of its client (`time.monotonic`).

    firings: the steps at which deferred constraints were made immediate. commit_began: just before the statement that
    makes it visible. ended: when that was answered. position: the write-ahead log's, asked for after that. era: how
    many fail-overs there were before. synchronous: whether the commit waited for a standby, if there is one.
    """

    number: int
    isolation: str
    began: float
    commit_began: float | None = None
    ended: float | None = None
    position: int | None = None
    era: int = 0
    synchronous: bool = True
    published: dict[int, Published] = field(default_factory=dict)
    firings: list[int] = field(default_factory=list)

    def turn(self, token: int) -> int:
        """The step at which the event with this token came to its turn."""
        one = self.published[token]
        if one.turn is not None:
            return one.turn
        return next((step for step in self.firings if step >= one.step), LAST_TURN)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells sets of publications apart: their number, and two sums over their tokens."""

    count: int = 0
    total: int = 0
    mixed: int = 0

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        return Fingerprint(self.count + other.count, self.total + other.total, self.mixed + other.mixed)


FINGERPRINT: Final = "count(*), coalesce(sum(token), 0)::bigint, coalesce(sum(mod(token * 7919, 1000003)), 0)::bigint"
"""The fingerprint in SQL."""


def fingerprint(token: int) -> Fingerprint:
    """The fingerprint of one publication."""
    return Fingerprint(1, token, token * 7919 % 1000003)


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the rows that it shows, and the watermark from which a client follows.

    exact: rows and watermark are of one snapshot; else the watermark is of an earlier one. shown is the fingerprint of
    the stream's publications in the snapshot of the rows, versions the versions of its chains. era counts fail-overs.
    """

    stream: str
    era: int
    watermark: Watermark
    exact: bool
    shown: Fingerprint
    versions: dict[str, int]
    way: str


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and how."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Notes:
    """What all threads write down together; a lock makes each note whole."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.pages: list[Page] = []
        self.transactions: dict[int, TransactionNote] = {}
        self.sessions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._transactions = 0
        self._tokens = 0

    def count(self, what: str, times: int = 1) -> None:
        """Count something that has happened."""
        with self._lock:
            self.counts[what] += times

    def violation(self, kind: str, detail: str) -> None:
        """Note a broken promise."""
        with self._lock:
            self.violations.append(Violation(kind, detail))

    def page(self, page: Page) -> None:
        """Note a page."""
        with self._lock:
            self.pages.append(page)
        self.count("pages")
        self.count("pages with a set", bool(page.watermark.pending))

    def begin(self, isolation: str) -> TransactionNote:
        """Note that a transaction begins now."""
        with self._lock:
            self._transactions += 1
            note = TransactionNote(self._transactions, isolation, time.monotonic())
            self.transactions[note.number] = note
            return note

    def token(self) -> int:
        """A token that no other publication has."""
        with self._lock:
            self._tokens += 1
            return self._tokens
