"""Whether alerts would fire: the rules of deploy/prometheus, applied to a node's metrics before a fault and now.

promtool plays ten minutes of the metrics from before, and then ten minutes of those from now, as if they lasted.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from loadtests.torture.condition import Series

RULES: Final = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yaml"
_SAMPLES: Final = 40


def can_fire() -> bool:
    """Whether promtool is installed; Debian has it in the package `prometheus`."""
    return shutil.which("promtool") is not None


def fires(alert: str, before: Mapping[Series, float], now: Mapping[Series, float]) -> bool:
    """Whether the alert would fire within ten minutes. Raises LookupError for one that is not among the rules."""
    rule = re.search(rf"alert: {alert}\n\s+expr: (.*)\n", RULES.read_text())
    if rule is None:
        raise LookupError(f"no rule in {RULES} is called {alert!r}")
    names = set(re.findall(r"\b[a-z_]+\b", rule[1]))
    series = [{"series": _named(one), "values": values} for one, values in _played(names, before, now)]
    firing = f'max_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[9m])'
    expected = {
        "expr": f"clamp_max(count({firing}), 1) or vector(0)",
        "eval_time": "19m45s",
        "exp_samples": [{"labels": "{}", "value": 1}],
    }
    test = {"interval": "15s", "input_series": series, "promql_expr_test": [expected]}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        # JSON is YAML, too.
        json.dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]}, file)
        file.flush()
        ran = subprocess.run(
            ["promtool", "test", "rules", file.name], capture_output=True, text=True, timeout=60, check=False
        )
    if ran.returncode and "got:" not in ran.stdout + ran.stderr:
        raise RuntimeError(f"promtool could not try {alert}: {ran.stdout}{ran.stderr}")
    return ran.returncode == 0


def _played(
    names: set[str], before: Mapping[Series, float], now: Mapping[Series, float]
) -> Iterator[tuple[Series, str]]:
    for series in sorted(before.keys() | now.keys(), key=str):
        if series[0] in names:
            early, late = (_constant(values.get(series)) for values in (before, now))
            gone = series in before and series not in now
            yield series, f"{early} {f'stale _x{_SAMPLES - 1}' if gone else late}"


def _constant(value: float | None) -> str:
    return f"_x{_SAMPLES}" if value is None else f"{value:.17g}+0x{_SAMPLES - 1}"


def _named(series: Series) -> str:
    labels = {"job": "headrace", "instance": "node", **dict(series[1])}
    return f"{series[0]}{{{','.join(f'{name}={json.dumps(value)}' for name, value in labels.items())}}}"
