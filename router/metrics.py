"""The router's numbers, in Prometheus' terms.

Each worker process answers a scrape for itself alone, and which one a scrape reaches is the kernel's choice.
Every series carries the label `worker` (its pid), so that no two are mixed; sums over workers lag by a few scrapes.
"""

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One process's registry. Any greenlet may count."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        worker = str(os.getpid())
        self._handoffs = Counter(
            "headrace_router_handoffs",
            "Clients offered to a shard, by how the exchange ended.",
            ["worker", "outcome"],
            registry=self._registry,
        )
        self._responses = Counter(
            "headrace_router_responses",
            "Responses by the router itself, by status; hand-offs are not among them.",
            ["worker", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "headrace_router_handoff_seconds",
            "Time from the first offer of a client until a shard had it.",
            ["worker"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        ).labels(worker)
        self._gauges = {
            name: Gauge(f"headrace_router_{name}", help_, ["worker"], registry=self._registry).labels(worker)
            for name, help_ in (
                ("directory_away", "1 while Redis cannot be read and the last known shards are used."),
                ("shards", "Shards of this node that are known."),
            )
        }
        self._worker = worker

    def handed_off(self, seconds: float) -> None:
        """A shard took a client after that long."""
        self._seconds.observe(seconds)

    def offered(self, outcome: str) -> None:
        """One exchange with a shard ended."""
        self._handoffs.labels(self._worker, outcome).inc()

    def responded(self, status: int) -> None:
        """The router answered by itself."""
        self._responses.labels(self._worker, str(status)).inc()

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Ask for the gauge's value at each scrape."""
        self._gauges[name].set_function(value)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)
