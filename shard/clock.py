"""The shard's clock: posts a Tick many times per heartbeat interval and a Sweep every few seconds."""

import random
import time

import gevent

from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, Sweep, Tick
from headrace.shard.numbers.counters import SECONDS, Histogram
from headrace.shard.wall_clock import WallClock


class Clock:
    """Posts Tick and Sweep, at most one of each at a time.

    Owned by its own greenlet. lag is how late this greenlet was woken, in seconds. A tick serves a share of the
    connections, so that they are not all written to at once; the sweeps of several shards are spread by chance, so that
    they do not ask PostgreSQL together.
    """

    def __init__(self, settings: Settings, inbox: Inbox[Message]) -> None:
        self.lag = Histogram(SECONDS)
        self.wall_clock = WallClock()
        self._settings = settings
        self._inbox = inbox
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start ticking; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """End at once, whatever the interval. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        sweep_at = self._next_sweep()
        while True:
            due = time.monotonic() + self._settings.tick_interval_s
            gevent.sleep(self._settings.tick_interval_s)
            # Only the dispatcher works for long without a pause: anything that came meanwhile has waited as long.
            self.lag.observe(max(0.0, time.monotonic() - due))
            self.wall_clock.look()
            self._inbox.put_once(Tick())
            if time.monotonic() >= sweep_at:
                self._inbox.put_once(Sweep())
                sweep_at = self._next_sweep()

    def _next_sweep(self) -> float:
        return time.monotonic() + self._settings.sweep_interval_s * random.uniform(0.8, 1.2)
