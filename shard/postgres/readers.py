"""The readers: a few greenlets, each with its database connection, that run the dispatcher's reads beside it.

The first serves the live lane alone, so that catching up never stands in its way; the others serve the rest.
A single reader serves both in order of arrival. A read that fails because PostgreSQL is away is tried
until it is back; one that PostgreSQL refuses is reported.
"""

import logging
import time
from functools import partial
from typing import Any

import gevent
import psycopg
from gevent.queue import SimpleQueue

from headrace.node.kept_session import KeptSession
from headrace.node.outage import Outage
from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, Read, ReadFailed, ReadKind, Rows
from headrace.shard.numbers.counters import SECONDS, SIZES, Histogram
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.unsendable import Unsendable

logger = logging.getLogger(__name__)


class ReadCounters:
    """The numbers of one kind of read. asked_at is when the one that is outstanding was asked for, None without one."""

    def __init__(self) -> None:
        self.seconds = Histogram(SECONDS)
        self.streams = Histogram(SIZES)
        self.events = Histogram(SIZES)
        self.failures = 0
        self.asked_at: float | None = None

    def answered(self, seconds: float, streams: int, events: int) -> None:
        """PostgreSQL has answered."""
        self.asked_at = None
        self.seconds.observe(seconds)
        self.streams.observe(streams)
        self.events.observe(events)

    def refused(self) -> None:
        """PostgreSQL has refused the read."""
        self.asked_at = None
        self.failures += 1


class Readers:
    """Runs reads and answers each with one Rows or ReadFailed message.

    The queues are shared. Each connection is owned by its reader's greenlet.
    """

    def __init__(self, settings: Settings, inbox: Inbox[Message], shard_id: str) -> None:
        self.reads = {kind: ReadCounters() for kind in ReadKind}
        self.reconnects = 0
        self.outage = Outage(logger, "PostgreSQL is away, reads wait for it", "PostgreSQL is back")
        self.unsendable = Unsendable()
        self._settings = settings
        self._inbox = inbox
        self._shard_id = shard_id
        self._live: SimpleQueue[Read] = SimpleQueue()
        self._rest: SimpleQueue[Read] = SimpleQueue() if settings.readers > 1 else self._live
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start the readers; returns their greenlets, which end only by `stop`."""
        for number in range(self._settings.readers):
            lane = self._rest if number else self._live
            self._greenlets.append(gevent.spawn(self._run, f"headrace {self._shard_id} reader {number}", lane))
        return self._greenlets

    def stop(self) -> None:
        """End the readers; outstanding reads are dropped. Yields."""
        gevent.killall(self._greenlets)

    def submit(self, read: Read) -> None:
        """Queue a read. Never switches greenlets."""
        self.reads[read.kind].asked_at = time.monotonic()
        (self._live if read.kind is ReadKind.LIVE else self._rest).put(read)

    def _run(self, name: str, lane: SimpleQueue[Read]) -> None:
        kept = KeptSession(self._settings.database_url, name, limit_s=self._settings.read_deadline_s)
        reopened = 0
        try:
            while True:
                read = lane.get()
                while True:
                    try:
                        answer = kept.read(partial(self._answer, read=read))
                        break
                    except (psycopg.OperationalError, psycopg.InterfaceError, gevent.Timeout) as error:
                        kept.close()
                        gevent.sleep(self.outage.failed(error))
                self.reconnects += kept.reopened - reopened
                reopened = kept.reopened
                self.outage.ended()
                self._inbox.put(answer)
        finally:
            kept.close()

    def _answer(self, connection: psycopg.Connection[Any], read: Read) -> Rows | ReadFailed:
        """Run one read, under a deadline that also ends the wait for a server gone silent. Yields."""
        settings = self._settings
        started = time.monotonic()
        share = max(1, settings.page_bytes // len(read.streams))
        names = [stream.name for stream in read.streams]
        try:
            with gevent.Timeout(settings.read_deadline_s):
                pages, ages, timeline = sql_functions.read_pages(
                    connection,
                    names,
                    read.after,
                    settings.page_events,
                    share,
                    settings.page_bytes,
                    self.unsendable,
                )
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except psycopg.Error as error:
            self.reads[read.kind].refused()
            return ReadFailed(read, f"{type(error).__name__}: {error}")
        self.reads[read.kind].answered(time.monotonic() - started, len(pages), len(ages))
        return Rows(read, pages, started, ages if read.kind is ReadKind.LIVE else (), timeline)
