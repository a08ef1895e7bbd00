"""Conditions: what docs/operate/runbook.md says is to be seen, and whether it is.

    readyz redis.status == away            a value of the JSON of /readyz; of a list, any entry's
    ops epoch changes                      the same of /ops/status
    doctor front door ~ No space left      what a check of `headrace doctor --json` has found; with ==, its level
    log ~ predicate 'late'                 a line that some process has written since
    headrace_redis_up == 0                 some series of /metrics, told apart by its labels, = or =~; or `up`

The tests: == and ~ (has this text) for text; ==, > and < for numbers; rises, falls and changes beside what was seen
before; absent, of no series.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Series = tuple[str, frozenset[tuple[str, str]]]
"""The name of a series and its labels."""

_JSON: Final = re.compile(r"(readyz|ops) ([\w.]+) (?:(==|~) (.+)|(changes))")
_DOCTOR: Final = re.compile(r"(doctor) ([\w ]+?) (==|~) (.+)")
_LOG: Final = re.compile(r"(log) (~) (.+)")
_METRIC: Final = re.compile(
    r"(?!(?:readyz|ops|doctor|log) )(\w+)(?:\{(.*)\})? (?:(==|>|<) (\S+)|(rises|falls|changes|absent))"
)
_LABEL: Final = re.compile(r'(\w+)(=~|=)"([^"]*)"')
_NUMBERS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "==": lambda value, bound: value == bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}
_MOVEMENTS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "rises": lambda before, now: now > before,
    "falls": lambda before, now: now < before,
    "changes": lambda before, now: now != before,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of the doctor's."""

    check: str
    level: str
    found: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What was to be seen at one moment; readyz and ops are None where there was no answer."""

    metrics: Mapping[Series, float] = field(default_factory=dict)
    readyz: Any = None
    ops: Any = None
    findings: tuple[Finding, ...] = ()
    lines: tuple[str, ...] = ()


class Condition:
    """One condition. Raises ValueError for text that is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._labels: list[tuple[str, str, str]] = []
        if match := _LOG.fullmatch(text):
            self.source, self._test, self._value = match.groups()
            self._path = ""
        elif match := _DOCTOR.fullmatch(text):
            self.source, self._path, self._test, self._value = match.groups()
        elif match := _JSON.fullmatch(text):
            self.source, self._path, test, self._value, movement = match.groups()
            self._test = test or movement
        elif match := _METRIC.fullmatch(text):
            self._path, labels, test, self._value, movement = match.groups()
            self.source, self._test = "metrics", test or movement
            self._labels = _LABEL.findall(labels or "")
        else:
            raise ValueError(f"{text!r} is no condition")

    def __repr__(self) -> str:
        return f"<Condition {self.text!r}>"

    def seen(self, before: Sight, now: Sight) -> str:
        """What shows now that the condition holds, beside what was seen before; empty if it does not."""
        if self.source == "log":
            return next((line for line in now.lines if self._value in line), "")
        if self.source == "doctor":
            ours = (finding for finding in now.findings if finding.check == self._path)
            return next((f"{one.level}: {one.found}" for one in ours if self._is(one)), "")
        if self.source == "metrics":
            return self._measured(before.metrics, now.metrics)
        told = list(_values(getattr(now, self.source), self._path))
        if self._test == "changes":
            earlier = list(_values(getattr(before, self.source), self._path))
            return f"{earlier} to {told}" if earlier and told and earlier != told else ""
        return next((str(value) for value in told if self._fits(str(value))), "")

    def _is(self, finding: Finding) -> bool:
        return self._fits(finding.level if self._test == "==" else finding.found)

    def _fits(self, value: str) -> bool:
        return value == self._value if self._test == "==" else self._value in value

    def _measured(self, before: Mapping[Series, float], now: Mapping[Series, float]) -> str:
        ours = {series: value for series, value in now.items() if self._names(series)}
        if self._test == "absent":
            # A node that tells nothing at all is another symptom.
            return "no series" if now.get(("up", frozenset())) and not ours else ""
        for series, value in sorted(ours.items(), key=str):
            if self._test in _NUMBERS and _NUMBERS[self._test](value, float(self._value)):
                return f"{value:g}{_of(series)}"
            earlier = before.get(series, 0.0 if self._test == "rises" else value)
            if value < earlier and series[0].endswith("_total"):
                earlier = 0.0  # a process that is new counts from there
            if self._test in _MOVEMENTS and _MOVEMENTS[self._test](earlier, value):
                return f"{earlier:.12g} to {value:.12g}{_of(series)}"
        return ""

    def _names(self, series: Series) -> bool:
        name, labels = series[0], dict(series[1])
        return name == self._path and all(
            labels.get(label) == value if test == "=" else re.fullmatch(value, labels.get(label, ""))
            for label, test, value in self._labels
        )


def _values(document: Any, path: str) -> Iterator[Any]:
    """What stands at a dotted path; of lists, in each entry."""
    if isinstance(document, list):
        for entry in document:
            yield from _values(entry, path)
    elif not path:
        yield document
    elif isinstance(document, dict):
        name, _, rest = path.partition(".")
        if name in document:
            yield from _values(document[name], rest)


def _of(series: Series) -> str:
    labels = ",".join(f"{name}={value}" for name, value in sorted(series[1]))
    return f" of {labels}" if labels else ""
