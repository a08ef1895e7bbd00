"""The scenarios: each measures the floor, then headrace, and returns the figures of one repetition."""

import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import headrace
from loadtests.bench import cores
from loadtests.bench.bench import Bench, busy
from loadtests.bench.clients import Clients, FailedError
from loadtests.bench.figure import Figure
from loadtests.bench.publisher import BenchPublisher

WINDOW: Final = 12
"""How many events of a burst wait for each connection."""
PACE_PER_S: Final = 5.0
"""Events a second: slow enough that every fan-out is over before the next."""


def fanout(bench: Bench) -> list[Figure]:
    """All clients on one stream, one event each time the shard reads; then a few events a second, for the latency."""
    floor, floor_paced = bench.floor(), bench.floor(rate=PACE_PER_S)
    result, events, shard_busy = bench.saturated(1)
    with bench.here() as clients:
        clients.ready()
        bench.publisher.paced(bench.stream, bench.seconds, PACE_PER_S)
        paced = clients.result()
    return [
        Figure("deliveries", "1/s", result["events_per_s"], floor["events_per_s"]),
        Figure("time to the last", "ms", paced["last_p50_us"] / 1e3, floor_paced["last_p50_us"] / 1e3),
        Figure("time to the last, p99", "ms", paced["last_p99_us"] / 1e3, floor_paced["last_p99_us"] / 1e3),
        Figure("time to the last, saturated", "ms", result["last_p50_us"] / 1e3),
        Figure("shard busy", "%", shard_busy),
        Figure("client busy", "%", busy(result), busy(floor)),
        Figure("events", "", events),
    ]


def burst(bench: Bench) -> list[Figure]:
    """As `fanout`, while many events wait for each connection, beside the floor with one event a call and with many."""
    floor, joined = bench.floor(), bench.floor(batch=WINDOW)
    result, events, shard_busy = bench.saturated(WINDOW)
    return [
        Figure("deliveries, floor one a call", "1/s", result["events_per_s"], floor["events_per_s"]),
        Figure(f"deliveries, floor {WINDOW} a call", "1/s", result["events_per_s"], joined["events_per_s"]),
        Figure("latency, p99", "ms", result["lat_p99_us"] / 1e3),
        Figure("shard busy", "%", shard_busy),
        Figure("client busy", "%", busy(result), busy(joined)),
        Figure("events", "", events),
    ]


def many(bench: Bench) -> list[Figure]:
    """A fifth as many streams as clients, published to in turn, as fast as the log takes the events."""
    streams = max(1, bench.n // 5)
    floor = bench.floor(streams=streams)
    names = [f"{bench.stream}.{number}" for number in range(streams)]
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        paths = Path(directory) / "paths"
        paths.write_text("".join(path + "\n" for path in bench.node.paths(names)))
        bench.publisher.flood(names, 0, streams)
        with bench.here("--streams", str(streams), path=f"@{paths}") as clients:
            clients.ready()
            time.sleep(0.5)
            since, began = cores.cpu_seconds(bench.node.shard_pids[0]), time.monotonic()
            bench.publisher.flood(names, 0, min(1000, streams))
            published = bench.publisher.flood(names, bench.seconds, min(1000, streams))
            took = time.monotonic() - began
            shard_busy = 100 * (cores.cpu_seconds(bench.node.shard_pids[0]) - since) / took
            result = clients.result()
    return [
        Figure("deliveries", "1/s", result["events_per_s"], floor["events_per_s"]),
        Figure("published", "1/s", published / took),
        Figure("latency, p99", "ms", result["lat_p99_us"] / 1e3),
        Figure("shard busy", "%", shard_busy),
        Figure("client busy", "%", busy(result), busy(floor)),
    ]


def latency(bench: Bench) -> list[Figure]:
    """One subscriber and no other load: the time from before publishing to receipt, with a durable commit between."""
    floor = bench.floor(rate=20.0, n=1)
    result = bench.paced(20.0, headrace.publish_now)
    return [
        Figure(f"publish to receipt, {q}", "ms", result[f"lat_{q}_us"] / 1e3, floor[f"lat_{q}_us"] / 1e3, at=percent)
        for q, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
    ]


def idle(bench: Bench) -> list[Figure]:
    """Resident memory that idle connections take, in a process that has just started."""

    def resident() -> tuple[int, int]:
        node = bench.node
        return sum(map(cores.resident_bytes, node.shard_pids)), sum(map(cores.resident_bytes, node.router_pids))

    def held(n: int) -> Clients:
        path = bench.node.path(bench.stream)
        return Clients(bench.tools.ssebench, bench.node.address, path, n, "--hold", "--seconds", "600")

    with held(max(1, bench.n // 10)) as clients:
        clients.ready()
    time.sleep(1)
    before = resident()
    with held(bench.n) as some:
        some.ready()
        time.sleep(1)
        between = resident()
        with held(2 * bench.n) as more:
            more.ready()
            time.sleep(1)
            after = resident()
    return [
        Figure(f"shard, of {bench.n:,} connections", "bytes each", (between[0] - before[0]) / bench.n),
        Figure(f"shard, of {3 * bench.n:,} connections", "bytes each", (after[0] - before[0]) / (3 * bench.n)),
        Figure(f"router, of {3 * bench.n:,} connections", "bytes each", (after[1] - before[1]) / (3 * bench.n)),
        Figure("shard, resident at first", "MB", before[0] / 1e6, at=0),
        Figure(f"shard, resident with {bench.n:,}", "MB", between[0] / 1e6, at=bench.n),
        Figure(f"shard, resident with {3 * bench.n:,}", "MB", after[0] / 1e6, at=3 * bench.n),
        Figure(f"connecting, from {bench.n:,} on", "1/s", 2 * bench.n / more.ready_s),
    ]


def storm(bench: Bench) -> list[Figure]:
    """All clients leave and come back at once, a few events behind; two shards, two router workers."""
    few = 3
    bench.publisher.many([bench.stream] * 10)
    back = bench.node.path(bench.stream, str(bench.publisher.head(bench.stream) - few))
    with bench.here("--hold") as clients:
        clients.ready()
        time.sleep(1)
        asked = bench.node.questions()
        clients.leave()
        began = time.monotonic()
        with bench.here("--concurrency", str(bench.n), "--events", str(few), path=back) as again:
            again.ready()
            received = again.result()
            took = time.monotonic() - began
    answered = bench.node.questions()
    if received["events_min"] < few:
        raise FailedError(f"a client received {received['events_min']} of {few} events")
    return [
        Figure("first byte for all", "s", again.ready_s),
        Figure("all have all", "s", took),
        Figure("statements", "", answered[0] - asked[0]),
        Figure("statements that read the log", "", answered[1] - asked[1]),
    ]


def replay(bench: Bench) -> list[Figure]:
    """A storm of clients that are 1,000 events behind, while others follow a live stream."""
    far = 1000
    live = f"{bench.stream}.live"
    bench.publisher.many([bench.stream] * far)
    head = bench.publisher.head(bench.stream)
    back = bench.node.path(bench.stream, str(head - far))
    with bench.here(n=10, path=bench.node.path(live)) as watching, ThreadPoolExecutor(1) as beside:
        watching.ready()
        asked = bench.node.questions()
        began = time.monotonic()
        with bench.here("--concurrency", str(bench.n), "--events", str(far), path=back) as clients:
            done = beside.submit(clients.ready().result)
            while not done.done():
                bench.publisher.paced(live, 0.2, 50)
            took = time.monotonic() - began
        result, watched = done.result(), watching.result()
    answered = bench.node.questions()
    if result["events_min"] < far:
        raise FailedError(f"a client received {result['events_min']} of {far} events")
    return [
        Figure("all have all", "s", took),
        Figure("first byte for all", "s", clients.ready_s),
        Figure("live stream beside it, p99", "ms", watched["lat_p99_us"] / 1e3),
        Figure("statements that read the log", "", answered[1] - asked[1]),
    ]


def beside(bench: Bench) -> list[Figure]:
    """Live clients alone; then while one of theirs has stopped reading and others come from 10,000 events behind."""
    far = 10_000
    bench.publisher.many([bench.stream] * far)
    behind = bench.node.path(bench.stream, str(bench.publisher.head(bench.stream) - far))
    n, rate = max(1, bench.n // 10), 50.0

    def live() -> dict[str, Any]:
        with bench.here(n=n) as clients:
            clients.ready()
            bench.publisher.paced(bench.stream, bench.seconds, rate)
            return clients.result()

    def come_from_behind() -> int:
        times = 0
        while not over.is_set():
            with bench.here("--events", str(far), n=1, path=behind) as client:
                received = client.ready().result()
            if received["events_min"] < far:
                raise FailedError(f"a client received {received['events_min']} of {far} events")
            times += 1
        return times

    alone = live()
    over = threading.Event()
    with socket.socket() as stalled, ThreadPoolExecutor(1) as pool:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(bench.node.address)
        stalled.sendall(f"GET {behind} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        replays = pool.submit(come_from_behind)
        try:
            among = live()
        finally:
            over.set()
        times = replays.result()
    return [
        Figure(f"live p50, {n} clients; beside it alone", "ms", among["lat_p50_us"] / 1e3, alone["lat_p50_us"] / 1e3),
        Figure(f"live p99, {n} clients; beside it alone", "ms", among["lat_p99_us"] / 1e3, alone["lat_p99_us"] / 1e3),
        Figure("replays of 10,000 meanwhile", "", times),
    ]


def outage(bench: Bench) -> list[Figure]:
    """PostgreSQL is killed and recovers: from the first event that it takes to the last client that has it."""
    with bench.here() as clients:
        clients.ready()
        bench.node.kill_postgres()
        began = time.monotonic()
        with closing(BenchPublisher.when_there_is(bench.node.database_url)) as publisher:
            away_s = time.monotonic() - began
            publisher.many([bench.stream])
            result = clients.result()
    if result["events_min"] < 1:
        raise FailedError("a client has not received the event")
    return [
        Figure("PostgreSQL was away", "s", away_s),
        Figure("then until all are whole", "s", result["lat_max_us"] / 1e6),
    ]
