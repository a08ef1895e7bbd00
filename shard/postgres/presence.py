"""Presence: tells PostgreSQL which users have connections here, and ends what dead shards have told.

    dispatcher ── appear, disappear ──► members ───── a report, at most one each half second ──► PostgreSQL
                  (a dict, no waiting)      ▲                                                       │
                                            └── watch ◄── all sessions with their serials ◄─────────┤
                                                                  presence:<stream> ◄── publish ────┘

Where it is kept. In PostgreSQL alone (`headrace/sql/schema.sql`, chapter 11): Redis may be emptied at any time, and a
join is an event like any other, which has to commit together with the list of members that it changes. A shard counts
the connections of each user and stream by itself, and tells only that it has some, or none any more. The first shard
that has some makes the join, the last that has none the leave, under a lock for each stream; so tabs, shards and nodes
do not matter, and the events of one user alternate.

Why nothing shows of a reconnect, a move or a restart. A user whose last connection here has ended lingers for the grace
before PostgreSQL hears of it. A reload, and a client that comes back after `retry:`, is back by then, here or at
another shard. The giver of a moved connection lingers while the taker tells that it has it. A shard that ends tells
nothing: its session stays for the expiry, in which its clients have come to others.

How the members of a killed shard are removed. Each shard's session has a number that grows with every report, and a
shard with members reports every fifth of the expiry, even if it has nothing to report. Every shard looks at all numbers
at that pace. A session whose number has stood still for three fifths of the expiry is given up, by its name and that
number, so it is given up once, by the first shard that does it. No wall clock is asked, and after a time in which no
shard could report, the observation begins anew. A shard that was only stopped finds its session gone when it wakes, and
tells everything again under a new name; so does one whose reports a fail-over lost.

What can hold reports up. A transaction that has published to a companion stream at once and stays open keeps that
stream locked. A report waits for it for a few seconds, and keeps other reports from all its streams meanwhile. Then the
other streams are told without the locked one, whose users are told when the transaction has ended.

What can be missed: a shard that runs but cannot reach PostgreSQL while others can is given up like a dead one; its
users leave, and join when it is back. With no shard running at all, nobody notices anything, and the members stay as
they are. Connections without a user, and those whose token asks for no presence, cost nothing here.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import psycopg
from gevent.event import Event

from headrace.node.kept_session import KeptSession
from headrace.node.outage import Outage
from headrace.settings import Settings
from headrace.shard.connection import Connection
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.presence_members import Pair, PresenceMembers, PresenceReport, SilentSessions

logger = logging.getLogger(__name__)

BEATS_AN_EXPIRY: Final = 5
HELD_LOOK_S: Final = 1.0
"""Between two looks at whether a stream that an open transaction holds can be told of."""
SILENT_BEATS: Final = 3
"""After so many without a new number a session is given up; the rest of the expiry is for noticing late."""


class Presence:
    """Reports which users are here, and watches the sessions of other shards.

    Owned by its own greenlet; `appear` and `disappear` are called by the dispatcher. Nothing waits for this part.
    """

    def __init__(self, settings: Settings, shard_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.reports = 0
        self.expired = 0
        self._settings = settings
        self._shard_id = shard_id
        self._name = f"headrace {shard_id} presence"
        self._clock = clock
        self._members = PresenceMembers(settings.presence_grace_s)
        self._beat_s = settings.presence_expiry_s / BEATS_AN_EXPIRY
        self._watch = SilentSessions(SILENT_BEATS * self._beat_s, 2 * self._beat_s + settings.presence_interval_s)
        # After an outage all are back within a beat, or the first would take the last for dead.
        self.outage = Outage(
            logger,
            "presence cannot be told, trying again",
            "presence can be told again",
            first_s=min(settings.presence_interval_s, self._beat_s),
            most_s=min(2.0, self._beat_s),
        )
        self._held: set[str] = set()
        self._look_at = 0.0
        self._stirred = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    @property
    def members(self) -> int:
        """How many pairs of user and stream have a connection here."""
        return self._members.count

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start reporting; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """End. What was told stays for the expiry, in which the clients find other shards. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def appear(self, connection: Connection) -> None:
        """The user of the connection is on the streams that its token says. Never switches greenlets."""
        if connection.context.presence:
            for pair in _pairs(connection):
                self._members.appear(pair)
            self._stirred.set()

    def disappear(self, connection: Connection) -> None:
        """One connection less for its user. Never switches greenlets."""
        if connection.context.presence:
            now = self._clock()
            for pair in _pairs(connection):
                self._members.disappear(pair, now)
            self._stirred.set()

    # -- the greenlet

    def _run(self) -> None:
        kept = KeptSession(self._settings.database_url, self._name, limit_s=self._settings.read_deadline_s)
        try:
            while True:
                report: PresenceReport | None = None
                try:
                    with gevent.Timeout(self._settings.read_deadline_s):
                        connection = kept.proven()
                        self._look_at_held(connection)
                    report = self._members.report(self._clock(), without=self._held)
                    with gevent.Timeout(self._settings.read_deadline_s):
                        refused = self._exchange(connection, report)
                    if refused is not None:
                        self._tell_around(connection, refused)
                except (psycopg.Error, gevent.Timeout) as error:
                    kept.close()
                    self._members.failed(report, self._clock())
                    self._watch.reset()
                    gevent.sleep(self.outage.failed(error))
                else:
                    self.outage.ended()
                    self._rest()
        finally:
            kept.close()

    def _look_at_held(self, connection: psycopg.Connection[Any]) -> None:
        """Now and then, see which of the streams that are left out of reports are held no longer. Yields."""
        if self._held and self._clock() >= self._look_at:
            self._held = sql_functions.held_rooms(connection, self._held)
            self._look_at = self._clock() + HELD_LOOK_S

    def _tell_around(self, connection: psycopg.Connection[Any], refused: PresenceReport) -> None:
        """Tell what a refused report was to tell, but for the streams that an open transaction holds. Yields."""
        rooms = sorted({stream for stream, _ in (*refused.here, *refused.gone)})
        with gevent.Timeout(self._settings.read_deadline_s):
            held = sql_functions.held_rooms(connection, rooms)
        if not held:
            # It has ended; or it has made the companion, which shows only by being waited for.
            for room in rooms:
                report = self._members.report(self._clock(), only=room)
                with gevent.Timeout(self._settings.read_deadline_s):
                    if self._exchange(connection, report) is not None:
                        held.add(room)
        if held - self._held:
            logger.warning("an open transaction has published to presence:%s; it is told later", sorted(held)[0])
        self._held |= held
        self._look_at = self._clock() + HELD_LOOK_S

    def _exchange(self, connection: psycopg.Connection[Any], report: PresenceReport | None) -> PresenceReport | None:
        """Report, or only look; then end the sessions that have fallen silent. The report if it was refused. Yields."""
        members = self._members
        if report is None:
            sessions = sql_functions.presence_sessions(connection)
        else:
            try:
                sessions = sql_functions.report_presence(connection, self._shard_id, report)
            except psycopg.errors.LockNotAvailable:
                members.refused(report)
                return report
            self.reports += 1
            if report.session in sessions:
                members.confirmed(report)
            else:
                if report.after:
                    logger.warning("PostgreSQL has given up our members; telling all %d again", members.count)
                members.lost()
        others = {session: serial for session, serial in sessions.items() if session != members.session}
        for session, serial in self._watch.look(others, self._clock()):
            try:
                left = sql_functions.expire_presence(connection, session, serial)
            except psycopg.errors.LockNotAvailable:
                continue  # with the next look
            if left is not None:
                self.expired += 1
                # A shard without members lets its session fall silent; that is no news.
                level = logging.WARNING if left else logging.DEBUG
                logger.log(level, "session %s has fallen silent; %d users have left with it", session, left)
        return None

    def _rest(self) -> None:
        """Wait until there is something to tell or a beat is due; at least the interval, to gather more. Yields."""
        began = self._clock()
        interval_s = self._settings.presence_interval_s * random.uniform(0.8, 1.0)
        until = began + self._beat_s * random.uniform(0.8, 1.0)
        gevent.sleep(interval_s)
        while True:
            self._stirred.clear()
            now = self._clock()
            due_s = self._members.due_s(now, without=self._held)
            if self._held:
                until = min(until, self._look_at)
            wait_s = min(until - now, until if due_s is None else due_s)
            if wait_s <= 0:
                return
            self._stirred.wait(wait_s)


def _pairs(connection: Connection) -> list[Pair]:
    context = connection.context
    return [(stream, context.user) for stream in context.presence if context.user is not None]
