"""The arithmetic from a small fleet to a large one: straight lines through what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.fleet.run import FleetFigure


@dataclass(frozen=True, slots=True)
class Line:
    """A cost that grows with the shards: base, and for each shard more."""

    base: float
    each: float

    def at(self, shards: int) -> float:
        """The cost with so many shards."""
        return self.base + self.each * shards

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> "Line":
        """The line of least squares. Points of one x alone have no slope."""
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        square = sum((x - mean_x) ** 2 for x, _ in points)
        each = sum((x - mean_x) * (y - mean_y) for x, y in points) / square if square else 0.0
        return cls(mean_y - each * mean_x, each)


def explain(figures: Sequence[FleetFigure], shards: int, rate: float) -> list[str]:
    """What so many shards cost each server at this rate, with the formula and the numbers put in; a line for each.

    Nothing can be said from one size alone.
    """
    lines: list[str] = []
    if len(figures) < 2:
        return lines
    for server, name in (("PostgreSQL", "postgres"), ("Redis", "redis")):
        idle = Line.through([(figure.shards, getattr(figure, f"{name}_idle")) for figure in figures])
        event = Line.through([(figure.shards, getattr(figure, f"{name}_event_ms")) for figure in figures])
        cores = (idle.at(shards) + event.at(shards) * rate) / 1000
        lines.append(
            f"{server}, {shards} shards, {rate:g} events/s: idle ({idle.base:.1f} + {idle.each:.2f} x {shards}) ms/s"
            f" + events ({event.base:.3f} + {event.each:.4f} x {shards}) ms x {rate:g}/s = {cores:.1f} cores"
        )
    return lines
