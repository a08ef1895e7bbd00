"""The plots of a bench as PNG: each shows one scenario's figures over an axis, such as the number of connections.

python -m loadtests.bench.plots docs/images/plots/figures.json docs/images/plots    draws those of the documentation
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import click
from matplotlib.figure import Figure as Canvas
from PIL import Image

HEADRACE, FLOOR, SECOND = "#0f766e", "#64748b", "#b45309"
DPI: Final = 200
COLOURS: Final = 64
"""Of a file's palette: a plot with a palette is a third as large, and looks the same."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: figures whose names begin with `begins`; side is whose values, headrace's or the floor's."""

    label: str
    begins: str
    side: str = "headrace"
    colour: str = HEADRACE


@dataclass(frozen=True, slots=True)
class Plot:
    """What to draw from one scenario, and what the axes say."""

    scenario: str
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    scale: str = "linear"


PLOTS: Final = {
    "deliveries": Plot(
        "growth",
        "One event at a time to everybody",
        "connections on one stream",
        "deliveries a second",
        (Line("headrace, one shard", "deliveries"), Line("the floor: send() in C", "deliveries", "floor", FLOOR)),
    ),
    "memory": Plot(
        "idle",
        "What idle connections take",
        "connections",
        "resident memory of the shard, MB",
        (Line("headrace, one shard", "shard, resident"),),
    ),
    "latency": Plot(
        "latency",
        "Publish to receipt, one subscriber, fsync on",
        "percentile",
        "milliseconds",
        (Line("headrace", "publish to receipt"), Line("the floor, no database", "publish to receipt", "floor", FLOOR)),
    ),
    "rates": Plot(
        "rates",
        "Publish to receipt as the rate grows, fsync on",
        "transactions a second, one event each",
        "milliseconds",
        (Line("p50", "p50"), Line("p99", "p99", colour=SECOND)),
        scale="log",
    ),
}
"""By the name of their file."""


def draw(figures: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw every plot whose scenario was measured; returns the files. figures is what --json writes."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in PLOTS.items():
        rows = [row for row in figures["rows"] if row["scenario"] == plot.scenario and row["at"] is not None]
        if rows:
            file = directory / f"{name}.png"
            _draw(plot, rows, figures["about"], file)
            drawn.append(file)
    return drawn


def _draw(plot: Plot, rows: Sequence[Mapping[str, Any]], about: Mapping[str, str], file: Path) -> None:
    canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
    axes = canvas.subplots()
    for line in plot.lines:
        points = sorted(
            (row["at"], *(row[line.side][key] for key in ("median", "least", "greatest")))
            for row in rows
            if row["name"].startswith(line.begins) and row[line.side]
        )
        x, median, least, greatest = zip(*points, strict=True)
        axes.plot(x, median, marker="o", label=line.label, color=line.colour)
        axes.fill_between(x, least, greatest, color=line.colour, alpha=0.15, linewidth=0)
    axes.set_title(plot.title, fontsize=11, loc="left")
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    if plot.scale == "log":
        axes.set_xscale("log")
        axes.set_xticks(list(x), [f"{value:,.0f}" for value in x])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    canvas.text(0.995, 0.005, f"{about['machine']}; {about['commit']}", ha="right", fontsize=6, color="#64748b")
    # The background is white and not transparent, so that the plot can be read on a dark page as well.
    drawn = BytesIO()
    canvas.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


@click.command(epilog="Example: python -m loadtests.bench.plots figures.json plots")
@click.argument("figures", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def main(figures: Path, directory: Path) -> None:
    """Draw the FIGURES of a bench's --json into DIRECTORY."""
    for file in draw(json.loads(figures.read_text()), directory):
        click.echo(file)


if __name__ == "__main__":
    main()
