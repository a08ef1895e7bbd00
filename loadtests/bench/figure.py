"""One measured quantity, over the repetitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """What one repetition measured: headrace's value and, where the floor does the same, the floor's.

    at is the figure's place on the x axis of its plot, such as a number of connections.
    """

    name: str
    unit: str
    headrace: float
    floor: float | None = None
    at: float | None = None

    @property
    def ratio(self) -> float | None:
        """headrace's value divided by the floor's."""
        return self.headrace / self.floor if self.floor else None


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several values, with the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """A figure over all repetitions."""

    scenario: str
    name: str
    unit: str
    headrace: Spread
    floor: Spread | None
    ratio: Spread | None
    at: float | None = None

    @classmethod
    def of(cls, scenario: str, figures: Sequence[Figure]) -> "Row":
        """The row of one figure, from each of its repetitions.

        The ratio's median is of the ratios, not the medians' ratio.
        """
        floors = [figure.floor for figure in figures if figure.floor is not None]
        ratios = [figure.ratio for figure in figures if figure.ratio is not None]
        return cls(
            scenario,
            figures[0].name,
            figures[0].unit,
            Spread.of([figure.headrace for figure in figures]),
            Spread.of(floors) if floors else None,
            Spread.of(ratios) if ratios else None,
            figures[0].at,
        )


def rows(scenario: str, repetitions: Sequence[Sequence[Figure]]) -> list[Row]:
    """The rows of a scenario, in the order of its figures; a figure that a repetition lacks is left out there."""
    names: dict[str, list[Figure]] = {}
    for figures in repetitions:
        for figure in figures:
            names.setdefault(figure.name, []).append(figure)
    return [Row.of(scenario, figures) for figures in names.values()]


def table(found: Sequence[Row]) -> str:
    """The rows as a table for people: medians, in brackets the least and the greatest."""
    lines = [("scenario", "figure", "floor", "headrace", "ratio")]
    for row in found:
        lines.append(
            (
                row.scenario,
                f"{row.name}, {row.unit}" if row.unit else row.name,
                _shown(row.floor),
                _shown(row.headrace),
                _shown(row.ratio, 2),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def _shown(spread: Spread | None, digits: int | None = None) -> str:
    if spread is None:
        return ""
    values: list[Any] = [spread.median, spread.least, spread.greatest]
    if digits is None:
        digits = 0 if abs(spread.median) >= 100 else 1 if abs(spread.median) >= 10 else 2
    middle, least, greatest = (f"{value:,.{digits}f}" for value in values)
    return middle if least == greatest else f"{middle} ({least}–{greatest})"  # a range
