"""The scenarios by name, and the node that each wants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from loadtests.bench import metrics_cost, new_clients, publishing, publishing_pairs, scaling, scenarios
from loadtests.bench.bench import Bench
from loadtests.bench.figure import Figure


@dataclass(frozen=True, slots=True)
class Scenario:
    """How to run a scenario. If fresh, its node has served no client before; settings are environment variables.

    If counts_statements, the node can tell what PostgreSQL was asked. repeat and seconds are what the command line's
    options of these names are by default.
    """

    run: Callable[[Bench], list[Figure]]
    shards: int = 1
    router_workers: int = 1
    fresh: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    counts_statements: bool = False
    repeat: int = 3
    seconds: float = 8.0


SCENARIOS: Final = {
    "fanout": Scenario(scenarios.fanout),
    "burst": Scenario(scenarios.burst),
    "many": Scenario(scenarios.many),
    "publish": Scenario(publishing.publish),
    "unpinned": Scenario(publishing.unpinned),
    "hot_stream": Scenario(publishing_pairs.hot_stream, shards=2, repeat=5, seconds=10),
    "thousand_streams": Scenario(publishing_pairs.thousand_streams, shards=2, repeat=5, seconds=10),
    "table_changes": Scenario(publishing_pairs.table_changes, shards=2, repeat=5, seconds=10),
    "publish_latency": Scenario(publishing_pairs.publish_latency, shards=2, seconds=10),
    "metrics": Scenario(metrics_cost.metrics, fresh=True),
    "latency": Scenario(scenarios.latency),
    "rates": Scenario(scaling.rates),
    "growth": Scenario(scaling.growth),
    "shards": Scenario(scaling.shards, shards=2, fresh=True, settings={"HEADRACE_HOT_CONNECTIONS": "1000000"}),
    "hot": Scenario(scaling.hot, shards=4, router_workers=2),
    "idle": Scenario(scenarios.idle, fresh=True),
    "new_client": Scenario(new_clients.new_client),
    "come_back": Scenario(new_clients.come_back, shards=2, router_workers=2),
    "storm": Scenario(scenarios.storm, shards=2, router_workers=2, counts_statements=True),
    "replay": Scenario(scenarios.replay, shards=2, router_workers=2, counts_statements=True),
    "beside": Scenario(scenarios.beside),
    "outage": Scenario(scenarios.outage, fresh=True),
}
