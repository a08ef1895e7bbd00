"""The feed of the operations page: an overview of the whole deployment, published while somebody watches.

Any shard with a subscriber of the stream may publish it. They take turns by the directory, so that there is one
overview an interval, however many shards and nodes have watchers. It goes the way of every event, through PostgreSQL,
so the page's graphs are filled from the log when it opens, and a page that reconnects misses nothing.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Final

import gevent
import psycopg

from headrace.errors import DirectoryUnavailableError, UsageError
from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.kept_session import KeptSession
from headrace.node.outage import Outage
from headrace.node.overview import overview
from headrace.publish import publish
from headrace.settings import Settings
from headrace.stream import OPS_AUDIENCE, OPS_STREAM

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 2.0
LOOK_S: Final = 0.5
"""The time between two looks at whether somebody watches and the turn is free."""
DEADLINE_S: Final = 5.0
MOST_ROWS: Final = 50
"""The most hot streams, slow clients and moves of one overview: what a page can show, and an event can hold."""


class OperationsFeed:
    """Reads the whole directory when it is this shard's turn, and publishes what it says.

    Owned by its own greenlet. watched is asked whether somebody here is subscribed. Without Redis or PostgreSQL nothing
    is published; the page asks the router then.
    """

    def __init__(self, settings: Settings, shard_id: str, directory: Directory, watched: Callable[[], bool]) -> None:
        self._settings = settings
        self._name = f"headrace {shard_id} operations"
        self._directory = directory
        self._watched = watched
        self._last: DirectorySnapshot | None = None
        self._kept = KeptSession(settings.database_url, self._name, limit_s=DEADLINE_S)
        self._outage = Outage(
            logger, "no overview reaches the operations page", "overviews reach the operations page again"
        )
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start looking; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """End. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._kept.close()

    def _run(self) -> None:
        while True:
            gevent.sleep(LOOK_S)
            if not self._watched():
                self._kept.close()
            else:
                self._take_turn()

    def _take_turn(self) -> None:
        try:
            if not self._directory.turn("overview", INTERVAL_S - LOOK_S / 2):
                return
            self._last = self._directory.read(self._last)
            with gevent.Timeout(DEADLINE_S):
                self._publish(self._last)
            self._outage.ended()
        except (psycopg.Error, gevent.Timeout, DirectoryUnavailableError, UsageError) as error:
            # A deadline may have interrupted the session in the middle of an answer.
            self._kept.close()
            # The next try comes with the next turn, so there is nothing to wait for.
            self._outage.failed(error)

    def _publish(self, snapshot: DirectorySnapshot) -> None:
        found = overview(snapshot)
        for rows in ("hot_streams", "slow_clients", "moves"):
            found[rows] = found[rows][:MOST_ROWS]
        text = json.dumps({"at": time.time_ns() // 1_000_000, **found}, ensure_ascii=False, separators=(",", ":"))
        self._kept.write(lambda session: publish(session, OPS_STREAM, text, event="overview", visible_to=OPS_AUDIENCE))
