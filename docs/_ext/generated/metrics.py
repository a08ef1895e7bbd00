"""The metrics, from the collectors of a shard and of a router worker."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

import headrace.router.metrics
import headrace.shard.numbers.metrics
from generated.tables import table

Family = tuple[str, str, tuple[str, ...], str]
"""Name as a query has it, type, labels, help."""


class _Nothing:
    """Stands for every part of a shard: any attribute is the same again, it counts nothing and has no items."""

    bounds = (1.0,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Numbers() if name == "counts" else self

    def __call__(self, *arguments: Any) -> "_Nothing":
        return self

    def __getitem__(self, key: Any) -> "_Nothing":
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0

    def __rsub__(self, other: float) -> float:
        return 0.0

    def __radd__(self, other: float) -> float:
        return other

    __sub__ = __add__ = __rsub__

    def __str__(self) -> str:
        return ""


class _Numbers(dict[str, float]):
    """What a histogram counts, as a sequence, and what a tally counts, as a mapping without keys."""

    def __iter__(self) -> Iterator[Any]:
        return iter((0, 0))


def families() -> list[Family]:
    """Every family that a node tells, by name: those of shards, then those of router workers that no shard has."""
    found: dict[str, Family] = {}
    shard = _collector(headrace.shard.numbers.metrics)(_Nothing())
    router = _collector(headrace.router.metrics)()
    router.watch(_Nothing())
    collected = [*shard.collect(), *router.collect()]
    labels = {
        metric._name: tuple(metric._labelnames)
        for metric in vars(router).values()
        if isinstance(metric, MetricWrapperBase)
    }
    for family in collected:
        names = tuple(getattr(family, "_labelnames", ())) or labels.get(family.name, ())
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        name = family.name + suffix
        found.setdefault(name, (name, family.type, names, family.documentation))
    return sorted(found.values(), key=lambda each: each[0])


def markdown() -> str:
    """A table of all families, shards' first."""
    rows = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), text)
        for name, kind, labels, text in families()
    ]
    parts = []
    for title, of_router in (("Of shards", False), ("Of router workers", True)):
        chosen = [row for row in rows if row[0].startswith("`headrace_router_") == of_router]
        parts.append(f"## {title}\n\n{table(('metric', 'type', 'labels', 'meaning'), chosen)}")
    return "\n".join(parts)


def _collector(module: ModuleType) -> Any:
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and Collector in each.__mro__ and each.__module__ == module.__name__
    )
    return found
