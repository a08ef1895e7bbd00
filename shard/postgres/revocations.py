"""Revocations: a copy in memory of those in PostgreSQL, read several times a second, by which tokens are refused here.

Rules, which together leave no way round a revocation:

1. A shard refuses a revoked client when the client is handed over, and the router answers 403. A client that was
   accepted a moment before, or that comes from another shard, is checked again when the dispatcher takes it, and is
   told goodbye.
2. With every reading that brings something new, the dispatcher checks all its connections. A connection that is on its
   way to another shard is checked there (1), or here when it comes back.
3. Events that were read from the log are delivered only while the last reading of revocations is at most LEASE_S old
   (`current`). A read of the log that answers later, because it had to wait for PostgreSQL, is asked again. So a shard
   that starts, or that has lost just the session for revocations, delivers nothing instead of too much. A shard that
   has lost PostgreSQL altogether keeps to the revocations that it knows, and has no newer events either.
4. A session that is lost is replaced, and everything is read from the beginning: the new session may lead to another
   server, which numbers its transactions differently.

Reading so often takes the place of notifications: rule 3 needs the readings anyway, each costs one look into an index,
and a notification that is lost in silence cannot do harm. Memory: about 200 bytes for each user that was ever revoked,
or was within HEADRACE_MAX_TOKEN_LIFE_S.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, Final

import gevent
import psycopg
from gevent.event import Event

from headrace.node.outage import Outage
from headrace.node.session import connect
from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, Revised
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.sql_functions import Revocation
from headrace.tokens import Context

logger = logging.getLogger(__name__)

LEASE_S: Final = 3.0
NEWS_DEADLINE_S: Final = 2.0
"""The deadline for a reading of what is new, which is little. Together with the pause before, less than LEASE_S."""
RELOAD_S: Final = 3600.0
"""The time after which all revocations are read anew, so that what PostgreSQL has removed is forgotten here."""
MOVING_S: Final = 30.0
"""The longest time that a connection is on its way between two shards."""


class Revocations:
    """The revocations as last read.

    Written by its own greenlet, between two yields; read by the dispatcher and the intake.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox[Message],
        shard_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outage = Outage(logger, "revocations cannot be read, trying again", "revocations are read again")
        self._settings = settings
        self._inbox = inbox
        self._name = f"headrace {shard_id} revocations"
        self._clock = clock
        self._born = clock()
        self._users: dict[str, tuple[int, str]] = {}
        self._seen: set[int] = set()
        self._lately: dict[str, tuple[float, str]] = {}
        self._current_until = -1.0
        self._loaded = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    @property
    def users(self) -> int:
        """The number of users whose tokens are refused."""
        return len(self._users)

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start reading; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Close the connection and end. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait for the first reading, timeout_s at most; returns whether it has answered. Yields."""
        return self._loaded.wait(timeout_s)

    def current(self) -> bool:
        """Whether the last reading is young enough for events to be delivered. Never switches greenlets."""
        return self._clock() <= self._current_until

    def refuses(self, context: Context) -> str:
        """The reason that a connection of this context is told, "" if it may stay. Never switches greenlets."""
        if context.user is None or context.user not in self._users:
            return ""
        issued_to_ms, reason = self._users[context.user]
        return reason if context.issued_ms <= issued_to_ms else ""

    def missed(self, streams: Iterable[str]) -> str:
        """The reason to close a connection to these streams that comes from another shard, "" if there is none.

        The connection may have been on its way when one of its streams was disconnected. If in truth its client
        connected after that, closing it costs the client one more reconnect. Never switches greenlets.
        """
        now = self._clock()
        lately = (self._lately.get(stream, (now, "")) for stream in streams)
        return next((reason for until, reason in lately if until > now), "")

    def take(self, revocations: Sequence[Revocation], *, whole: bool) -> None:
        """Take what a reading has brought, all revocations if whole is true, and tell the dispatcher what is new."""
        now = self._clock()
        users = {} if whole else self._users
        streams: dict[str, str] = {}
        changed = False
        self._lately = {stream: entry for stream, entry in self._lately.items() if entry[0] > now}
        for item in revocations:
            if item.stream is None:
                known = users.get(item.user or "", (-1, ""))
                if item.issued_to_ms > known[0]:
                    users[item.user or ""] = item.issued_to_ms, item.reason
                    changed = True
            elif item.id not in self._seen:
                # A revocation from before this process concerns only connections that come by a move.
                if item.age_ms / 1000 <= now - self._born:
                    streams[item.stream] = item.reason
                self._lately[item.stream] = now + MOVING_S - item.age_ms / 1000, item.reason
        read = {item.id for item in revocations if item.stream is not None}
        if whole:
            self._seen = read
            self._lately = {stream: entry for stream, entry in self._lately.items() if entry[0] > now}
        else:
            self._seen |= read
        self._users = users
        regained = not self.current()
        self._current_until = now + LEASE_S
        if changed or streams or regained:
            self._inbox.put(Revised(streams))
        self._loaded.set()

    def _run(self) -> None:
        while True:
            try:
                with closing(connect(self._settings.listen_database_url, self._name, lasting=True)) as connection:
                    self._follow(connection)
            except (psycopg.Error, gevent.Timeout) as error:
                gevent.sleep(self.outage.failed(error))

    def _follow(self, connection: psycopg.Connection[Any]) -> None:
        """Read from the beginning, then what is new, until the connection fails. Yields."""
        floor, reload_at = sql_functions.FIRST_FLOOR, self._clock() + RELOAD_S
        while True:
            whole = floor == sql_functions.FIRST_FLOOR
            # A session that has fallen silent holds up events from the end of the lease on.
            with gevent.Timeout(self._settings.read_deadline_s if whole else NEWS_DEADLINE_S):
                next_floor, revocations = sql_functions.read_revocations(connection, floor)
            self.take(revocations, whole=whole)
            floor = next_floor
            self.outage.ended()
            # The pauses differ, so that shards which start together do not ask together for ever.
            gevent.sleep(self._settings.revocation_interval_s * random.uniform(0.8, 1.0))
            if self._clock() >= reload_at:
                floor, reload_at = sql_functions.FIRST_FLOOR, self._clock() + RELOAD_S
