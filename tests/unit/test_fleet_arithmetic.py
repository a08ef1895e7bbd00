"""What the simulation of a fleet makes of its measurements, and how it measures."""

import os
import subprocess
import sys

import pytest

from loadtests.fleet import processor_time
from loadtests.fleet.extrapolation import Line, explain
from loadtests.fleet.run import FleetFigure

BUSY = "import time; begin = time.process_time()\nwhile time.process_time() < begin + 0.2: pass"


def figure(shards: int, idle: float, event_ms: float) -> FleetFigure:
    return FleetFigure(shards, idle, idle, event_ms, event_ms, 0, 0, 0)


def test_a_line_goes_through_its_points() -> None:
    """Costs that grow evenly are continued; from one size alone nothing is said."""
    line = Line.through([(1, 1.1), (11, 2.1), (21, 3.1)])
    assert line.at(400) == pytest.approx(41.0)
    assert explain([figure(12, 1, 1)], 400, 100) == []


def test_the_arithmetic_is_shown() -> None:
    """Idle costs and the costs of events are added up to cores, for either server."""
    postgres, redis = explain([figure(1, 12, 1.06), figure(11, 32, 1.66)], 400, 100)
    assert postgres.startswith("PostgreSQL, 400 shards, 100 events/s: ")
    # (10 + 2 x 400) ms/s, and (1 + 0.06 x 400) ms for each of 100 events.
    assert postgres.endswith("= 3.3 cores")
    assert redis.endswith("= 3.3 cores")


def test_processes_that_have_ended_count() -> None:
    """The time of a child is counted while it lives and when it has ended."""
    before = processor_time.seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", f"{BUSY}\ninput()"], stdin=subprocess.PIPE) as child:
        while processor_time.seconds(child.pid) < 0.2:
            assert child.poll() is None
        assert processor_time.seconds(os.getpid()) >= before + 0.2
    assert processor_time.seconds(os.getpid()) >= before + 0.2
