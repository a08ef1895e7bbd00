"""One run: a fleet that grows step by step, and at each size what it costs idle, and what an event costs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg

from loadtests.fleet.audience import Audience
from loadtests.fleet.fleet_shard import FleetShard
from loadtests.fleet.publishing import canaries, publisher
from loadtests.fleet.servers import Servers

STREAM: Final = "everybody"
RETENTION_S: Final = 15
"""So that events are removed while others are measured, as many a second: an event's removal is part of its cost."""
AT_ONCE: Final = 4
"""Shards that are started together: Python's start takes a core for half a second."""
CATCH_UP_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class FleetFigure:
    """What was measured with so many shards.

    The idle costs are milliseconds of processor time a second; of an event they are milliseconds, less the idle ones.
    shard_event_ms is what one shard spends on an event. behind_s is how long after the last event was published the
    last subscriber had it. reached is the rate at which events were published.
    """

    shards: int
    postgres_idle: float
    redis_idle: float
    postgres_event_ms: float
    redis_event_ms: float
    shard_event_ms: float
    reached: float
    behind_s: float


@dataclass(slots=True)
class FleetVerdict:
    """The result of a run. problems is empty if every subscriber was sent every event, once and in order."""

    rate: float
    size: int
    figures: list[FleetFigure] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The same as a dictionary that can be written as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Processor time until a moment, in seconds."""

    at: float
    postgres: float
    redis: float
    shards: float


class FleetRun:
    """A run with these sizes, in growing order. Owned by the main thread; call it once."""

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        rate: float,
        size: int,
        seconds: float,
        settle_s: float,
        settings: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        """size is an event's, in bytes. seconds is the length of each measurement, settle_s the pause before it.

        settings are further variables of the shards' environment.
        """
        self._sizes = sorted(set(sizes))
        self._seconds = seconds
        self._settle_s = settle_s
        self._settings = settings
        self._say = say
        self._verdict = FleetVerdict(rate, size)
        self._shards: list[FleetShard] = []

    def __call__(self) -> FleetVerdict:
        """Run, and return what was measured. Raises RuntimeError if a shard ends."""
        with Servers(self._sizes[-1]) as servers:
            with psycopg.connect(servers.database_url, autocommit=True) as connection:
                # The stream begins before its subscribers, all of whom begin at its head.
                connection.execute("select headrace.publish_now(%s, 'the first')", [STREAM])
                connection.execute("select headrace.set_retention('*', %s * interval '1 second')", [RETENTION_S])
            audience = Audience(STREAM)
            try:
                for count in self._sizes:
                    self._grow(servers, audience, count)
                    figure = self._measure(servers, audience)
                    self._verdict.figures.append(figure)
                    self._say(render_row(figure))
            finally:
                audience.stop()
                for shard in self._shards:
                    shard.ask_to_stop()
                for shard in self._shards:
                    shard.stop()
            self._verdict.problems = dict(audience.problems)
        return self._verdict

    def _grow(self, servers: Servers, audience: Audience, count: int) -> None:
        while len(self._shards) < count:
            have = len(self._shards)
            new = []
            for number in range(have, min(have + AT_ONCE, count)):
                new.append(FleetShard(servers, number, self._settings))
                self._shards.append(new[-1])
            for shard in new:
                shard.wait_until_ready()
                audience.join(shard)
            self._say(f"{len(self._shards)} of {count} shards serve")

    def _measure(self, servers: Servers, audience: Audience) -> FleetFigure:
        """The costs of the shards that are there, idle and then under load, with their canaries in both."""
        singing = canaries(servers.database_url, self._shards)
        singing.start()
        try:
            time.sleep(self._settle_s)
            self._say(f"{len(self._shards)} shards, idle for {self._seconds:g} s")
            before = self._read(servers)
            time.sleep(self._seconds)
            after = self._read(servers)
            publishing = publisher(servers.database_url, STREAM, self._verdict.rate, self._verdict.size)
            publishing.start()
            try:
                time.sleep(self._settle_s)
                self._say(f"{len(self._shards)} shards, {self._verdict.rate:g} events/s for {self._seconds:g} s")
                first, began = publishing.count, self._read(servers)
                time.sleep(self._seconds)
                events, ended = publishing.count - first, self._read(servers)
            finally:
                publishing.stop()
            behind_s = self._behind(servers, audience)
        finally:
            singing.stop()
        for shard in self._shards:
            shard.check()
        idle_s, load_s = after.at - before.at, ended.at - began.at
        postgres, redis, shards = (
            (getattr(after, name) - getattr(before, name)) / idle_s for name in ("postgres", "redis", "shards")
        )
        each = 1000 / max(1, events)
        return FleetFigure(
            shards=len(self._shards),
            postgres_idle=1000 * postgres,
            redis_idle=1000 * redis,
            postgres_event_ms=(ended.postgres - began.postgres - postgres * load_s) * each,
            redis_event_ms=(ended.redis - began.redis - redis * load_s) * each,
            shard_event_ms=(ended.shards - began.shards - shards * load_s) * each / len(self._shards),
            reached=events / load_s,
            behind_s=behind_s,
        )

    def _behind(self, servers: Servers, audience: Audience) -> float:
        """How long it takes from now until every subscriber has every event."""
        began = time.monotonic()
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            while True:
                # An event that has no id yet is numbered a few milliseconds later.
                row = connection.execute(
                    "select headrace.head(%s), headrace.watermark(%s)", [STREAM, STREAM]
                ).fetchone()
                assert row is not None
                if row[1] == str(row[0]) and not audience.behind(row[0]):
                    return time.monotonic() - began
                if time.monotonic() - began > CATCH_UP_S:
                    audience.problems["late"] += audience.behind(row[0])
                    return CATCH_UP_S
                time.sleep(0.02)

    def _read(self, servers: Servers) -> _Reading:
        postgres, redis = servers.seconds()
        return _Reading(time.monotonic(), postgres, redis, sum(shard.seconds() for shard in self._shards))


HEADINGS: Final = (
    "shards",
    "PostgreSQL idle, ms/s",
    "Redis idle, ms/s",
    "PostgreSQL, ms an event",
    "Redis, ms an event",
    "a shard, ms an event",
    "events/s",
    "behind, s",
)


def render_row(figure: FleetFigure) -> str:
    """The figure as a row of the table."""
    cells = [
        f"{figure.shards}",
        f"{figure.postgres_idle:.0f}",
        f"{figure.redis_idle:.0f}",
        f"{figure.postgres_event_ms:.2f}",
        f"{figure.redis_event_ms:.2f}",
        f"{figure.shard_event_ms:.2f}",
        f"{figure.reached:.0f}",
        f"{figure.behind_s:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def render(verdict: FleetVerdict) -> str:
    """The table, and the arithmetic that leads from it to larger fleets."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}"]
    lines += [render_row(figure) for figure in verdict.figures]
    return "\n".join(lines)
