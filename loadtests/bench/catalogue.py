"""The scenarios by name, and the node that each wants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from loadtests.bench import metrics_cost, publishing, scaling, scenarios
from loadtests.bench.bench import Bench
from loadtests.bench.figure import Figure


@dataclass(frozen=True, slots=True)
class Scenario:
    """How to run a scenario. If fresh, its node has served no client before; settings are environment variables."""

    run: Callable[[Bench], list[Figure]]
    shards: int = 1
    router_workers: int = 1
    fresh: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


SCENARIOS: Final = {
    "fanout": Scenario(scenarios.fanout),
    "burst": Scenario(scenarios.burst),
    "many": Scenario(scenarios.many),
    "publish": Scenario(publishing.publish),
    "unpinned": Scenario(publishing.unpinned),
    "metrics": Scenario(metrics_cost.metrics, fresh=True),
    "latency": Scenario(scenarios.latency),
    "rates": Scenario(scaling.rates),
    "growth": Scenario(scaling.growth),
    "shards": Scenario(scaling.shards, shards=2, fresh=True, settings={"HEADRACE_HOT_CONNECTIONS": "1000000"}),
    "hot": Scenario(scaling.hot, shards=4, router_workers=2),
    "idle": Scenario(scenarios.idle, fresh=True),
    "storm": Scenario(scenarios.storm, shards=2, router_workers=2),
    "replay": Scenario(scenarios.replay, shards=2, router_workers=2),
    "beside": Scenario(scenarios.beside),
    "outage": Scenario(scenarios.outage, fresh=True),
}
