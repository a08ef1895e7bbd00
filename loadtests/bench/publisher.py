"""Publishing in each of the ways that scenarios need."""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg

import headrace
from loadtests.bench.clients import FailedError
from loadtests.bench.payload import payload
from loadtests.bench.pilot import Pilot

BEGIN_S: Final = 20.0


class BenchPublisher:
    """One connection to PostgreSQL, with a transaction for each call."""

    def __init__(self, url: str) -> None:
        self.connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)

    @classmethod
    def when_there_is(cls, url: str, timeout_s: float = 60) -> "BenchPublisher":
        """Connect as soon as PostgreSQL takes connections again. Raises FailedError after the timeout."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                return cls(url)
            time.sleep(0.02)
        raise FailedError(f"PostgreSQL was not back within {timeout_s:g} s")

    def behind(self, pilot: Pilot, stream: str, seconds: float, window: int) -> int:
        """Keep `window` events published that no client has received yet; returns how many were published.

        With a window of 1 the server finds one event each time it reads, without a pause; with more, that many.
        """
        first = published = pilot.seen
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            room = pilot.seen + window - published
            if room == 1:
                headrace.publish_now(self.connection, stream, payload())
            elif room:
                self.many([stream] * room)
            published += room
            pilot.reach(pilot.seen + 1)
        return published - first

    def paced(
        self, stream: str, seconds: float, rate: float, publish: Callable[..., object] = headrace.publish_now
    ) -> int:
        """Publish single events at a rate, each a little off its moment, so as not to keep step with the server.

        publish is `headrace.publish_now` or `headrace.publish`. Returns how many events.
        """
        count = max(1, round(seconds * rate))
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + (number + random.uniform(0, 0.5)) / rate - time.monotonic()))
            publish(self.connection, stream, payload())
        return count

    def flood(self, streams: Sequence[str], seconds: float, batch: int) -> int:
        """Publish to the streams in turn, batch events a transaction, as fast as it goes; returns how many events."""
        deadline = time.monotonic() + seconds
        published = 0
        while time.monotonic() < deadline:
            self.many([streams[(published + k) % len(streams)] for k in range(batch)])
            published += batch
        return published

    def many(self, streams: Sequence[str]) -> None:
        """Publish one event to each of the streams, in one transaction."""
        headrace.publish_many(self.connection, streams, [payload() for _ in streams])

    def begin(self, streams: Sequence[str]) -> None:
        """Publish the first event to each of some new streams; returns when these events have their ids.

        Raises FailedError if that takes longer than BEGIN_S.
        """
        self.many(streams)
        deadline = time.monotonic() + BEGIN_S
        while (begun := self.heads(streams)) < len(streams):
            if time.monotonic() > deadline:
                raise FailedError(f"of {len(streams)} streams {begun} have begun within {BEGIN_S:g} s")
            time.sleep(0.05)

    def head(self, stream: str) -> int:
        """The stream's newest id."""
        return headrace.head(self.connection, stream)

    def heads(self, streams: Sequence[str]) -> int:
        """The sum of the newest ids of these streams."""
        row = self.connection.execute(
            "select sum(headrace.head(name)) from unnest(%s::text[]) name", [list(streams)]
        ).fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()
