"""Everything that a scenario uses: the node, the floor, clients for either, and the way to keep a shard busy."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from loadtests.bench import cores
from loadtests.bench.clients import Clients
from loadtests.bench.floor import Floor
from loadtests.bench.node import Node
from loadtests.bench.pilot import Pilot
from loadtests.bench.publisher import BenchPublisher
from loadtests.bench.tools import Tools

FLOOR_PER_S: Final = 150_000
"""Deliveries a second that the floor's number of events is chosen for."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that a scenario uses. n is its number of connections; stream is a name that no run has used before."""

    tools: Tools
    node: Node
    publisher: BenchPublisher
    n: int
    seconds: float
    stream: str

    def clients(self, address: tuple[str, int], path: str, *options: str, n: int = 0) -> Clients:
        """Start n clients (0: all of the bench's), which check ids and end when no event has come for a second."""
        return Clients(
            self.tools.ssebench, address, path, n or self.n, "--contiguous", "--idle", "1", "--seconds", "120", *options
        )

    def here(self, *options: str, n: int = 0, path: str = "") -> Clients:
        """Start clients of headrace, on the scenario's stream unless path is another's."""
        return self.clients(self.node.address, path or self.node.path(self.stream), *options, n=n)

    def floor(self, rate: float = 0, batch: int = 1, n: int = 0, streams: int = 1, count: int = 0) -> dict[str, Any]:
        """Run the floor once; returns what its clients received, as `Clients.result` does."""
        n = n or self.n
        count = count or round(self.seconds * (rate or FLOOR_PER_S * batch * streams / n))
        with (
            Floor(self.tools.rawfan) as floor,
            self.clients(floor.address, "/s%d", "--streams", str(streams), n=n) as clients,
        ):
            clients.ready()
            floor.publish(count, rate, batch)
            return clients.result()

    @contextmanager
    def followed(self, *options: str, n: int = 0) -> Iterator[tuple[Clients, Pilot]]:
        """Clients of headrace on the scenario's stream, all connected, and among them a pilot."""
        with self.here(*options, n=n) as clients, Pilot(self.node.address, self.node.path(self.stream)) as pilot:
            pilot.join()
            while not clients.has_spoken(0.05):
                pilot.join()
            clients.ready()
            pilot.begin()
            yield clients, pilot

    def paced(self, rate: float, publish: Callable[..., object]) -> dict[str, Any]:
        """Publish single events to one client, as `BenchPublisher.paced` does; returns what the client measured."""
        with self.here(n=1) as clients:
            clients.ready()
            time.sleep(0.5)
            self.publisher.paced(self.stream, self.seconds, rate, publish)
            return clients.result()

    def saturated(self, window: int, n: int = 0) -> tuple[dict[str, Any], int, float]:
        """Publish behind the pilot; returns the clients' result, how many events, and how busy the shard was (%)."""
        pid = self.node.shard_pids[0]
        with self.followed(n=n) as (clients, pilot):
            since, began = cores.cpu_seconds(pid), time.monotonic()
            events = self.publisher.behind(pilot, self.stream, self.seconds, window)
            busy = 100 * (cores.cpu_seconds(pid) - since) / (time.monotonic() - began)
            result = clients.result()
        return result, events, busy


def busy(result: dict[str, Any]) -> float:
    """How much of its core the load client needed, in percent."""
    # In the last second the load client only waits, to see that no event follows.
    return 100.0 * float(result["client_cpu_s"]) / max(0.1, float(result["span_s"]))
