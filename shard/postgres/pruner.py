"""The pruner: removes the events that retention no longer keeps, in small batches, and numbers what others have left.

One shard at a time prunes: headrace.prune tells the others that a shard is at it. One shard at a time forgets idle
streams. The shards take turns by the directory, so that a fleet opens as many connections for this as a single shard.
Without Redis each shard prunes. Each shard notes for the streams of its own clients that they are in use.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import gevent
import psycopg

from headrace.node.outage import Outage
from headrace.node.session import connect
from headrace.settings import Settings
from headrace.shard.postgres import sql_functions
from headrace.shard.registry import Registry

logger = logging.getLogger(__name__)

PAUSE_S = 0.05
"""Between batches, so that pruning does not show in the latency of publishing."""
NUMBER_S = 10.0
"""The longest time between two rounds: with a longer interval of pruning, the pruner comes for a round alone."""
CLEAN_S = 600.0
"""Between two looks at all revocations, 3 ms for a thousand, and the rest; nothing depends on when they are removed."""
FORGET_BATCH = 100
"""Idle streams that one statement forgets, at most: about 7 ms, in which who publishes to one of them waits."""
FORGET_PAUSE_S = 0.1
"""Between such batches: a search for idle streams is in no hurry."""
FORGET_TURN_S = 5.0
"""The longest time for which idle streams are forgotten before events are pruned again."""
NOTE_S = 3600.0
"""The longest time between two notes of the streams in use."""
NOTE_STREAMS = 1000
"""Streams that one statement notes, at most."""
MAX_LEFT = 10_000
"""How many streams may have lost their last client here before they are noted out of turn."""


class Pruner:
    """Prunes every few seconds, until nothing is left to remove or another shard is found pruning.

    Before that it does a round, for turns that nobody else numbers: those that were left to a shard that has died, and
    to a stranger at the lock of the office. `left` is called when it has numbered any, and MUST NOT switch greenlets.
    registry has the streams that are in use here.

    streams is about how many streams the log had at the last look.

    Owned by its own greenlet. turn tells whether it is this shard's turn, which then is no other's for so many seconds.
    """

    def __init__(
        self,
        settings: Settings,
        shard_id: str,
        registry: Registry,
        left: Callable[[], None] = lambda: None,
        turn: Callable[[float], bool] = lambda seconds: True,
    ) -> None:
        self.pruned = 0
        self.forgotten = 0
        self.streams = 0
        self._settings = settings
        self._name = f"headrace {shard_id} pruner"
        self._registry = registry
        self._left = left
        self._turn = turn
        self._note_at = self._prune_at = self._clean_at = 0.0
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start pruning; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """End. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        outage = Outage(logger, "pruning failed, trying again later", "pruning works again")
        while True:
            interval_s = min(self._settings.prune_interval_s, NUMBER_S)
            gevent.sleep(interval_s * random.uniform(0.5, 1.5))
            mine = self._turn(interval_s / 2)
            if not mine and not self._note_is_due():
                continue
            try:
                with connect(self._settings.database_url, self._name) as connection:
                    if self._note_is_due():
                        self._note(connection)
                    if mine:
                        self._upkeep(connection)
            except psycopg.Error as error:
                # Old events stay a little longer; nobody is hurt. The next try comes with the next interval.
                outage.failed(error)
            else:
                outage.ended()

    def _upkeep(self, connection: psycopg.Connection[Any]) -> None:
        """Do what one shard does for all. Yields."""
        if sql_functions.number_left(connection):
            self._left()
        if time.monotonic() >= self._prune_at:
            self._round(connection)
            self._prune_at = time.monotonic() + max(0.0, self._settings.prune_interval_s - NUMBER_S)
        if self._settings.forget_after_s:
            self._forget(connection)
        self.streams = sql_functions.estimate_streams(connection)
        if time.monotonic() >= self._clean_at:
            sql_functions.forget_revocations(connection, self._settings.max_token_life_s)
            sql_functions.forget_publications(connection, self._settings.idempotency_keep_s)
            self._clean_at = time.monotonic() + CLEAN_S * random.uniform(0.5, 1.5)

    def _note_is_due(self) -> bool:
        late = time.monotonic() >= self._note_at or len(self._registry.left) >= MAX_LEFT
        return late and self._settings.forget_after_s > 0

    def _round(self, connection: psycopg.Connection[Any]) -> None:
        while (deleted := sql_functions.prune(connection, self._settings.prune_batch)) > 0:
            self.pruned += deleted
            gevent.sleep(PAUSE_S)

    def _note(self, connection: psycopg.Connection[Any]) -> None:
        """Note all streams that have had a client here since the last note."""
        registry, keep_s = self._registry, self._settings.forget_after_s
        left, registry.left = registry.left, set()
        names = iter(left.union(stream.name for stream in registry.streams))
        try:
            while some := list(itertools.islice(names, NOTE_STREAMS)):
                sql_functions.note_used(connection, some, keep_s)
                gevent.sleep(PAUSE_S)
        except psycopg.Error:
            registry.left |= left
            raise
        # Not all shards at once, and each within an eighth of keep_s.
        self._note_at = time.monotonic() + min(NOTE_S, keep_s / 8) * random.uniform(0.5, 0.9)

    def _forget(self, connection: psycopg.Connection[Any]) -> None:
        until = time.monotonic() + FORGET_TURN_S
        more = True
        while more and time.monotonic() < until:
            forgotten, more = sql_functions.forget_streams(connection, self._settings.forget_after_s, FORGET_BATCH)
            self.forgotten += forgotten
            gevent.sleep(FORGET_PAUSE_S if more else 0)
