"""The users that are here, what PostgreSQL was told of them, and the sessions that fell silent: decisions without I/O.

A *pair* is a stream and a user. The *wanted* pairs are those that PostgreSQL ought to have of this shard: every pair
with a connection, and every pair whose last connection has ended less than the grace ago. The *told* pairs are those
that PostgreSQL has or may have. A report carries the difference. Its outcome is unknown until it is confirmed, so a
pair counts as told from the moment at which the report is sent, and as unreported again when the report has failed.
Reports are numbered, so that a repeated report cannot come in late and undo a newer one.
"""

import uuid
from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

Pair = tuple[str, str]
"""A stream and a user."""

MAX_PAIRS: Final = 5000
"""In one report, so that PostgreSQL is done with it in a second."""
MAX_LINGERING: Final = 20_000
"""Pairs whose grace runs. More than that and users leave without it: memory is bounded whoever comes and goes."""


@dataclass(frozen=True, slots=True)
class PresenceReport:
    """What to tell: which pairs are here and which are gone, as which session, and the number of the report.

    after is the number of the last report that was confirmed; opens tells that there was none.
    """

    session: uuid.UUID
    serial: int
    after: int
    here: tuple[Pair, ...]
    gone: tuple[Pair, ...]

    @property
    def opens(self) -> bool:
        """Whether PostgreSQL may not know the session yet."""
        return self.after == 0


class PresenceMembers:
    """The pairs of this shard.

    Owned by the presence greenlet; `appear` and `disappear` are the dispatcher's. Nothing here yields. One report may
    be outstanding: `confirmed`, `refused`, `failed` or `lost` MUST follow it before the next is made.
    """

    def __init__(self, grace_s: float) -> None:
        self.hurried = 0
        self._grace_s = grace_s
        self._session = uuid.uuid4()
        self._serial = 0
        self._confirmed = 0
        self._connections: dict[Pair, int] = {}
        self._lingering: dict[Pair, float] = {}
        self._told: set[Pair] = set()
        self._unreported: dict[Pair, None] = {}

    def __repr__(self) -> str:
        here, told = len(self._connections), len(self._told)
        return f"<PresenceMembers of {here} here, {len(self._lingering)} lingering, {told} told>"

    @property
    def session(self) -> uuid.UUID:
        """The name under which PostgreSQL has our pairs."""
        return self._session

    @property
    def count(self) -> int:
        """How many pairs have a connection here."""
        return len(self._connections)

    # -- what the dispatcher sees

    def appear(self, pair: Pair) -> None:
        """One more connection of the pair."""
        before = self._connections.get(pair, 0)
        self._connections[pair] = before + 1
        if not before:
            self._lingering.pop(pair, None)
            # Also of one who lingered: that it is gone may have been told, with an unknown outcome.
            self._unreported[pair] = None

    def disappear(self, pair: Pair, now: float) -> None:
        """One connection less; after the last the pair lingers for the grace."""
        left = self._connections.get(pair, 0) - 1
        if left > 0:
            self._connections[pair] = left
        elif left == 0:
            del self._connections[pair]
            if len(self._lingering) < MAX_LINGERING:
                self._lingering[pair] = now
            else:
                self.hurried += 1
                self._forget(pair)

    # -- what PostgreSQL is told

    def due_s(self, now: float, without: Container[str] = ()) -> float | None:
        """How soon a report has something to tell of other streams than these, None while nothing is in sight."""
        if any(stream not in without for stream, _ in self._unreported):
            return 0.0
        for since in self._lingering.values():
            return max(0.0, since + self._grace_s - now)
        return None

    def report(self, now: float, without: Container[str] = (), only: str | None = None) -> PresenceReport | None:
        """The next report: what is unreported, at most MAX_PAIRS of it, or only that we live. MUST be followed by what
        became of it. None if PostgreSQL has nothing of us and need not hear from us.

        It tells of no stream in without, and if only is given, of no other.
        """
        for pair, since in list(self._lingering.items()):
            # In the order in which they began to linger.
            if since + self._grace_s > now:
                break
            del self._lingering[pair]
            self._forget(pair)
        here: list[Pair] = []
        gone: list[Pair] = []
        told = (pair for pair in self._unreported if pair[0] not in without and only in (None, pair[0]))
        for pair in list(islice(told, MAX_PAIRS)):
            del self._unreported[pair]
            if self._wanted(pair):
                here.append(pair)
                self._told.add(pair)
            else:
                gone.append(pair)
        if not (here or gone or self._told):
            return None
        self._serial += 1
        return PresenceReport(self._session, self._serial, self._confirmed, tuple(here), tuple(gone))

    def confirmed(self, report: PresenceReport) -> None:
        """PostgreSQL has the report."""
        self._confirmed = report.serial
        self._told.difference_update(report.gone)
        if not self._told:
            # The session is no longer kept alive, and others remove it; whoever comes next begins another.
            self._begin_session()

    def failed(self, report: PresenceReport | None, now: float) -> None:
        """PostgreSQL cannot be reached, or has not taken the report, or who knows.

        Meanwhile the others cannot tell of whom they have taken over from here: every grace begins anew.
        """
        if report is not None:
            self._unreported.update(dict.fromkeys(report.here))
            for pair in report.gone:
                if pair not in self._connections:
                    self._unreported.pop(pair, None)
                    self._lingering[pair] = now
        self._lingering = dict.fromkeys(self._lingering, now)

    def refused(self, report: PresenceReport) -> None:
        """PostgreSQL has not taken the report, for certain, and can be reached: it is told again."""
        self._unreported.update(dict.fromkeys((*report.here, *report.gone)))

    def lost(self) -> None:
        """PostgreSQL does not know our session (any more): tell everything again, as another."""
        self._begin_session()
        self._told.clear()
        self._unreported = dict.fromkeys([*self._connections, *self._lingering])

    # -- inside

    def _wanted(self, pair: Pair) -> bool:
        return pair in self._connections or pair in self._lingering

    def _forget(self, pair: Pair) -> None:
        """The pair is wanted no longer: PostgreSQL hears of it if it may know the pair."""
        if pair in self._told:
            self._unreported[pair] = None
        else:
            self._unreported.pop(pair, None)

    def _begin_session(self) -> None:
        self._session = uuid.uuid4()
        self._serial = self._confirmed = 0


class SilentSessions:
    """Finds sessions whose serial has stood still for long, though it was looked at all the time.

    Owned by the presence greenlet. Only this process's clock counts, and only while it could look: after a pause, its
    own or PostgreSQL's, in which nobody could have reported, it begins anew.
    """

    def __init__(self, silent_after_s: float, pause_s: float) -> None:
        self._silent_after_s = silent_after_s
        self._pause_s = pause_s
        self._looked_at = 0.0
        self._seen: dict[uuid.UUID, tuple[int, float]] = {}

    def reset(self) -> None:
        """Nothing that was seen counts any more."""
        self._seen.clear()

    def look(self, sessions: Mapping[uuid.UUID, int], now: float) -> list[tuple[uuid.UUID, int]]:
        """The sessions, with their serials, that are to be given up. sessions are those of others."""
        if now - self._looked_at > self._pause_s:
            self.reset()
        self._looked_at = now
        seen = {}
        for session, serial in sessions.items():
            before = self._seen.get(session)
            seen[session] = before if before is not None and before[0] == serial else (serial, now)
        self._seen = seen
        return [(session, serial) for session, (serial, since) in seen.items() if now - since >= self._silent_after_s]
