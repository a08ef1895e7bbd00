"""A copy of headrace in whose shards nothing is counted: beside the real ones it shows what their metrics cost.

Each statement that counts is taken out of the source, so that the copy does not even pay for asking whether to count.
What a scrape costs is not in here: nobody scrapes the copy.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("headrace", "router", "shard")

STATEMENTS: Final[Mapping[str, str]] = {
    "shard/delivery.py": r"self\.counters\.\w+(?: \+= |\.add\().*",
    "shard/dispatcher.py": r"self\.delivery\.counters\.\w+\(.*\)",
    "shard/clock.py": r"self\.lag\.observe\(.*\)",
    "shard/postgres/listener.py": r"self\.(?:notifications|reconnects) \+= 1",
    "shard/writer.py": r"self\.counters\.\w+(?: \+= |\.add\().*",
    "shard/postgres/readers.py": r"self\.reads\[read\.kind\]\.\w+(?: = |\().*",
}
"""What counts, by file: whole lines."""
AGES: Final = "[row[-1] / 1e6 for rows in found for row in rows if row[-1] is not None]"
"""In shard/postgres/sql_functions.py: gathered for the latency alone."""


def copy(into: Path) -> None:
    """Write the copy. Raises LookupError where the code has changed so that there is nothing left to take out."""
    for name in COPIED:
        # With headrace/shard and headrace/router as the links that they are, to what is changed in the copy.
        shutil.copytree(ROOT / name, into / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file, statement in STATEMENTS.items():
        _replace(into / file, rf"(?m)^( +){statement}$", r"\1pass")
    _replace(into / "shard" / "postgres" / "sql_functions.py", re.escape(AGES), "[]")


def _replace(path: Path, pattern: str, instead: str) -> None:
    source, count = re.subn(pattern, instead, path.read_text())
    if not count:
        raise LookupError(f"nothing in {path.name} looks like {pattern!r}; correct loadtests/bench/uncounted.py")
    path.write_text(source)
