"""The figures of the bench: what is made of several repetitions, and how they are drawn."""

import json
from pathlib import Path

from loadtests.bench.figure import Figure, rows, table
from loadtests.bench.plots import PLOTS, draw

PLOTS_DIRECTORY = Path(__file__).parents[2] / "docs" / "images" / "plots"
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_ratio_is_of_each_repetition() -> None:
    """The ratio's median is that of the repetitions' ratios, since floor and headrace drift together."""
    (row,) = rows("fanout", [[Figure("d", "1/s", h, f)] for h, f in ((90.0, 100.0), (40.0, 50.0), (210.0, 300.0))])
    assert row.ratio is not None
    assert (row.ratio.median, row.ratio.least, row.ratio.greatest) == (0.8, 0.7, 0.9)
    assert row.headrace.median == 90.0


def test_a_figure_without_floor_has_no_ratio() -> None:
    """What the floor does not do is shown alone."""
    (row,) = rows("idle", [[Figure("memory", "bytes", 1024.0)]])
    assert (row.floor, row.ratio) == (None, None)
    assert table([row]).splitlines()[-1].split("|")[3:6] == ["       ", " 1,024    ", "       "]


def test_the_plots_of_the_documentation_are_drawn_from_kept_figures(tmp_path: Path) -> None:
    """Each plot can be drawn again from the figures beside it, and is small enough for a page."""
    drawn = draw(json.loads((PLOTS_DIRECTORY / "figures.json").read_text()), tmp_path)
    assert {file.name for file in drawn} == {f"{name}.png" for name in PLOTS}
    assert {file.name for file in PLOTS_DIRECTORY.glob("*.png")} == {file.name for file in drawn}
    for file in [*drawn, *PLOTS_DIRECTORY.glob("*.png")]:
        assert file.read_bytes().startswith(PNG)
        assert file.stat().st_size <= 60_000
