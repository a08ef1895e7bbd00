"""`python -m loadtests.torture.broken`: does the judge notice? Tortures copies of headrace that are broken on purpose.

Each break is one replacement in one file, of the kind that somebody could make by mistake. A copy of the tree with it
is tortured for a short time; a break that no violation tells of is a hole in the torture.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("headrace", "shard", "router", "loadtests")


@dataclass(frozen=True, slots=True)
class Break:
    """In file, text stands once and is replaced; seed and faults are such that a short run walks there."""

    file: str
    text: str
    instead: str
    seed: int = 7
    faults: str = "all"

    def apply(self, root: Path) -> None:
        """Break the copy at root. Raises LookupError if the text is not there exactly once."""
        path = root / self.file
        source = path.read_text()
        if (count := source.count(self.text)) != 1:
            raise LookupError(
                f"{self.file} has {self.text!r} {count} times, not once; correct loadtests/torture/broken.py"
            )
        path.write_text(source.replace(self.text, self.instead))


BREAKS: Final[dict[str, Break]] = {
    "head-past-uncommitted": Break(
        "shard/delivery.py", "        stream.head = last\n", "        stream.head = last + (last % 7 == 0)\n"
    ),
    "head-from-notification": Break(
        "shard/reads.py",
        "            self._dirty[stream] = None\n\n    def listening",
        "            self._dirty[stream] = None\n            stream.head = stream.head and message.head - 1\n\n"
        "    def listening",
    ),
    "no-catch-up-after-relisten": Break(
        "shard/reads.py",
        "for stream in self._registry.streams:\n            self._dirty[stream] = None\n\n    def sweep",
        "pass\n\n    def sweep",
        seed=4,  # its sweep is far off
    ),
    "bus-trusted": Break(
        "shard/bus_pages.py",
        "        elif message.after > head or page.foreign(head):\n",
        "        elif page.foreign(head):\n",
        seed=312,  # its bus is nearly always in use, and its sweeps are rare
        faults="bus-trouble",
    ),
    "cursor-before-write": Break(
        "shard/delivery.py",
        "            subscription.position = frames[done - 1].id\n",
        "            subscription.position = frames[-1].id\n",
    ),
    "tail-dropped": Break(
        "shard/connection.py", "self.unsent = _rest(piece, taken) if taken else ()", "self.unsent = ()"
    ),
    "start-repeated": Break(
        "shard/connection.py",
        "self.unsent = _rest(piece, taken) if taken else ()",
        "self.unsent = _rest(piece, 0) if taken else ()",
    ),
    "unsent-not-moved": Break(
        "shard/moves.py",
        "Moved(sum(map(len, connection.unsent)), owed),\n"
        "            guest=guest,\n            chunked=connection.chunked,\n        )\n"
        "        unsent, connection.unsent = connection.unsent, ()\n"
        "        return Parcel(connection.fd, handoff, unsent)",
        "Moved(0, owed),\n            guest=guest,\n            chunked=connection.chunked,\n        )\n"
        "        return Parcel(connection.fd, handoff, ())",
        seed=1,  # its sockets are small
        faults="move,drain,rebalance,restart",
    ),
    "resume-off-by-one": Break(
        "shard/connection.py",
        "self._position, self.pending = known.id, known.pending",
        "self._position, self.pending = max(0, known.id - 1), known.pending",
    ),
    "pending-forgotten": Break(
        "shard/connection.py",
        "        self._position, self.pending = known.id, known.pending",
        "        self._position, self.pending = known.id, None",
    ),
    "gap-not-told": Break(
        "shard/delivery.py",
        "self._tell(subscription, event.gap_frame(name, missed_from, missed_to), missed_to)",
        "subscription.position = missed_to",
    ),
    "late-predicate-shown": Break(
        "shard/filters.py",
        'hidden", label, self._deadline_s, stream)\n',
        'hidden", label, self._deadline_s, stream)\n            return True\n',
    ),
    "unknown-label-shown": Break(
        "shard/visibility.py",
        "self._predicates.ask(connection, *key)",
        "self._predicates.ask(connection, *key) is not None or None",
    ),
    "sentinel-with-id": Break("headrace/event.py", 'return _sentinel("gap",', 'return b"id: 0\\n" + _sentinel("gap",'),
    "commit-not-durable": Break(
        "headrace/sql/0001_log.sql",
        "current_setting('synchronous_commit') = 'off'",
        "current_setting('synchronous_commit') = 'never'",
        faults="postgres-kill",
    ),
    "dead-sessions-stay": Break(
        "shard/postgres/presence_members.py", "if now - since >= self._silent_after_s]", "if now - since >= 3600]"
    ),
    "a-leave-overlooks-others": Break(
        "headrace/sql/0007_presence.sql",
        "h.stream = m.stream and h.member = m.member\n",
        "h.stream = m.stream and h.member = m.member and false\n",
    ),
}
"""By name, what is broken."""


@click.command(epilog="Example: python -m loadtests.torture.broken tail-dropped cursor-before-write --seconds 20")
@click.argument("names", nargs=-1, type=click.Choice(list(BREAKS)))
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(min=1), help="Of torture, for each.")
@click.option("--subscribers", default=120, show_default=True, type=click.IntRange(1, 10_000))
def main(names: tuple[str, ...], seconds: float, subscribers: int) -> None:
    """Torture broken copies, all or those with NAMES. Exits with 1 if a break goes unnoticed."""
    unnoticed = []
    click.echo(f"{'break':28} {'verdict':>8}  {'first':>6}  violations")
    for name in names or BREAKS:
        began = time.monotonic()
        verdict = torture(BREAKS[name], seconds, subscribers)
        found = verdict["violations"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one["kind"] for one in found).most_common(4))
        first = f"{min(one['after_s'] for one in found):.1f} s" if found else "-"
        click.echo(f"{name:28} {time.monotonic() - began:6.0f} s  {first:>6}  {kinds or 'NONE'}")
        if not found:
            unnoticed.append(name)
    if unnoticed:
        click.echo(f"unnoticed: {', '.join(unnoticed)}", err=True)
    sys.exit(1 if unnoticed else 0)


def copy(into: Path) -> None:
    """Copy headrace and its torture into a directory. The links headrace/shard and headrace/router stay links there."""
    for name in COPIED:
        shutil.copytree(ROOT / name, into / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def torture(broken: Break, seconds: float, subscribers: int) -> dict[str, Any]:
    """The verdict on a copy with this break, as the torture prints it.

    Raises LookupError if the break does not apply, RuntimeError if there is no verdict.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-broken-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        copy(root)
        broken.apply(root)
        options = ["--seed", str(broken.seed), "--seconds", f"{seconds:g}", "--subscribers", str(subscribers)]
        options += ["--faults", broken.faults, "--json"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "loadtests.torture", *options],
            cwd=root,
            env=os.environ | {"PYTHONPATH": directory},
            capture_output=True,
            text=True,
            timeout=seconds + 240,
            check=False,
        )
        if not done.stdout:
            raise RuntimeError(f"the torture gave no verdict:\n{done.stderr[-4000:]}")
        verdict: dict[str, Any] = json.loads(done.stdout)
        return verdict


if __name__ == "__main__":
    main()
