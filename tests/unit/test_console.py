"""What `headrace up` prints, and that no reader can hold it up."""

import io
import os
from typing import Any

import pytest

from headrace.up.console import Console, takes_colours
from tests.fixtures.waiting import wait_until


def test_lines_carry_names() -> None:
    """Lines come in order, each behind its process's name in a column; lines for programs stay as they are."""
    stream = io.StringIO()
    console = Console(stream, ["up", "router"], coloured=False)
    console.of("up", "stopping")
    console.of("router", "a | b")
    console.line("headrace ready http://127.0.0.1:1")
    console.close()
    assert stream.getvalue() == "up     | stopping\nrouter | a | b\nheadrace ready http://127.0.0.1:1\n"


def test_names_are_coloured() -> None:
    """On a terminal each name has a colour of its own, and the text has none."""
    stream = io.StringIO()
    console = Console(stream, ["up", "router"], coloured=True)
    console.of("up", "x")
    console.of("router", "y")
    console.close()
    first, second = stream.getvalue().splitlines()
    assert first.endswith("up     |\x1b[0m x")
    assert second.endswith("router |\x1b[0m y")
    assert first.split("m")[0] != second.split("m")[0]


@pytest.mark.parametrize(
    ("terminal", "environ", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals(
    terminal: bool, environ: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a terminal gets colours, and none whose user asked for plain text."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert takes_colours(stream, environ) is expected


def test_reader_that_stops_reading_costs_lines_only() -> None:
    """With nobody reading, printing never blocks; when somebody reads again, the number of lost lines is told."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        console = Console(stream, [], coloured=False)
        text = "x" * 100
        for _ in range(12_000):
            console.line(text)
        lines: list[Any] = []
        # Two buffers' worth: enough for the queue to have room for the last line.
        while len(lines) < 1500:
            lines.append(reader.readline())
        wait_until(lambda: console.line("end") is None and not console._dropped, "there is room again")
        while (line := reader.readline()) != "end\n":
            lines.append(line)
        assert any("lines lost, since nobody read them" in line for line in lines)
        console.close()


def test_reader_that_goes_away_is_survived() -> None:
    """A closed pipe ends nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    console = Console(stream, [], coloured=False)
    console.line("one")
    console.line("two")
    console.close()
    assert not console._thread.is_alive()
    with pytest.raises(BrokenPipeError):
        stream.close()
