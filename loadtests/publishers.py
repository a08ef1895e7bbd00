"""The user that publishes what the subscribers of the chosen scenarios follow."""

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

    All of them together reach about `--events-per-s`. Each transaction is for one of the scenarios, on random
    streams of it.
    """

    fixed_count = 2
    wait_time = constant(0)

    def on_start(self) -> None:
        """See what the others want."""
        self.load_run: LoadRun = self.environment.headrace
        self.writer = Writer()
        self.kinds = [kind for kind in self.environment.user_classes if issubclass(kind, Subscriber) and kind.traffic]
        self.due = time.monotonic()

    @task
    def publish(self) -> None:
        """One transaction, when it is due."""
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
            # Whether it has committed is not known.
            self.writer = Writer()
