"""The cost of metrics: two nodes deliver in turn, one that counts and is scraped, and one whose code counts nothing.

Both have all their clients connected from the beginning, and each is idle while it is the other's turn. So other work
of the machine, and its changes over the minutes, slow both alike, and the ratio of two neighbouring turns can be
trusted further than either of their rates.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import headrace
from loadtests.bench import cores, uncounted
from loadtests.bench.bench import Bench
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure
from loadtests.bench.node import Node
from loadtests.bench.payload import payload
from loadtests.bench.pilot import Pilot
from loadtests.bench.publisher import BenchPublisher

TURN_S: Final = 1.0
WARM_EVENTS: Final = 20
"""Events that are published before a turn is measured. After a pause a receiver's TCP acknowledges the first 16
segments at once, each by itself, and the sender pays for it: 40 % more a delivery."""
SCRAPE_AFTER_S: Final = 0.3
"""When in a turn its scrape begins: so there is one scrape for each second of delivering."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a node: its deliveries, how long it was, and the processor time that its shard used, in seconds."""

    deliveries: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Deliveries a second."""
        return self.deliveries / self.seconds

    @property
    def cost_us(self) -> float:
        """Processor time of a delivery, in microseconds."""
        return 1e6 * self.cpu_s / self.deliveries


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two nodes, with its clients. Owned by the scenario."""

    bench: Bench
    pilot: Pilot

    def turn(self, *, scraped: bool) -> Turn:
        """Keep the shard writing for TURN_S, from the beginning of one event's deliveries to that of another's."""
        pid = self.bench.node.shard_pids[0]
        with ThreadPoolExecutor(1) as scraper:
            for _ in range(WARM_EVENTS):
                self._one()
            began, cpu_s = time.monotonic(), cores.scheduled_seconds(pid)
            scraping = scraper.submit(self._scrape_soon) if scraped else None
            events = 0
            while time.monotonic() < began + TURN_S or (scraping and not scraping.done()):
                self._one()
                events += 1
            turn = Turn(events * self.bench.n, time.monotonic() - began, cores.scheduled_seconds(pid) - cpu_s)
        if scraping:
            scraping.result()
        return turn

    def counted(self) -> int:
        """The deliveries that the shard has counted."""
        return self.bench.node.counted("headrace_deliveries_total")

    def _one(self) -> None:
        """Publish an event, and wait until the first client has it."""
        before = self.pilot.seen
        headrace.publish_now(self.bench.publisher.connection, self.bench.stream, payload())
        self.pilot.reach(before + 1)

    def _scrape_soon(self) -> None:
        time.sleep(SCRAPE_AFTER_S)
        self.bench.node.scrape()


def metrics(bench: Bench) -> list[Figure]:
    """Fan-out with metrics as they are and one scrape a second, and without any, a second each in turn."""
    pairs = max(1, round(bench.seconds / TURN_S))
    with _bare(bench) as bare, _side(bench) as counting, _side(bare) as silent:
        found = [(counting.turn(scraped=True), silent.turn(scraped=False)) for _ in range(pairs)]
        if not counting.counted() or silent.counted():
            raise FailedError("the node without metrics has counted, or the other has not")
    on, off = _sum(turn for turn, _ in found), _sum(turn for _, turn in found)
    slower = median(a.rate / b.rate for a, b in found)
    dearer = median(a.cost_us / b.cost_us for a, b in found)
    return [
        Figure("deliveries; beside without metrics", "1/s", on.rate, off.rate),
        Figure("processor time a delivery; beside without", "µs", on.cost_us, off.cost_us),
        Figure("deliveries that metrics cost, median of pairs", "%", 100 * (1 - slower)),
        Figure("processor time that they cost, median of pairs", "%", 100 * (dearer - 1)),
        Figure("pairs of turns", "", pairs),
    ]


@contextmanager
def _bare(bench: Bench) -> Iterator[Bench]:
    """The same bench at a node of its own, which counts nothing."""
    with tempfile.TemporaryDirectory(prefix="headrace-uncounted-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        uncounted.copy(root)
        node = Node(bench.node.shards, bench.node.router_workers, root)
        try:
            node.start()
            with closing(BenchPublisher(node.database_url)) as publisher:
                yield dataclasses.replace(bench, node=node, publisher=publisher)
        finally:
            node.stop()


@contextmanager
def _side(bench: Bench) -> Iterator[Side]:
    """A node's clients, connected; at the end they must have had every event once, in order."""
    with bench.followed("--idle", "0", "--seconds", "3600") as (clients, pilot):
        yield Side(bench, pilot)
        clients.leave()
        clients.result()


def _sum(turns: Iterator[Turn]) -> Turn:
    all_ = list(turns)
    return Turn(sum(t.deliveries for t in all_), sum(t.seconds for t in all_), sum(t.cpu_s for t in all_))
