"""The users that follow streams, one class for each kind of load. All check everything that they receive."""

import math
import random
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import gevent
from locust import User, constant, task

import headrace
from loadtests.checker import Checker, Problem
from loadtests.load_run import LoadRun
from loadtests.payload import Payload, Writer
from loadtests.stream_connection import CursorNotice, EndedError, RefusedError, StreamConnection

CATCH_UP_DEADLINE_S = 20.0
STORM_INTERVAL_S = 3.0


class BrokenPromiseError(Exception):
    """A problem that the checker found, as locust's failure."""


class Subscriber(User):
    """A user with one connection, which comes back with its Last-Event-ID whenever the connection ends.

    `traffic` are the streams on which its kind of user wants events, and `bytes` the size of each. Reported, under
    the kind's name, are the requests SSE (connecting, until the response's head), EVENT (from just before publishing
    to receipt), and a failure CHECK for each problem. When the user is stopped it reads on until it has all that is
    committed by then.
    """

    abstract = True
    wait_time = constant(0)
    traffic: ClassVar[Sequence[str]] = ()
    bytes: ClassVar[int] = 200
    receive_buffer: ClassVar[int] = 0

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.load_run: LoadRun = environment.headrace
        self.kind = type(self).__name__
        self.connection: StreamConnection | None = None
        self.follow(self.choose())

    def choose(self) -> Sequence[str]:
        """The streams to subscribe to."""
        return self.traffic

    def follow(self, streams: Sequence[str]) -> None:
        """From now on follow these streams, beginning at their heads."""
        self.disconnect()
        self.checker = Checker(streams)
        self.path = headrace.sign(streams, user=self.kind, secrets=self.load_run.settings.secret)

    def on_stop(self) -> None:
        """Read the rest: a missing last event would not be shown by any later one."""
        self.catch_up()
        self.disconnect()

    # -- what tasks are made of; all of them yield

    def read(self, timeout_s: float) -> bool:
        """Check the messages that arrive within timeout_s, connecting first if need be; returns whether any came."""
        if self.connection is None:
            self._connect()
        if self.connection is None:
            return False
        try:
            arrived = self.connection.read(timeout_s)
        except EndedError:
            self.disconnect()
            return False
        for message in arrived:
            if isinstance(message, CursorNotice):
                self._report(self.checker.place(message.id))
                continue
            payload = Payload.decode(message.data)
            if payload is not None:
                self._received(payload.age_ms(), len(message.data))
            self._report(self.checker.take(message, payload))
        return bool(arrived)

    def read_for(self, seconds: float) -> None:
        """Check the messages that arrive during this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def catch_up(self) -> None:
        """Read until every event that is committed now has arrived; one that has not by the deadline counts as lost."""
        heads = self.load_run.database.heads(self.checker.streams)
        deadline = time.monotonic() + CATCH_UP_DEADLINE_S
        while (late := self.checker.behind(heads)) and time.monotonic() < deadline:
            self.read(0.5)
        self._report(late)

    def disconnect(self) -> None:
        """Close the connection without a further word, as browsers do."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # -- reporting

    def _connect(self) -> None:
        began = time.monotonic()
        error: Exception | None = None
        try:
            self.connection = StreamConnection(
                self.environment.host, self.path, self.checker.cursor, receive_buffer=self.receive_buffer
            )
        except (RefusedError, OSError) as refusal:
            error = refusal
        self.environment.events.request.fire(
            request_type="SSE",
            name=self.kind,
            response_time=(time.monotonic() - began) * 1000,
            response_length=0,
            exception=error,
            context={},
        )
        if error is not None:
            gevent.sleep(getattr(error, "retry_after_s", 1.0) * random.uniform(0.5, 1.0))

    def _received(self, milliseconds: float, length: int) -> None:
        self.environment.events.request.fire(
            request_type="EVENT",
            name=self.kind,
            response_time=milliseconds,
            response_length=length,
            exception=None,
            context={},
        )

    def _report(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            self.environment.events.request.fire(
                request_type="CHECK",
                name=f"{self.kind} {problem.kind}",
                response_time=0,
                response_length=0,
                exception=BrokenPromiseError(self.load_run.detail(problem)),
                context={},
            )


class FanOut(Subscriber):
    """Steady fan-out: everybody follows one stream."""

    weight = 5
    traffic = ("load:fanout",)

    @task
    def listen(self) -> None:
        """Read."""
        self.read(1.0)


class ManyStreams(Subscriber):
    """Many small streams: each connection follows 40 of 1,000."""

    weight = 3
    traffic = tuple(f"load:small:{number}" for number in range(1000))

    def choose(self) -> Sequence[str]:
        """Any 40."""
        return random.sample(self.traffic, 40)

    @task
    def listen(self) -> None:
        """Read."""
        self.read(1.0)


class Storm(Subscriber):
    """Connect storm: all of them leave and come back at the same moments, as after a router's restart."""

    weight = 3
    traffic = ("load:storm",)

    @task
    def until_the_next_storm(self) -> None:
        """Read until the next storm, which comes by the machine's clock: at one time in all processes of locust."""
        now = time.monotonic()
        self.read_for((math.floor(now / STORM_INTERVAL_S) + 1) * STORM_INTERVAL_S - now)
        self.disconnect()


class Slow(Subscriber):
    """Slow consumers: they stop reading for seconds, with a small buffer and large events, then take all of it."""

    weight = 1
    traffic = ("load:slow",)
    bytes = 20_000
    receive_buffer = 16384

    @task
    def stall(self) -> None:
        """Read nothing for a while, then until nothing is left at once."""
        if self.connection is not None:
            gevent.sleep(random.uniform(1, 5))
        while self.read(0.2):
            pass


class Chat(Subscriber):
    """A chat: people in a few rooms who read, now and then speak, and after a while go to other rooms."""

    weight = 3
    rooms: ClassVar[Sequence[str]] = tuple(f"load:chat:{number}" for number in range(30))

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.writer = Writer()

    def choose(self) -> Sequence[str]:
        """One to four rooms."""
        return random.sample(self.rooms, random.randint(1, 4))

    @task(10)
    def listen(self) -> None:
        """Read for a moment."""
        self.read_for(random.uniform(0.2, 1))

    @task(5)
    def speak(self) -> None:
        """Say something in one of the rooms."""
        self.load_run.publish(self.environment, self.writer, [random.choice(self.checker.streams)], self.bytes)

    @task(1)
    def move(self) -> None:
        """Go to other rooms, having heard everything in these."""
        self.catch_up()
        self.follow(self.choose())
