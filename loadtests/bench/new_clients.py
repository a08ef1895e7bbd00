"""What new clients cost the routers and the shards: processor time, until each client has its first byte."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtests.bench import cores
from loadtests.bench.bare_worker import BareWorker
from loadtests.bench.bench import Bench
from loadtests.bench.clients import Clients
from loadtests.bench.figure import Figure

AT_A_TIME: Final = 100
"""How many clients of `new_client` are connecting at any time."""
_QUIET_S: Final = 1.0
"""How long a process may go on with what it has put off until the clients were served."""


def new_client(bench: Bench) -> list[Figure]:
    """Clients connect, a hundred at a time, to one router and one shard; beside it, to a bare gunicorn worker."""
    routers, shards = bench.node.router_pids, bench.node.shard_pids
    with _paths(bench, bench.n) as paths:
        with BareWorker() as bare:
            (bare_s,), _ = _spent([bare.pids], bench, bare.address, paths)
        (router_s, shard_s), took_s = _spent([routers, shards], bench, bench.node.address, paths)
    beside = 1e6 * bare_s / bench.n
    return [
        Figure("router and shard, a client; beside a bare worker", "µs", 1e6 * (router_s + shard_s) / bench.n, beside),
        Figure("router, a client", "µs", 1e6 * router_s / bench.n),
        Figure("shard, a client", "µs", 1e6 * shard_s / bench.n),
        Figure("connecting", "1/s", bench.n / took_s),
    ]


def come_back(bench: Bench) -> list[Figure]:
    """Twice as many clients leave and come back at once, to two router workers and two shards."""
    n = 2 * bench.n
    ours = [bench.node.pid, *bench.node.router_pids, *bench.node.shard_pids]
    with _paths(bench, n) as paths:
        with _clients(bench, bench.node.address, paths, n, n) as clients:
            clients.ready()
            time.sleep(_QUIET_S)
            before = _seconds(ours)
        time.sleep(_QUIET_S)
        left = _seconds(ours)
        with _clients(bench, bench.node.address, paths, n, n) as clients:
            clients.ready()
            time.sleep(_QUIET_S)
            back = _seconds(ours)
    return [
        Figure(f"processor time, {n:,} clients come back", "s", back - left),
        Figure(f"processor time, {n:,} clients leave", "s", left - before),
        Figure("first byte for all", "s", clients.ready_s),
    ]


@contextmanager
def _paths(bench: Bench, n: int) -> Iterator[str]:
    """A file of n paths, such as applications give to n users: no two clients have the same token."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        paths = Path(directory) / "paths"
        paths.write_text("".join(path + "\n" for path in bench.node.paths_of_users(bench.stream, n)))
        yield str(paths)


def _spent(
    groups: Sequence[Sequence[int]], bench: Bench, address: tuple[str, int], paths: str
) -> tuple[list[float], float]:
    """The processor time, in seconds, that each group of processes spends on the clients; and how long all took."""
    with _clients(bench, address, paths, AT_A_TIME, AT_A_TIME) as some:  # what is made once is made for these
        some.ready()
    time.sleep(_QUIET_S)
    before = [_seconds(pids) for pids in groups]
    with _clients(bench, address, paths, bench.n, AT_A_TIME) as clients:
        clients.ready()
        time.sleep(_QUIET_S)
        after = [_seconds(pids) for pids in groups]
    time.sleep(_QUIET_S)
    return [later - since for later, since in zip(after, before, strict=True)], clients.ready_s


def _clients(bench: Bench, address: tuple[str, int], paths: str, n: int, at_a_time: int) -> Clients:
    """Clients that send a request, wait for the first bytes of the answer, and stay as long as the server lets them."""
    options = ("--streams", str(n), "--hold", "--seconds", "600", "--concurrency", str(at_a_time))
    return Clients(bench.tools.ssebench, address, f"@{paths}", n, *options)


def _seconds(pids: Sequence[int]) -> float:
    return sum(map(cores.cpu_seconds, pids))
