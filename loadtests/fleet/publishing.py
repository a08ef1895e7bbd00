"""What publishes while a fleet is measured: the hot stream's events, at a rate, and the canary of each shard."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg

from headrace.publish import publish, publish_now
from headrace.stream import CANARY_PREFIX
from loadtests.fleet.fleet_shard import FleetShard

CANARY_INTERVAL_S: Final = 5.0
CANARY_DEADLINE_S: Final = 20.0

Connection = psycopg.Connection[Any]


class RepeatedWork:
    """Something that is done over and over in a thread of its own, at a rate, from `start` to `stop`.

    count is how often it was done. A step that failed is raised again by `stop`.
    """

    def __init__(self, name: str, rate: Callable[[], float], step: Callable[[Connection], None], url: str):
        """rate is asked before each step, and may change; step is given a connection in autocommit."""
        self.count = 0
        self._rate = rate
        self._step = step
        self._url = url
        self._failure: Exception | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the step under way is done. Raises what ended the thread before its time."""
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        due = time.monotonic()
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                while not self._ending.wait(max(0.0, due - time.monotonic())):
                    self._step(connection)
                    self.count += 1
                    due += 1 / self._rate()
        except Exception as error:  # `stop` raises it again
            self._failure = error


def publisher(url: str, stream: str, rate: float, size: int) -> RepeatedWork:
    """Publishes events of so many bytes to the stream, each in a transaction of its own."""
    data = "x" * size
    return RepeatedWork("publisher", lambda: rate, lambda connection: publish(connection, stream, data), url)


def canaries(url: str, shards: Sequence[FleetShard]) -> RepeatedWork:
    """What the canaries of all these shards do, one after the other: connect, publish at once, read, leave.

    A shard's own canary comes in through the router, which a fleet has not.
    """
    turn = 0

    def step(connection: Connection) -> None:
        nonlocal turn
        shard = shards[turn % len(shards)]
        turn += 1
        stream = f"{CANARY_PREFIX}{shard.id}"
        with shard.connect(stream) as client:
            client.settimeout(CANARY_DEADLINE_S)
            _read_until(client, b"id: ")
            publish_now(connection, stream, "canary")
            _read_until(client, b"data: canary")

    return RepeatedWork("canaries", lambda: len(shards) / CANARY_INTERVAL_S, step, url)


def _read_until(client: socket.socket, text: bytes) -> None:
    found = b""
    while text not in found:
        data = client.recv(1 << 16)
        if not data:
            raise RuntimeError(f"the shard has closed a canary's connection after {found[-200:]!r}")
        found += data
