"""A router process's numbers, in Prometheus' terms. The label `process` is added to each where they are rendered."""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.node.directory_snapshot import ENDS
from headrace.router.client_placement import ClientPlacement


class RouterMetrics(Collector):
    """What one process has counted, and how its placement is at the moment. Any greenlet may count.

    after_death tells that the worker before this one was killed, or crashed.
    """

    def __init__(self) -> None:
        self.after_death = False
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._handoffs = Counter(
            "headrace_router_handoffs",
            "Clients offered to a shard, by how the exchange ended.",
            ["outcome"],
            registry=self._registry,
        )
        # Kept, since the library finds a series by its labels more slowly than it counts.
        self._outcomes: dict[str, Counter] = {}
        self._responses = Counter(
            "headrace_router_responses",
            "Responses by the router itself; clients that were handed over are not among them.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "headrace_router_handoff_seconds",
            "Time from the first offer of a client until a shard had it.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        )
        self._publish_seconds = Histogram(
            "headrace_router_publish_seconds",
            "Time from when a request's events were checked until they were committed or refused.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self._registry,
        )
        self._published = Counter(
            "headrace_router_published_events",
            "Events that POST /publish has answered ids for, repeated requests included.",
            registry=self._registry,
        )
        self._refused_origins = Counter(
            "headrace_router_refused_origins",
            "Requests of pages whose origin is not in HEADRACE_ALLOWED_ORIGINS.",
            registry=self._registry,
        )
        self._placement: Callable[[], ClientPlacement | None] = lambda: None

    def handed_off(self, seconds: float) -> None:
        """A shard took a client after that long."""
        self._seconds.observe(seconds)

    def offered(self, outcome: str) -> None:
        """One exchange with a shard ended."""
        if outcome not in self._outcomes:
            self._outcomes[outcome] = self._handoffs.labels(outcome)
        self._outcomes[outcome].inc()

    def responded(self, endpoint: str, status: int) -> None:
        """The router answered by itself. endpoint MUST be one of a few words: each is a series."""
        self._responses.labels(endpoint, str(status)).inc()

    def publishing(self) -> AbstractContextManager[object]:
        """Measures how long the block takes, also one that raises."""
        return self._publish_seconds.time()

    def published(self, events: int) -> None:
        """So many events were answered with their ids."""
        self._published.inc(events)

    def refused_origin(self) -> None:
        """A page of an origin that is not allowed has asked for something."""
        self._refused_origins.inc()

    def watch(self, placement: ClientPlacement) -> None:
        """Ask this placement at each scrape what is known."""
        self._placement = lambda: placement

    def collect(self) -> Iterator[Metric]:
        """The families, as Prometheus' library wants them."""
        yield from self._registry.collect()
        died = "1 if the worker that had this name before was killed, or crashed."
        yield GaugeMetricFamily("headrace_router_predecessor_died", died, float(self.after_death))
        if (placement := self._placement()) is not None:
            redis = "1 while the directory in Redis can be used."
            yield GaugeMetricFamily("headrace_redis_up", redis, float(not placement.directory_away))
            shards = GaugeMetricFamily("headrace_router_shards", "Shards of this node by state.", labels=["state"])
            found = Tally(entry.state for entry in placement.shards())
            for state in ("up", "draining", "drained", "stopping"):
                shards.add_metric([state], found[state])
            yield shards
            ends = CounterMetricFamily(
                "headrace_router_shards_ended",
                "Processes of this node's shards that have ended, by how, as the directory has counted them.",
                labels=["how"],
            )
            for how in ENDS:
                ends.add_metric([how], placement.ends[how])
            yield ends
            emptied = "Times that Redis had been emptied, as this process has seen it."
            yield CounterMetricFamily("headrace_router_redis_emptied", emptied, placement.emptied)
