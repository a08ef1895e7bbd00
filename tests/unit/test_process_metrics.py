"""headrace/node/process_metrics.py"""

import os
import socket

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from headrace.node import process_metrics
from headrace.node.process_metrics import ProcessMetrics, open_descriptors


def values(collector: Collector) -> dict[str, tuple[str, float]]:
    families: list[Metric] = list(collector.collect())
    return {sample.name: (family.type, sample.value) for family in families for sample in family.samples}


def test_it_tells_what_the_library_tells() -> None:
    """The same metrics, of the same types, with nearly the same values as prometheus_client's own collector."""
    theirs, ours = values(ProcessCollector(registry=CollectorRegistry())), values(ProcessMetrics())
    assert ours.keys() == theirs.keys()
    for name, (kind, value) in theirs.items():
        assert ours[name] == (kind, pytest.approx(value, rel=0.05, abs=2)), name


def test_descriptors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each open file counts once, also where the kernel does not tell their number and they are listed."""
    before = open_descriptors()
    opened = [socket.socket() for _ in range(50)]
    assert open_descriptors() == before + 50
    real = os.stat
    monkeypatch.setattr(process_metrics.os, "stat", lambda path: os.stat_result((0,) * 10))
    # The listing itself has one open.
    assert open_descriptors() == before + 51
    monkeypatch.setattr(process_metrics.os, "stat", real)
    for one in opened:
        one.close()
    assert open_descriptors() == before
