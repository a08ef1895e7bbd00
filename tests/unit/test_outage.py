"""headrace/node/outage.py: failures and successes in; log lines and waits out."""

import logging

import pytest

from headrace.node.outage import Outage


def test_an_outage_is_told_once_at_either_end(caplog: pytest.LogCaptureFixture) -> None:
    """However many tries fail, the log has one line when the outage begins and one when it ends."""
    now = [100.0]
    outage = Outage(logging.getLogger(), "the log cannot be read", "the log is read again", clock=lambda: now[0])
    assert not outage.ended()
    with caplog.at_level(logging.WARNING):
        outage.failed(OSError("refused\n  by the server"))
        now[0] = 102.5
        outage.failed(OSError("silent"))
        assert (outage.condition, outage.last_error, outage.since) == ("away", "silent", 100.0)
        assert outage.ended()
    assert not outage.ended()
    assert (outage.condition, outage.last_error, outage.since) == ("ok", "", None)
    assert caplog.messages == ["the log cannot be read: refused by the server", "the log is read again after 2.5 s"]


def test_another_condition_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """An outage whose kind changes has a log line for each kind."""
    outage = Outage(logging.getLogger(), "Redis cannot be used")
    with caplog.at_level(logging.WARNING):
        for condition in ("away", "read-only", "read-only"):
            outage.failed(OSError(condition), condition)
        outage.ended()
    assert caplog.messages == ["Redis cannot be used: away", "Redis cannot be used: read-only"]


def test_waits_grow_to_a_limit() -> None:
    """Waits begin small, about double, are spread, and end at a limit; the next outage begins with a small one."""
    now = [0.0]
    outage = Outage(logging.getLogger(), "gone", first_s=0.1, most_s=2.0, clock=lambda: now[0])
    waits = []
    for _ in range(12):
        waits.append(outage.failed(OSError()))
        now[0] += waits[-1]
    assert 0.05 <= waits[0] <= 0.1
    assert all(1.0 <= wait <= 2.0 for wait in waits[-3:])
    assert len(set(waits[-3:])) == 3
    outage.ended()
    assert outage.failed(OSError()) <= 0.1
