"""The announcer: notifies for the publishing transactions of the whole database, while there are many of them.

A transaction that notifies flushes its commit alone. When commits are many, one shard therefore takes office:
publishing transactions leave rows instead, and every few milliseconds it notifies once for all rows that are there.
When commits are few, or no shard wants to, each transaction notifies by itself. Who may rely on whom at which moment,
and why no wake is lost, is written at the head of headrace/sql/0009_announce.sql, and what a ring looks at, at that of
0011_announce_since.sql; this file keeps these rules of them:

    a session that has been in office, or may have been, rings until `nobody_defers`, and then once more
    every session has an idle_session_timeout, so that one which no longer rings loses its office
    what a ring has seen is remembered only if it has committed, within a session; once in WINDOW_S, when we have taken
    office and in the last ring we look further back
    while one is in office all other shards stand by: they ring now and then, and one of them succeeds it

    idle ──(headrace_rate often)──► standing by ──(office free)──► in office ──(few commits)──► leaving ──► idle

A shard that is idle has no connection and no timer here.

The office is an advisory lock, which any role that may connect can take (`headrace/schema/locks.py`). A stranger who
has it notifies nobody, and publishing transactions leave it to that stranger. So a shard whose sweep finds events that
nobody has notified of looks who is there. While it is a stranger, one shard rings as if it was in office; once that is
to be had the shard keeps it, for WARY_S after a stranger was seen last, since who is in office cannot be pushed out.
"""

import logging
import math
import random
import time
from collections import deque
from contextlib import closing
from typing import Any, Final

import gevent
import psycopg
from gevent.event import Event

from headrace.node.outage import Outage
from headrace.node.session import connect
from headrace.schema import locks
from headrace.settings import Settings

logger = logging.getLogger(__name__)

SAMPLE: Final = 16
"""One of so many transactions that notify says so on the channel headrace_rate; headrace.announce decides."""
WINDOW_S: Final = 2.0
"""Over which commits are counted, before taking office and before leaving it."""
STAND_BY_S: Final = 1.0
"""Between two looks at whether the office is free; at most half of what lets an idle session end."""
VACUUM_AFTER: Final = 20_000
"""Transactions between two removals of what is left of rows that were taken away. Autovacuum comes once a minute; a
vacuum lets every session that publishes plan its statements anew."""
VACUUM_S: Final = 1.0
"""The same in time, where headrace.unannounced has grown to a quarter of MOST_BYTES before."""
VACUUM_BYTES: Final = 64 << 20
"""Size of headrace.stage, kept full by an old snapshot somewhere, from which it is left to autovacuum."""
MOST_BYTES: Final = 16 << 20
"""Size of headrace.unannounced, kept full likewise, from which ringing costs more than it is worth."""
LARGEST_STAGE: Final = 256 << 20
"""Size of headrace.stage, kept full likewise, from which a session's first rings cost more than they are worth: they
look at all of its rows, which takes about half a second for so many."""
LOOK_BACK_S: Final = 15.0
"""How far a ring that looks back does: for longer than a read's deadline no other ring keeps a row's lock."""
REST_S: Final = 60.0
"""Out of office, when one of the tables has grown so large."""
LEAVING_S: Final = 10.0
"""For transactions that have seen us in office to end; those that stay open longer are left to the sweep."""
WARY_S: Final = 60.0
"""For which a shard stays in office, however few commits there are, after a stranger was at its lock."""
ENDING_S: Final = 1.0
"""The same where the process ends."""

REST_PER_RING: Final = 10.0
"""How many times as long as it took to ring the announcer rests, if that is longer than the interval."""
LONGEST_REST_S: Final = 0.03
"""The longest rest that is because of it. Each ring sets off a read and a burst of writes: few large ones cost less."""

ELDEST: Final = """
    select pg_backend_pid() = (
        select a.pid from pg_stat_activity a
         where a.usename = current_user and a.datname = current_database()
           and a.application_name ~ '^headrace .* announcer$'
         order by a.backend_start, a.pid limit 1)"""
"""Whether this session is the one of all announcers' that rings while a stranger is in office."""

RING: Final = "select transactions, bytes, seen::text from headrace.announce_since(%s::text::pg_snapshot)"

SESSION: Final = "set synchronous_commit = off; set idle_session_timeout = '2s'"


class Announcer:
    """Takes and leaves the office of the announcer, and announces while in it.

    Owned by its own greenlet; `heard` and `missed` only count and wake it. stranger is who was found at the lock of the
    office and should not be, "" if nobody was.
    """

    def __init__(self, settings: Settings, shard_id: str) -> None:
        self.in_office = False
        self.stranger = ""
        self.announced = 0
        self._settings = settings
        self._name = f"headrace {shard_id} announcer"
        self._load = Load(settings.announce_above_per_s)
        self._wanted = Event()
        self._called = False
        self._wary_until = 0.0
        self._ending = Event()
        self._memory = Memory()
        self._taken = 0
        self._vacuumed_at = 0.0
        self._rest_until = 0.0
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start waiting for load; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Leave office, announce what is there, and end. Yields, about a second at most."""
        if self._greenlet is not None:
            self._ending.set()
            self._wanted.set()
            self._greenlet.join(2 * ENDING_S)
            self._greenlet.kill()

    def heard(self, payload: str) -> None:
        """Something came on headrace_rate. Never switches greenlets.

        Without a payload a transaction has told that it has notified by itself; with one, an announcer that there is
        reason to stand by.
        """
        if payload or self._load.heard(time.monotonic()):
            self._called = True
            self._wanted.set()

    def missed(self) -> None:
        """The sweep has found events that nobody had notified of, or not yet. Never switches greenlets."""
        self._wanted.set()

    def _run(self) -> None:
        outage = Outage(logger, "cannot announce, transactions do it", "commits can be announced again")
        while self._wanted.wait() and not self._ending.wait(max(0.0, self._rest_until - time.monotonic())):
            try:
                with closing(self._connect()) as connection:
                    self._serve(connection)
                self._wanted.clear()
                self.stranger = ""
                outage.ended()
            except (psycopg.Error, gevent.Timeout) as error:
                # Still wanted: what we may have left unannounced is looked for when there is a connection again.
                self._ending.wait(outage.failed(error))
            finally:
                self.in_office = False

    def _connect(self) -> psycopg.Connection[Any]:
        # The server gives up when we do: a session that works on in vain would keep its office.
        return connect(self._settings.listen_database_url, self._name, limit_s=self._settings.read_deadline_s)

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for the office, hold it until commits are few, and leave it. Yields."""
        self._memory = Memory()
        called, self._called = self._called, False
        self._ask(connection, SESSION)
        if self._ask(connection, "select pg_relation_size('headrace.stage')") > LARGEST_STAGE:
            logger.warning("rows of headrace.stage cannot be removed, an old transaction may see them")
            self._rest_until = time.monotonic() + REST_S
            return
        if not self._look_for_strangers(connection) and not called:
            self._ring(connection, back=True)
            return
        while not self._ask(connection, "select headrace.take_office()"):
            self._ring(connection, back=True)
            if not self._stand_by(connection):
                return
        self.in_office = True
        logger.info("this shard announces for all publishing transactions")
        began, count, back = time.monotonic(), 0, True
        rest_s = self._settings.announce_interval_s
        while not self._ending.wait(rest_s):
            rang = time.monotonic()
            transactions, size = self._ring(connection, back)
            count += transactions
            back = False
            now = time.monotonic()
            rest_s = rest_after(now - rang, self._settings.announce_interval_s)
            if size > MOST_BYTES:
                logger.warning("rows of headrace.unannounced cannot be removed, an old transaction may see them")
                self._rest_until = now + REST_S
                break
            if now - began >= WINDOW_S:
                self._look_for_strangers(connection)
                if self._load.few(count, now - began) and now >= self._wary_until:
                    break
                began, count, back = now, 0, True
                # For shards that have started since then, and have heard no transaction.
                self._ask(connection, "notify headrace_rate, 'office'")
        self._leave(connection)

    def _stand_by(self, connection: psycopg.Connection[Any]) -> bool:
        """Wait a moment until the office may be free, ringing if a stranger has it; False to end. Yields."""
        until = time.monotonic() + STAND_BY_S * random.uniform(0.5, 1.0)
        if not self._look_for_strangers(connection) or not self._ask(connection, ELDEST):
            return not self._ending.wait(until - time.monotonic())
        while (rang := time.monotonic()) < until:
            self._ring(connection)
            if self._ending.wait(rest_after(time.monotonic() - rang, self._settings.announce_interval_s)):
                return False
        return True

    def _look_for_strangers(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether a stranger has the office, or waits for it; the first time the log says who. Yields."""
        with gevent.Timeout(self._settings.read_deadline_s):
            found = [who for who in locks.strangers(connection) if who.lock == locks.OFFICE and who.exclusive]
        if not found:
            self.stranger = ""
            return False
        before, self.stranger = self.stranger, f"{found[0].role} (pid {found[0].pid})"
        self._wary_until = time.monotonic() + WARY_S
        if not before:
            logger.warning("role %s is at the lock of the announcer; shards announce all the same", self.stranger)
        return True

    def _leave(self, connection: psycopg.Connection[Any]) -> None:
        """Let transactions notify by themselves, and announce what others have left to us. Yields."""
        self._ask(connection, "select headrace.leave_office()")
        self.in_office = False
        left = time.monotonic()
        while not self._ask(connection, "select headrace.nobody_defers()"):
            self._ring(connection)
            if time.monotonic() - left > (ENDING_S if self._ending.is_set() else LEAVING_S):
                break
            gevent.sleep(self._settings.announce_interval_s)
        self._ring(connection, back=True)
        # Nobody writes to the table now, so it can become small again.
        self._vacuum(connection, "vacuum (skip_locked) headrace.unannounced")
        logger.info("transactions announce by themselves again")

    def _ring(self, connection: psycopg.Connection[Any], back: bool = False) -> tuple[int, int]:
        """Notify of all that waits; of how many transactions, and the size of headrace.unannounced. Yields."""
        since = self._memory.since(time.monotonic(), back)
        transactions, size, seen = self._row(connection, RING, since)
        now = time.monotonic()
        self._memory.add(now, seen)
        self.announced += transactions
        self._taken += transactions
        grown = size > MOST_BYTES / 4 and now - self._vacuumed_at >= VACUUM_S
        if self._taken >= VACUUM_AFTER or (grown and transactions):
            self._taken, self._vacuumed_at = 0, now
            # Not made smaller here: that would wait for a moment in which nobody publishes.
            self._vacuum(connection, "vacuum (skip_locked, truncate off) headrace.unannounced")
            if self._ask(connection, "select pg_total_relation_size('headrace.stage')") < VACUUM_BYTES:
                self._vacuum(connection, "vacuum (skip_locked, truncate off) headrace.stage")
        return transactions, size

    def _vacuum(self, connection: psycopg.Connection[Any], statement: str) -> None:
        """A statement that must not be in a transaction, and that calls no function. Yields."""
        with gevent.Timeout(self._settings.read_deadline_s):
            psycopg.Cursor(connection).execute(statement.encode())

    def _ask(self, connection: psycopg.Connection[Any], statement: str) -> Any:
        """The first column of the first row, if any. Yields."""
        row = self._row(connection, statement)
        return row[0] if row else None

    def _row(self, connection: psycopg.Connection[Any], statement: str, *parameters: object) -> Any:
        """The first row, if any. Yields."""
        with gevent.Timeout(self._settings.read_deadline_s):
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchone() if cursor.description else None


def rest_after(ringing_s: float, interval_s: float) -> float:
    """How long to rest after a ring that took so long: the interval, or more on a machine that is busy.

    A ring costs what a few commits cost, most of it however many it tells of. Where it takes long, as publishers and
    shards use all cores, ringing seldom leaves more to them.
    """
    return max(interval_s, min(REST_PER_RING * ringing_s, LONGEST_REST_S))


class Memory:
    """What the rings of one session have seen, which is where the next one may begin to look.

    Owned by the announcer. Marks are about a second apart, the oldest is at least LOOK_BACK_S old if there is one.
    """

    def __init__(self) -> None:
        self._newest: str | None = None
        self._marks: deque[tuple[float, str]] = deque()

    def since(self, now: float, back: bool) -> str | None:
        """What the ring before has seen, or one LOOK_BACK_S ago; None if there was none, to look at all rows."""
        if not back:
            return self._newest
        return self._marks[0][1] if self._marks and self._marks[0][0] <= now - LOOK_BACK_S else None

    def add(self, now: float, seen: str) -> None:
        """Remember what a ring that has committed has seen."""
        self._newest = seen
        if not self._marks or now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, seen))
        while len(self._marks) > 1 and self._marks[1][0] <= now - LOOK_BACK_S:
            self._marks.popleft()


class Load:
    """Whether commits are many, from a sample of them, or few, from a count.

    Owned by the announcer. Few is half of what many is, so that an office taken is not left at once.
    """

    def __init__(self, above_per_s: float) -> None:
        self._above_per_s = above_per_s
        self._heard: deque[float] = deque(maxlen=max(1, math.ceil(above_per_s * WINDOW_S / SAMPLE)))

    def heard(self, now: float) -> bool:
        """One transaction of SAMPLE has notified; whether they are many."""
        self._heard.append(now)
        full = len(self._heard) == self._heard.maxlen
        return full and now - self._heard[0] <= WINDOW_S and self._above_per_s > 0

    def few(self, count: int, seconds: float) -> bool:
        """Whether so many transactions in that time are few; where nobody is to announce for many, all are."""
        return self._above_per_s <= 0 or count < self._above_per_s / 2 * seconds
