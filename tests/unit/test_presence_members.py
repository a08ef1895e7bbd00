"""shard/postgres/presence_members.py: connections, time and outcomes in; what PostgreSQL is told out."""

import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.shard.postgres import presence_members
from headrace.shard.postgres.presence_members import PresenceMembers, PresenceReport, SilentSessions

ADA = ("room", "ada")
BOB = ("room", "bob")
GRACE_S = 5.0


@pytest.fixture
def here() -> PresenceMembers:
    return PresenceMembers(GRACE_S)


def tell(
    here: PresenceMembers, now: float
) -> tuple[tuple[presence_members.Pair, ...], tuple[presence_members.Pair, ...]]:
    """What is told at that time, and confirmed."""
    report = here.report(now)
    if report is None:
        return (), ()
    here.confirmed(report)
    return report.here, report.gone


def test_tabs_are_one(here: PresenceMembers) -> None:
    """However many connections a user has, the first is told, and the end of the last."""
    for _ in range(3):
        here.appear(ADA)
    assert tell(here, 0) == ((ADA,), ())
    here.disappear(ADA, 1)
    here.disappear(ADA, 1)
    assert tell(here, 20) == ((), ())
    here.disappear(ADA, 20)
    assert tell(here, 20 + GRACE_S) == ((), (ADA,))


def test_who_comes_back_within_the_grace_has_not_left(here: PresenceMembers) -> None:
    """A reconnect is no news but for the shard that tells that it has the user."""
    here.appear(ADA)
    tell(here, 0)
    here.disappear(ADA, 1)
    assert here.due_s(2) == GRACE_S - 1
    assert tell(here, 1 + GRACE_S - 0.01) == ((), ())
    here.appear(ADA)
    assert tell(here, 100) == ((ADA,), ())
    assert tell(here, 200) == ((), ())


def test_nothing_is_told_of_who_was_never_told(here: PresenceMembers) -> None:
    """A user whose grace has run out before PostgreSQL could hear of the connection costs it nothing."""
    here.appear(ADA)
    here.disappear(ADA, 0)
    assert here.report(GRACE_S) is None
    assert here.due_s(GRACE_S) is None


def test_a_shard_without_members_is_silent(here: PresenceMembers) -> None:
    """Without members there is no report, and the session is given up for another."""
    assert here.report(0) is None
    here.appear(ADA)
    first = here.session
    tell(here, 0)
    assert here.report(10) is not None, "with members it says that it lives"
    here.confirmed(here.report(11) or pytest.fail("no report"))
    here.disappear(ADA, 12)
    tell(here, 12 + GRACE_S)
    assert here.report(40) is None
    assert here.session != first


def test_a_crowd_is_told_in_parts(here: PresenceMembers) -> None:
    """Each report has a bounded number of pairs; what is left is due at once."""
    for number in range(presence_members.MAX_PAIRS + 1):
        here.appear(("room", f"u{number}"))
    assert len(tell(here, 0)[0]) == presence_members.MAX_PAIRS
    assert here.due_s(0) == 0
    assert len(tell(here, 0)[0]) == 1


def test_memory_is_bounded(here: PresenceMembers, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many have a grace running, who leaves next leaves without one, and that is counted."""
    monkeypatch.setattr(presence_members, "MAX_LINGERING", 1)
    for pair in (ADA, BOB):
        here.appear(pair)
    tell(here, 0)
    here.disappear(ADA, 1)
    here.disappear(BOB, 1)
    assert tell(here, 1) == ((), (BOB,))
    assert here.hurried == 1


def test_an_outage_begins_every_grace_anew(here: PresenceMembers) -> None:
    """Whoever took over a connection could not tell either: nobody leaves before it has had the time to."""
    for pair in (ADA, BOB):
        here.appear(pair)
    tell(here, 0)
    here.disappear(ADA, 1)
    here.disappear(BOB, 5)
    report = here.report(7)
    assert report is not None
    assert report.gone == (ADA,)
    here.failed(report, 60)
    assert tell(here, 60 + GRACE_S - 0.1) == ((), ())
    assert set(tell(here, 60 + GRACE_S)[1]) == {ADA, BOB}


def test_a_lost_session_is_told_anew(here: PresenceMembers) -> None:
    """When PostgreSQL does not know the session, everything is told under another name, as if for the first time."""
    for pair in (ADA, BOB):
        here.appear(pair)
    tell(here, 0)
    here.disappear(BOB, 1)
    before = here.report(2)
    assert before is not None
    assert not before.opens
    here.lost()
    again = here.report(2)
    assert again is not None
    assert again.opens
    assert again.session != before.session
    assert set(again.here) == {ADA, BOB}
    for pair in (ADA, BOB):
        here.disappear(pair, 3)
    here.lost()
    assert here.report(3 + GRACE_S) is None, "what was never told under the new name is not taken back"


class PresenceMembersMachine(RuleBasedStateMachine):
    """Any interleaving of connections, reports and lost answers, against a PostgreSQL of three lines."""

    def __init__(self) -> None:
        super().__init__()
        self.here = PresenceMembers(GRACE_S)
        self.connections: dict[presence_members.Pair, int] = {}
        self.last_seen: dict[presence_members.Pair, float] = {}
        self.now = 0.0
        self.database: set[presence_members.Pair] = set()
        self.serial = 0
        self.session: uuid.UUID | None = None
        self.outstanding: PresenceReport | None = None
        self.late: list[PresenceReport] = []

    def take(self, report: PresenceReport) -> bool:
        """What `headrace.presence_report` does."""
        if report.session == self.session:
            if not report.after <= self.serial < report.serial:
                return False
        elif report.opens:
            self.session, self.database = report.session, set()
        else:
            return False
        self.serial = report.serial
        self.database = (self.database | set(report.here)) - set(report.gone)
        assert not set(report.here) & set(report.gone)
        return True

    @rule(pair=st.sampled_from([ADA, BOB]))
    def appear(self, pair: presence_members.Pair) -> None:
        self.connections[pair] = self.connections.get(pair, 0) + 1
        self.here.appear(pair)

    @rule(pair=st.sampled_from([ADA, BOB]))
    def disappear(self, pair: presence_members.Pair) -> None:
        if self.connections.get(pair):
            self.connections[pair] -= 1
            self.last_seen[pair] = self.now
            self.here.disappear(pair, self.now)

    @rule(seconds=st.sampled_from([0.1, 1, GRACE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.outstanding is None)
    @rule()
    def send(self) -> None:
        self.outstanding = self.here.report(self.now)

    @precondition(lambda self: self.outstanding is not None)
    @rule()
    def answered(self) -> None:
        assert self.outstanding is not None
        report, self.outstanding = self.outstanding, None
        if self.take(report):
            self.here.confirmed(report)
        else:
            self.here.lost()

    @precondition(lambda self: self.outstanding is not None)
    @rule(arrives=st.sampled_from(["at once", "late", "never"]))
    def cut(self, arrives: str) -> None:
        """The answer is lost; the report itself may have come, or come later, among others."""
        assert self.outstanding is not None
        report, self.outstanding = self.outstanding, None
        if arrives == "at once":
            self.take(report)
        elif arrives == "late":
            self.late.append(report)
        self.here.failed(report, self.now)

    @precondition(lambda self: self.late)
    @rule()
    def arrive(self) -> None:
        report = self.late.pop(0)
        if report.session == self.session:  # one of a session that was given up opens it for an expiry, and no more
            self.take(report)

    @rule()
    def forgotten(self) -> None:
        """The session is given up by others."""
        self.session, self.database = None, set()

    @invariant()
    def nobody_is_forgotten_while_connected(self) -> None:
        assert self.here.count == sum(1 for count in self.connections.values() if count)

    def teardown(self) -> None:
        """Once PostgreSQL answers, it has exactly those who are connected or whose grace runs, then the former only."""
        if self.outstanding is not None:
            self.cut("never")
        for _ in range(4):
            self.send()
            if self.outstanding is not None:
                self.answered()
        connected = {pair for pair, count in self.connections.items() if count}
        assert connected <= self.database
        self.now += 2 * GRACE_S
        for _ in range(4):
            self.send()
            if self.outstanding is not None:
                self.answered()
        assert connected == self.database
        assert self.here.due_s(self.now) is None


PresenceMembersMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=30)
TestPresenceMembers = PresenceMembersMachine.TestCase

ONE, TWO = uuid.uuid4(), uuid.uuid4()


def test_a_session_that_stands_still_is_given_up() -> None:
    """Unchanged for long while it was looked at all the time; one that goes on is not."""
    watch = SilentSessions(silent_after_s=3, pause_s=2)
    assert watch.look({ONE: 7, TWO: 1}, 100) == []
    assert watch.look({ONE: 7, TWO: 2}, 101) == []
    assert watch.look({ONE: 7, TWO: 3}, 102.9) == []
    assert watch.look({ONE: 7, TWO: 4}, 103) == [(ONE, 7)]
    assert watch.look({TWO: 4}, 104) == []


def test_who_could_not_look_has_seen_nothing() -> None:
    """After a pause, its own or PostgreSQL's, in which nobody could report, the observation begins anew."""
    watch = SilentSessions(silent_after_s=3, pause_s=2)
    watch.look({ONE: 7}, 100)
    watch.look({ONE: 7}, 101)
    assert watch.look({ONE: 7}, 104) == []
    watch.look({ONE: 7}, 106)
    watch.reset()
    assert watch.look({ONE: 7}, 107.5) == []
    watch.look({ONE: 7}, 109)
    assert watch.look({ONE: 7}, 110.5) == [(ONE, 7)]
