"""The pruner: removes the events that retention no longer keeps, in small batches, and numbers what others have left.

One shard at a time prunes: headrace.prune tells the others that a shard is at it. The shards take turns by the
directory, so that a fleet opens as many connections for pruning as a single shard. Without Redis each shard prunes.
"""

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

logger = logging.getLogger(__name__)

PAUSE_S = 0.05
"""Between batches, so that pruning does not show in the latency of publishing."""
NUMBER_S = 10.0
"""The longest time between two rounds: with a longer interval of pruning, the pruner comes for a round alone."""
FORGET_S = 600.0
"""Between two looks at all revocations, 3 ms for a thousand, and the rest; nothing depends on when it is forgotten."""


class Pruner:
    """Prunes every few seconds, until nothing is left to remove or another shard is found pruning.

    Before that it does a round, for turns that nobody else numbers: those that were left to a shard that has died, and
    to a stranger at the lock of the office. `left` is called when it has numbered any, and MUST NOT switch greenlets.

    Owned by its own greenlet. turn tells whether it is this shard's turn, which then is no other's for so many seconds.
    """

    def __init__(
        self,
        settings: Settings,
        shard_id: str,
        left: Callable[[], None] = lambda: None,
        turn: Callable[[float], bool] = lambda seconds: True,
    ) -> None:
        self.pruned = 0
        self._settings = settings
        self._name = f"headrace {shard_id} pruner"
        self._left = left
        self._turn = turn
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
        forget_at = 0.0
        prune_at = 0.0
        outage = Outage(logger, "pruning failed, trying again later", "pruning works again")
        while True:
            interval_s = min(self._settings.prune_interval_s, NUMBER_S)
            gevent.sleep(interval_s * random.uniform(0.5, 1.5))
            if not self._turn(interval_s / 2):
                continue
            try:
                with connect(self._settings.database_url, self._name) as connection:
                    if sql_functions.number_left(connection):
                        self._left()
                    if time.monotonic() >= prune_at:
                        self._round(connection)
                        prune_at = time.monotonic() + max(0.0, self._settings.prune_interval_s - NUMBER_S)
                    if time.monotonic() >= forget_at:
                        sql_functions.forget_revocations(connection, self._settings.max_token_life_s)
                        sql_functions.forget_publications(connection, self._settings.idempotency_keep_s)
                        forget_at = time.monotonic() + FORGET_S * random.uniform(0.5, 1.5)
            except psycopg.Error as error:
                # Old events stay a little longer; nobody is hurt. The next try comes with the next interval.
                outage.failed(error)
            else:
                outage.ended()

    def _round(self, connection: psycopg.Connection[Any]) -> None:
        while (deleted := sql_functions.prune(connection, self._settings.prune_batch)) > 0:
            self.pruned += deleted
            gevent.sleep(PAUSE_S)
