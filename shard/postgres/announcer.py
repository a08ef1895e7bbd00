"""The announcer: notifies for the publishing transactions of the whole database, while there are many of them.

A transaction that notifies flushes its commit alone. When commits are many, one shard therefore takes office:
publishing transactions leave rows instead of notifying, and every few milliseconds the shard in office does a *round*,
which notifies once for all rows that are there. When commits are few, or no shard wants to take office, each
transaction notifies by itself. headrace/sql/schema.sql, in its chapter on announcing, says who may rely on whom at
which moment, why no wake is lost, and which rows a round looks at. This file keeps these rules:

    a session that is in office, or may have been, does rounds until `nobody_defers`, and then one more
    every session has an idle_session_timeout, so that a session which does no more rounds loses its office
    what a round has seen is remembered only if the round has committed, and only within one session. Once in WINDOW_S,
    when this shard has taken office, and in its last round, the round looks further back
    while one shard is in office all others stand by: they do a round now and then, and one of them succeeds it

    idle ──(headrace_rate often)──► standing by ──(office free)──► in office ──(few commits)──► leaving ──► idle

A shard that is idle has no connection and no timer here.

The office is an advisory lock, which any role that may connect can take (`headrace/schema/locks.py`). A stranger that
holds the lock notifies nobody, and publishing transactions leave their rows to that stranger. So a shard looks who
holds the lock when its sweep finds events that nobody has notified of. While a stranger holds it, one shard does rounds
as if it was in office. When the office is to be had again, the shard takes it and keeps it for WARY_S after the
stranger was seen last, since a shard in office cannot be pushed out.
"""

import logging
import random
import time
from contextlib import closing
from typing import Any, Final

import gevent
import psycopg
from gevent.event import Event

from headrace.node.outage import Outage
from headrace.node.session import connect
from headrace.schema import locks
from headrace.settings import Settings
from headrace.shard.postgres.announcer_decisions import WINDOW_S, CommitLoad, SeenTransactions, rest_after

logger = logging.getLogger(__name__)

STAND_BY_S: Final = 1.0
"""The time between two looks at whether the office is free; at most half of the time that ends an idle session."""
VACUUM_AFTER: Final = 20_000
"""The number of transactions between two vacuums, which remove what is left of rows that were taken away. Autovacuum
comes once a minute, and each vacuum makes every session that publishes plan its statements anew."""
VACUUM_S: Final = 1.0
"""The shortest time between two vacuums, where headrace.unannounced grows to a quarter of MOST_BYTES before."""
VACUUM_BYTES: Final = 64 << 20
"""A headrace.stage of this size, which an old snapshot somewhere keeps full, is left to autovacuum."""
MOST_BYTES: Final = 16 << 20
"""With a headrace.unannounced of this size, which an old snapshot keeps full, rounds cost more than they are worth."""
LARGEST_STAGE: Final = 256 << 20
"""With a headrace.stage of this size, which an old snapshot keeps full, the first rounds of a session cost more than
they are worth: they look at all of its rows, which takes about half a second for so many."""
REST_S: Final = 60.0
"""The time that the announcer stays out of office after one of the tables has grown so large."""
LEAVING_S: Final = 10.0
"""The time for transactions that have seen this shard in office to end. What transactions that stay open longer publish
is left to the sweep."""
WARY_S: Final = 60.0
"""The time that a shard stays in office, however few commits there are, after a stranger was at its lock."""
ENDING_S: Final = 1.0
"""As LEAVING_S, where the process ends."""

ELDEST: Final = """
    select pg_backend_pid() = (
        select a.pid from pg_stat_activity a
         where a.usename = current_user and a.datname = current_database()
           and a.application_name ~ '^headrace .* announcer$'
         order by a.backend_start, a.pid limit 1)"""
"""Whether this session is the one of all announcers' that does rounds while a stranger is in office."""

ROUND: Final = "select transactions, bytes, seen::text from headrace.announce_since(%s::text::pg_snapshot)"

SESSION: Final = "set synchronous_commit = off; set idle_session_timeout = '2s'"


class Announcer:
    """Takes and leaves the office of the announcer, and announces while in office.

    Owned by its own greenlet; `heard` and `missed` only count and wake it. announced counts the transactions that it
    has announced. stranger names the role that was found at the lock of the office and has no business there, "" for
    none.
    """

    def __init__(self, settings: Settings, shard_id: str) -> None:
        self.in_office = False
        self.stranger = ""
        self.announced = 0
        self._settings = settings
        self._name = f"headrace {shard_id} announcer"
        self._load = CommitLoad(settings.announce_above_per_s)
        self._wanted = Event()
        self._called = False
        self._wary_until = 0.0
        self._ending = Event()
        self._seen = SeenTransactions()
        self._taken = 0
        self._vacuumed_at = 0.0
        self._rest_until = 0.0
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start waiting for many commits; returns the greenlet, which ends only by `stop`."""
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
        """Take a notification of the channel headrace_rate. Never switches greenlets.

        One without a payload comes from a transaction that has notified by itself. One with a payload comes from a
        shard in office, for which this shard is to stand by.
        """
        if payload or self._load.heard(time.monotonic()):
            self._called = True
            self._wanted.set()

    def missed(self) -> None:
        """Note that the sweep has found events that nobody has notified of, or not yet. Never switches greenlets."""
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
                # Still wanted: rows that this shard may have left unannounced are looked for over the next connection.
                self._ending.wait(outage.failed(error))
            finally:
                self.in_office = False

    def _connect(self) -> psycopg.Connection[Any]:
        # The server gives up a statement when we do: a session that went on working in vain would keep its office.
        return connect(self._settings.listen_database_url, self._name, limit_s=self._settings.read_deadline_s)

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for the office, hold it until commits are few, and leave it. Yields."""
        self._seen = SeenTransactions()
        called, self._called = self._called, False
        self._ask(connection, SESSION)
        if self._ask(connection, "select pg_relation_size('headrace.stage')") > LARGEST_STAGE:
            logger.warning("rows of headrace.stage cannot be removed, an old transaction may see them")
            self._rest_until = time.monotonic() + REST_S
            return
        if not self._look_for_strangers(connection) and not called:
            self._round(connection, back=True)
            return
        while not self._ask(connection, "select headrace.take_office()"):
            self._round(connection, back=True)
            if not self._stand_by(connection):
                return
        self.in_office = True
        logger.info("this shard announces for all publishing transactions")
        began, count, back = time.monotonic(), 0, True
        rest_s = self._settings.announce_interval_s
        while not self._ending.wait(rest_s):
            began_round = time.monotonic()
            transactions, size = self._round(connection, back)
            count += transactions
            back = False
            now = time.monotonic()
            rest_s = rest_after(now - began_round, self._settings.announce_interval_s)
            if size > MOST_BYTES:
                logger.warning("rows of headrace.unannounced cannot be removed, an old transaction may see them")
                self._rest_until = now + REST_S
                break
            if now - began >= WINDOW_S:
                self._look_for_strangers(connection)
                if self._load.few(count, now - began) and now >= self._wary_until:
                    break
                began, count, back = now, 0, True
                # For shards that have started since this shard took office, and have heard no transaction.
                self._ask(connection, "notify headrace_rate, 'office'")
        self._leave(connection)

    def _stand_by(self, connection: psycopg.Connection[Any]) -> bool:
        """Wait until the office may be free, doing rounds if a stranger holds it; False at the end. Yields."""
        until = time.monotonic() + STAND_BY_S * random.uniform(0.5, 1.0)
        if not self._look_for_strangers(connection) or not self._ask(connection, ELDEST):
            return not self._ending.wait(until - time.monotonic())
        while (began := time.monotonic()) < until:
            self._round(connection)
            if self._ending.wait(rest_after(time.monotonic() - began, self._settings.announce_interval_s)):
                return False
        return True

    def _look_for_strangers(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether a stranger holds the office, or waits for it. A log line names a stranger that is new. Yields."""
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
        """Let transactions notify by themselves, and announce the rows that they have left to this shard. Yields."""
        self._ask(connection, "select headrace.leave_office()")
        self.in_office = False
        left = time.monotonic()
        while not self._ask(connection, "select headrace.nobody_defers()"):
            self._round(connection)
            if time.monotonic() - left > (ENDING_S if self._ending.is_set() else LEAVING_S):
                break
            gevent.sleep(self._settings.announce_interval_s)
        self._round(connection, back=True)
        # No transaction writes to the table now, so a vacuum can make it small again.
        self._vacuum(connection, "vacuum (skip_locked) headrace.unannounced")
        logger.info("transactions announce by themselves again")

    def _round(self, connection: psycopg.Connection[Any], back: bool = False) -> tuple[int, int]:
        """Notify for all rows that wait. With back, look further back than the last round. Yields.

        Returns the number of transactions that were announced, and the size of headrace.unannounced in bytes.
        """
        since = self._seen.since(time.monotonic(), back)
        transactions, size, seen = self._row(connection, ROUND, since)
        now = time.monotonic()
        self._seen.add(now, seen)
        self.announced += transactions
        self._taken += transactions
        grown = size > MOST_BYTES / 4 and now - self._vacuumed_at >= VACUUM_S
        if self._taken >= VACUUM_AFTER or (grown and transactions):
            self._taken, self._vacuumed_at = 0, now
            # With truncation, the vacuum would wait for a moment in which nobody publishes.
            self._vacuum(connection, "vacuum (skip_locked, truncate off) headrace.unannounced")
            if self._ask(connection, "select pg_total_relation_size('headrace.stage')") < VACUUM_BYTES:
                self._vacuum(connection, "vacuum (skip_locked, truncate off) headrace.stage")
        return transactions, size

    def _vacuum(self, connection: psycopg.Connection[Any], statement: str) -> None:
        """Run a statement that must not be in a transaction, and that calls no function. Yields."""
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
