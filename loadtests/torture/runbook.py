"""The runbook's table of symptoms, as the run reads it: for each fault, what is seen while it lasts.

    | `fault`, `fault` * | `condition` or `condition`; `condition`; `HeadraceAlert` | cause | action |

Clauses stand between semicolons, and each of them shows. In a clause, words in `…` are conditions, or alerts that fire,
of which one is enough; of an alert with `if` behind it that is true under the circumstance that follows only.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.torture.condition import Condition

PATH: Final = Path(__file__).parents[2] / "docs" / "operate" / "runbook.md"
_ALERT: Final = re.compile(r"Headrace\w+")


@dataclass(frozen=True, slots=True)
class Row:
    """What is seen of one fault. clauses are choices of conditions, alerts of alerts; the tests try what is marked."""

    clauses: tuple[tuple[Condition, ...], ...]
    alerts: tuple[tuple[str, ...], ...]
    marked: bool

    def conditions(self) -> list[Condition]:
        """Those of all clauses."""
        return [condition for clause in self.clauses for condition in clause]

    def asks(self, source: str) -> bool:
        """Whether a condition is about this."""
        return any(condition.source == source for condition in self.conditions())


def read(text: str) -> dict[str, Row]:
    """The rows by fault. Raises ValueError for a clause that cannot be tried."""
    rows: dict[str, Row] = {}
    _, _, below = f"\n{text}".partition("\n| fault |")
    for line in re.findall(r"^\| `.*\|$", below.partition("\n\n")[0], re.MULTILINE):
        faults, seen, *_ = (cell.strip() for cell in line.split("|")[1:-1])
        row = _row(seen, faults.endswith("*"))
        rows |= dict.fromkeys(re.findall(r"`([\w-]+)`", faults), row)
    return rows


def _row(seen: str, marked: bool) -> Row:
    clauses: list[tuple[Condition, ...]] = []
    alerts: list[tuple[str, ...]] = []
    for clause in seen.split(";"):
        words = re.findall(r"`([^`]*)`", clause)
        if not words:
            raise ValueError(f"{clause!r} says nothing that can be seen")
        if not _ALERT.fullmatch(words[0]):
            clauses.append(tuple(map(Condition, words)))
        elif " if " not in clause:
            alerts.append(tuple(words))
    return Row(tuple(clauses), tuple(alerts), marked)
