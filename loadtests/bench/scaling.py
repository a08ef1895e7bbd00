"""Scenarios that measure the same at several sizes: how cost and latency grow; and how a hot stream is shared."""

import time
from contextlib import ExitStack
from typing import Final

from loadtests.bench.bench import Bench
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure

RATES: Final = (10, 50, 100, 200, 400, 800)
STREAMS: Final = 50
HOT_DEADLINE_S: Final = 30.0


def growth(bench: Bench) -> list[Figure]:
    """One stream, one event at each look, with more and more connections: what a delivery costs."""
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
    """One subscriber; single events, each in a transaction of its own, more and more a second."""
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
    """Four of five clients on one stream of a node with four shards: how these share it, and after how long."""
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
