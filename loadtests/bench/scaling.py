"""Scenarios that measure one thing at several sizes: how cost and latency grow, and how shards share a hot stream."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

from loadtests.bench import cores
from loadtests.bench.bench import FLOOR_PER_S, Bench
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure
from loadtests.bench.floor import Floor
from loadtests.bench.paused_clients import PausedClients
from loadtests.bench.pilot import Pilot
from loadtests.bench.publisher import BenchPublisher

RATES: Final = (10, 50, 100, 200, 400, 800)
STREAMS: Final = 50
HOT_DEADLINE_S: Final = 30.0
UNREAD_S: Final = 2.0
"""Seconds of publishing to clients that do not read: their buffers, and the kernel's memory, have room for no more."""
UNREAD_EVENTS: Final = 1000
"""Events that a client's buffer has room for. The floor waits for room, so it would stand still for ever with more."""
PILOTS: Final = 8


def growth(bench: Bench) -> list[Figure]:
    """One stream, one event each time the shard reads, with more and more connections: the cost of a delivery."""
    found: list[Figure] = []
    sizes = (max(10, bench.n // 5), bench.n // 2, bench.n, 2 * bench.n, 3 * bench.n)
    for n in sizes:
        floor = bench.floor(n=n)
        result, _, _ = bench.saturated(1, n=n)
        found.append(
            Figure(f"deliveries, {n:,} connections", "1/s", result["events_per_s"], floor["events_per_s"], at=n)
        )
    small, large = found[0], found[-1]
    assert small.floor is not None
    assert large.floor is not None
    name = f"cost of a delivery, {sizes[-1]:,} connections beside {sizes[0]:,}"
    found.append(Figure(name, "times", small.headrace / large.headrace, small.floor / large.floor))
    return found


def rates(bench: Bench) -> list[Figure]:
    """One subscriber, and single events, each in a transaction of its own, at greater and greater rates."""
    found: list[Figure] = []
    for rate in RATES:
        with bench.here(n=1) as clients:
            clients.ready()
            time.sleep(0.5)
            began = time.monotonic()
            count = bench.publisher.paced(bench.stream, bench.seconds / 2, rate)
            reached = count / (time.monotonic() - began)
            result = clients.result()
        found.append(Figure(f"p50 at {rate} events/s", "ms", result["lat_p50_us"] / 1e3, at=reached))
        found.append(Figure(f"p99 at {rate} events/s", "ms", result["lat_p99_us"] / 1e3, at=reached))
    return found


def hot(bench: Bench) -> list[Figure]:
    """Four of five clients follow one stream of a node with four shards: how these share it, and after how long."""
    node = bench.node
    crowd, others = bench.n * 4 // 5, max(STREAMS, bench.n // 5)
    with ExitStack() as stack:
        for number in range(STREAMS):
            path = node.path(f"{bench.stream}.{number}")
            stack.enter_context(bench.clients(node.address, path, "--hold", n=others // STREAMS)).ready()
        fans = stack.enter_context(bench.clients(node.address, node.path(bench.stream), "--hold", n=crowd)).ready()
        began = time.monotonic()
        while True:
            counts = node.held_by_shards(fans.ports())
            mean = sum(counts) / len(counts)
            took = time.monotonic() - began
            if sum(counts) == crowd and all(abs(count - mean) <= 0.3 * mean for count in counts):
                break
            if took > HOT_DEADLINE_S:
                raise FailedError(f"after {took:.0f} s the shards have {counts} of {crowd} connections of a hot stream")
            time.sleep(0.1)
    return [
        Figure("shared out after", "s", took),
        Figure("least of a shard, of the mean", "", min(counts) / mean),
        Figure("most of a shard, of the mean", "", max(counts) / mean),
    ]


@dataclass(frozen=True, slots=True)
class PilotedStream:
    """A stream and its clients, of which only the pilot's read."""

    stream: str
    pilot: Pilot
    paused: PausedClients
    publisher: BenchPublisher


def shards(bench: Bench) -> list[Figure]:
    """One stream on each of two shards: each alone, then both at once, to clients that do not read.

    Two floors beside one show how much the second core of this machine can add.
    """
    node = bench.node
    with ExitStack() as stack:
        all_piloted: list[PilotedStream] = []
        taken: set[int] = set()
        for number in range(STREAMS):
            stream = f"{bench.stream}.{number}"
            paused = stack.enter_context(PausedClients(node.address, node.path(stream)))
            paused.come(1)
            paused.begin()
            held = node.held_by_shards(paused.ports())
            if held.index(1) in taken:
                continue
            taken.add(held.index(1))
            pilot = stack.enter_context(Pilot(node.address, node.path(stream)))
            for _ in range(PILOTS):
                paused.come(bench.n // PILOTS)
                pilot.join()
            paused.begin()
            pilot.begin()
            publisher = stack.enter_context(closing(BenchPublisher(node.database_url)))
            all_piloted.append(PilotedStream(stream, pilot, paused, publisher))
            if len(all_piloted) == len(node.shard_pids):
                break
        seconds = min(bench.seconds, UNREAD_S)
        alone = [_unread([piloted], seconds) for piloted in all_piloted]
        together = _unread(all_piloted, seconds)
        if node.counted("headrace_client_stalls_total"):
            raise FailedError(
                "a client's buffer was full, so the shard was not held up by writing alone; give it fewer --seconds"
            )
    one, two = _floors(bench, 1), _floors(bench, 2)
    return [
        Figure("writes of two shards beside one", "1/s", together, sum(alone) / len(alone)),
        Figure("writes of two floors beside one", "1/s", two, one),
    ]


def _floors(bench: Bench, count: int) -> float:
    """Run count floors at once, each on a core of its own, with clients that do not read; returns writes a second."""
    each = bench.n
    events = min(UNREAD_EVENTS, round(min(bench.seconds, UNREAD_S) * FLOOR_PER_S / each))
    with ExitStack() as stack:
        floors: list[Floor] = []
        for core in (cores.SERVER, cores.CLIENT)[:count]:
            floor = stack.enter_context(Floor(bench.tools.rawfan, core))
            paused = stack.enter_context(PausedClients(floor.address, "/s0"))
            paused.come(each)
            paused.begin(b"\r\n\r\n")
            floors.append(floor)

        def publish(floor: Floor) -> float:
            began = time.monotonic()
            floor.publish(events)
            return events * each / (time.monotonic() - began)

        with ThreadPoolExecutor(count) as pool:
            return sum(pool.map(publish, floors))


def _unread(all_piloted: Sequence[PilotedStream], seconds: float) -> float:
    """Publish behind the pilot of each stream, all at once; returns writes a second to the clients that do not read."""

    def publish(piloted: PilotedStream) -> float:
        before, began = piloted.pilot.seen, time.monotonic()
        piloted.publisher.behind(piloted.pilot, piloted.stream, seconds, 1)
        # The pilot's last event is still being written to others, as its first one was when the clock started.
        return (piloted.pilot.seen - before) * len(piloted.paused) / (time.monotonic() - began)

    before = [piloted.pilot.seen for piloted in all_piloted]
    with ThreadPoolExecutor(len(all_piloted)) as pool:
        rate = sum(pool.map(publish, all_piloted))
    for piloted, seen in zip(all_piloted, before, strict=True):
        head = piloted.publisher.head(piloted.stream)
        piloted.pilot.reach(head)
        piloted.paused.wake(seen + 1, head)
    return rate
