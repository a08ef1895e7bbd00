"""The user that publishes to the streams which the subscribers of the chosen scenarios follow."""

import random
import time

import gevent
from locust import User, constant, task

from loadtests.load_run import LoadRun
from loadtests.payload import Writer
from loadtests.subscribers import Subscriber

MOST_EVENTS = 10


class Publisher(User):
    """Publishes in transactions of 1 to 10 events, some of which are rolled back; two of these run by default.

    All of them together reach about `--events-per-s`. Each transaction publishes to random streams
    of one scenario.
    """

    fixed_count = 2
    wait_time = constant(0)

    def on_start(self) -> None:
        """Find out which scenarios run, with which streams."""
        self.load_run: LoadRun = self.environment.headrace
        self.writer = Writer()
        self.kinds = [kind for kind in self.environment.user_classes if issubclass(kind, Subscriber) and kind.traffic]
        self.due = time.monotonic()

    @task
    def publish(self) -> None:
        """Wait until a transaction is due, and run it."""
        if not self.kinds:
            gevent.sleep(1)
            return
        kind = random.choices(self.kinds, [kind.weight for kind in self.kinds])[0]
        streams = random.choices(kind.traffic, k=random.randint(1, MOST_EVENTS))
        rate = self.environment.parsed_options.events_per_s / self.fixed_count
        self.due = max(self.due + len(streams) / rate, time.monotonic() - 1)
        gevent.sleep(max(0.0, self.due - time.monotonic()))
        if not self.load_run.publish(
            self.environment, self.writer, streams, kind.bytes, phantom=random.random() < 0.05
        ):
            # Whether the transaction has committed is unknown.
            self.writer = Writer()
