"""The figures of the bench: what is made of several repetitions."""

from loadtests.bench.figure import Figure, rows, table


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
