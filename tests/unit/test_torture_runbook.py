"""How the symptom run reads the runbook, and what it believes."""

from typing import Any

import pytest

from loadtests.torture import alerts, runbook
from loadtests.torture.condition import Condition, Finding, Series, Sight
from tests.fixtures.programs import tool


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


BEFORE = Sight({series("up"): 1, series("x_total", process="a"): 5, series("g", process="a", how="b"): 2})
NOW = Sight(
    {
        **{series("up"): 1, series("x_total", process="a"): 3, series("x_total", process="c"): 0},
        series("g", process="a", how="b"): 1,
    },
    readyz={"redis": {"status": "away"}, "errors": ["no space", "other"]},
    ops={"shards": [{"state": "up"}, {"state": "drained"}], "epoch": ["g", 2]},
    findings=(Finding("front door", "fail", "no space left"), Finding("redis", "ok", "6.2")),
    lines=("t-0 | predicate 'late' took over 1.5 s",),
)


@pytest.mark.parametrize(
    "text",
    [
        "readyz redis.status == away",
        "readyz errors ~ space",
        "ops shards.state == drained",
        "doctor front door == fail",
        "doctor front door ~ space left",
        "log ~ predicate 'late'",
        "up == 1",
        'g{how="b",process=~"a|z"} < 2',
        "g falls",
        "g changes",
        "gone_total absent",
        "x_total rises",  # from 0 again, in a new process
    ],
)
def test_what_there_is_is_seen(text: str) -> None:
    """Each kind of condition holds for what is so now, and not for what is not."""
    condition = Condition(text)
    assert condition.seen(BEFORE, NOW)
    assert not condition.seen(BEFORE, Sight({series("up"): 0, series("gone_total"): 1}))


@pytest.mark.parametrize(
    "text",
    [
        *("readyz redis.status == ok", "ops shards.state == up and away", "doctor redis == fail", "log ~ raised"),
        *("g rises", 'g{how="c"} falls', 'x_total{process="c"} rises', "up absent", "unknown == 0"),
    ],
)
def test_what_there_is_not_is_not_seen(text: str) -> None:
    """What is not so, is of another series, or is nowhere, does not hold."""
    assert not Condition(text).seen(BEFORE, NOW)


@pytest.mark.parametrize("text", ["", "headrace_up", "doctor == fail", "readyz a =~ b", "x >= 2"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    """A row that nobody could try is an error, not silence."""
    with pytest.raises(ValueError, match="no condition"):
        Condition(text)


def test_a_change_needs_a_before() -> None:
    """Only what was told before can have changed."""
    ops: Any = {"epoch": ["g", 1]}
    assert Condition("ops epoch changes").seen(Sight(ops=ops), NOW)
    assert not Condition("ops epoch changes").seen(Sight(ops=NOW.ops), NOW)
    assert not Condition("ops epoch changes").seen(Sight(), NOW)


def test_a_row_is_its_clauses() -> None:
    """Two faults share a row; what is true only under a circumstance is not tried; what cannot be seen is refused."""
    seen = "`up == 1` or `up == 0`; `g rises`; `HeadraceX` or `HeadraceY`; `HeadraceZ` if so"
    rows = runbook.read(f"| fault | seen at |\n| --- | --- |\n| `a`, `b-c` * | {seen} | why | `do` |\n")
    assert rows.keys() == {"a", "b-c"}
    assert [[one.text for one in clause] for clause in rows["a"].clauses] == [["up == 1", "up == 0"], ["g rises"]]
    assert rows["a"].alerts == (("HeadraceX", "HeadraceY"),)
    assert rows["a"].marked and rows["a"].asks("metrics") and not rows["a"].asks("doctor")
    with pytest.raises(ValueError, match="nothing that can be seen"):
        runbook.read("| fault | seen at |\n| `a` | the log | why | do |\n")
    assert runbook.read("| reason | is |\n| `a` | the log |\n") == {}


def test_alerts_are_asked_of_the_real_rules() -> None:
    """An alert fires for numbers that last, and for a counter that has risen; not for those from before."""
    tool("promtool")
    away, back = {series("headrace_redis_up", process="a"): 0.0}, {series("headrace_redis_up", process="a"): 1.0}
    assert alerts.fires("HeadraceRedisAway", back, away)
    assert not alerts.fires("HeadraceRedisAway", away, back)
    gaps = [{series("headrace_gaps_total", process="a"): number} for number in (4.0, 5.0)]
    assert alerts.fires("HeadraceGaps", gaps[0], gaps[1])
    assert not alerts.fires("HeadraceGaps", gaps[0], gaps[0])
    with pytest.raises(LookupError, match="HeadraceNone"):
        alerts.fires("HeadraceNone", away, back)
