"""The sequencer: numbers the events of the whole database, and notifies of them, while there are many.

A transaction that numbers its own events holds their streams until its commit is flushed, and one that notifies
flushes alone. When commits are many, one shard therefore takes office: publishing transactions leave turns, and every
few milliseconds the shard in office does a *round*, which numbers all turns that have become visible and notifies once.
When commits are few, or no shard wants to take office, each transaction does both by itself. headrace/sql/schema.sql,
in its chapter on numbering, says who may rely on whom at which moment, and why nothing is lost. This file keeps these
rules:

    a session that is in office, or may have been, does rounds until `nobody_defers`, and then one more
    every session has an idle_session_timeout, so that a session which does no more rounds loses its office
    while one shard is in office all others stand by: they do a round now and then, and one of them succeeds it

    idle ──(headrace_rate often)──► standing by ──(office free)──► in office ──(few commits)──► leaving ──► idle
      └────(headrace_rate `turn`)──────────────────(office free)────────▲

A shard that is idle has no connection and no timer here. A transaction that may not number, since its snapshot is old,
says `turn` on the channel headrace_rate where nobody is in office: then the first shard that comes takes office.

The office is an advisory lock, which any role that may connect can take (`headrace/schema/locks.py`). A stranger that
holds the lock numbers nothing, and publishing transactions leave their turns to that stranger. So a shard looks who
holds the lock when its pruner finds turns that nobody has numbered, or its sweep finds events that nobody has notified
of. While a stranger holds the lock, one shard does rounds as if it was in office. When the office is to be had again,
the shard takes it and keeps it for WARY_S after the stranger was seen last, since a shard in office cannot be pushed
out.
"""

import logging
import math
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
from headrace.shard.postgres.sequencer_decisions import WINDOW_S, CommitLoad, rest_after

logger = logging.getLogger(__name__)

STAND_BY_S: Final = 1.0
"""The time between two looks at whether the office is free; at most half of the time that ends an idle session."""
FORGET_S: Final = 1.0
"""The time between two removals of turns that were numbered."""
ROUND_LIMIT_S: Final = 60.0
"""The time that a statement may take. After an outage a round has much to number; 100,000 events take a second."""
LEAVING_S: Final = 10.0
"""The time for transactions that have seen this shard in office to end. What transactions that stay open longer publish
is numbered by the next transaction in the stream, or by a shard's pruner."""
TURN: Final = "turn"
"""What a transaction says on the channel headrace_rate that leaves a turn with nobody in office."""
WARY_S: Final = 60.0
"""The time that a shard stays in office, however few commits there are, after a stranger was at its lock."""
ENDING_S: Final = 1.0
"""As LEAVING_S, where the process ends."""

ELDEST: Final = """
    select pg_backend_pid() = (
        select a.pid from pg_stat_activity a
         where a.usename = current_user and a.datname = current_database()
           and a.application_name ~ '^headrace .* sequencer$'
         order by a.backend_start, a.pid limit 1)"""
"""Whether this session is the one of all sequencers' that does rounds while a stranger is in office."""

ROUND: Final = "select transactions from headrace.sequence()"
FORGET: Final = "select headrace.forget_turns(%s::text::xid8)::text"

SESSION: Final = "set idle_session_timeout = '2s'"


class Sequencer:
    """Takes and leaves the office, and numbers while in office.

    Owned by its own greenlet; `heard` and `missed` only count and wake it. excused tells that the shard hears of no
    commits, and need not stand by. numbered counts the turns that it has
    numbered. stranger names the role that was found at the lock of the office and has no business there, "" for none.
    """

    def __init__(self, settings: Settings, shard_id: str) -> None:
        self.in_office = False
        self.stranger = ""
        self.excused = False
        self.numbered = 0
        self._settings = settings
        self._name = f"headrace {shard_id} sequencer"
        self._load = CommitLoad(settings.announce_above_per_s)
        self._wanted = Event()
        self._called = False
        self._turn_left = False
        self._wary_until = 0.0
        self._ending = Event()
        self._forgotten = "0"
        self._forgot_at = 0.0
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start waiting for many commits; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Leave office, number what is there, and end. Yields, about a second at most."""
        if self._greenlet is not None:
            self._ending.set()
            self._wanted.set()
            self._greenlet.join(2 * ENDING_S)
            self._greenlet.kill()

    def heard(self, payload: str) -> None:
        """Take a notification of the channel headrace_rate. Never switches greenlets.

        Without a payload it comes from a transaction that has numbered and notified by itself. `turn` comes from a
        transaction that has left a turn with nobody in office. Any other payload comes from a shard in office, for
        which this shard is to stand by.
        """
        if payload == TURN:
            self._turn_left = True
            self._wanted.set()
        elif payload or self._load.heard(time.monotonic()):
            self._called = True
            self._wanted.set()

    def missed(self) -> None:
        """Note that there were turns that nobody had numbered, or events that nobody had notified of, or not yet.

        Never switches greenlets.
        """
        self._wanted.set()

    def _run(self) -> None:
        outage = Outage(logger, "cannot number for others, transactions do it", "events can be numbered again")
        while self._wanted.wait() and not self._ending.is_set():
            try:
                with closing(self._connect()) as connection:
                    self._serve(connection)
                if not self._turn_left:
                    self._wanted.clear()
                self.stranger = ""
                outage.ended()
            except (psycopg.Error, gevent.Timeout) as error:
                # Still wanted: turns that this shard may have left are numbered over the next connection.
                self._ending.wait(outage.failed(error))
            finally:
                self.in_office = False

    def _connect(self) -> psycopg.Connection[Any]:
        # The server gives up a statement when we do: a session that went on working in vain would keep its office.
        return connect(self._settings.listen_database_url, self._name, limit_s=ROUND_LIMIT_S)

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for the office, hold it until commits are few, and leave it. Yields."""
        self._forgotten, self._forgot_at = "0", 0.0
        called, self._called = self._called, False
        turn_left, self._turn_left = self._turn_left and self._settings.announce_above_per_s > 0, False
        self._ask(connection, SESSION)
        strangers = self._look_for_strangers(connection)
        while not (called or strangers or turn_left) or not self._ask(connection, "select headrace.take_office()"):
            self._round(connection)
            if not (called or strangers) or not self._stand_by(connection):
                return
        self.in_office = True
        logger.info("this shard numbers for all publishing transactions")
        began, count = time.monotonic(), 0
        rest_s = 0.0
        while not self._ending.wait(rest_s):
            numbered, rest_s = self._paced_round(connection, rest_s)
            count += numbered
            now = time.monotonic()
            self._forget_turns(connection, now)
            if now - began >= WINDOW_S:
                self._look_for_strangers(connection)
                if self._load.few(count, now - began) and now >= self._wary_until:
                    break
                began, count = now, 0
                # For shards that have started since this shard took office, and have heard no transaction.
                self._ask(connection, "notify headrace_rate, 'office'")
        self._leave(connection)

    def _stand_by(self, connection: psycopg.Connection[Any]) -> bool:
        """Wait until the office may be free, doing rounds if a stranger holds it; False at the end. Yields."""
        until = time.monotonic() + STAND_BY_S * random.uniform(0.5, 1.0)
        if not self._look_for_strangers(connection) or not self._ask(connection, ELDEST):
            return not self._ending.wait(until - time.monotonic()) and not self.excused
        rest_s = 0.0
        while time.monotonic() < until:
            _, rest_s = self._paced_round(connection, rest_s)
            if self._ending.wait(rest_s):
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
            logger.warning("role %s is at the lock of the office; shards number all the same", self.stranger)
        return True

    def _leave(self, connection: psycopg.Connection[Any]) -> None:
        """Let transactions number by themselves, and number the turns that they have left to this shard. Yields."""
        self._ask(connection, "select headrace.leave_office()")
        self.in_office = False
        left = time.monotonic()
        while not self._ask(connection, "select headrace.nobody_defers()"):
            self._round(connection)
            if time.monotonic() - left > (ENDING_S if self._ending.is_set() else LEAVING_S):
                break
            gevent.sleep(self._settings.announce_interval_s)
        self._round(connection)
        self._forget_turns(connection, math.inf)
        logger.info("transactions number by themselves again")

    def _paced_round(self, connection: psycopg.Connection[Any], rested_s: float) -> tuple[int, float]:
        """Do a round after a rest; returns how many turns it has numbered, and how long to rest now. Yields."""
        began = time.monotonic()
        numbered = self._round(connection)
        round_s = time.monotonic() - began
        return numbered, rest_after(round_s, numbered / (rested_s + round_s), self._settings.announce_interval_s)

    def _round(self, connection: psycopg.Connection[Any]) -> int:
        """Number all turns that wait; returns how many there were, 0 if another session is at it. Yields."""
        transactions = max(0, int(self._ask(connection, ROUND)))
        self.numbered += transactions
        return transactions

    def _forget_turns(self, connection: psycopg.Connection[Any], now: float) -> None:
        """Remove the turns that were numbered, once in FORGET_S. Yields."""
        if now - self._forgot_at >= FORGET_S:
            self._forgot_at = now
            self._forgotten = self._ask(connection, FORGET, self._forgotten)

    def _ask(self, connection: psycopg.Connection[Any], statement: str, *parameters: object) -> Any:
        """The first column of the first row, if any. Yields."""
        with gevent.Timeout(ROUND_LIMIT_S):
            cursor = connection.execute(statement.encode(), parameters)
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None
