"""`python -m loadtests.torture.symptoms`: are the symptoms those of the runbook?

Starts the torture's system, with publishers and subscribers, and injects each of its faults alone. Nothing of what
docs/operate/runbook.md says of a fault may show before it, and all of that must show while it lasts, at /metrics,
/readyz, /ops/status or by `headrace doctor`. Settings are headrace's own, so that the times are those of an operator.
"""

# ruff: noqa: E402  # gevent patches before anything is imported

from gevent import monkey

monkey.patch_all()

import json
import logging
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import click
import gevent

import headrace
from headrace import tokens
from loadtests.torture import alerts, runbook
from loadtests.torture.condition import Condition, Finding, Sight
from loadtests.torture.fault import Fault
from loadtests.torture.faults import FAULTS
from loadtests.torture.interrupt import end_in_order
from loadtests.torture.machine import can_compile
from loadtests.torture.observer import OPS_TOKEN, Observer
from loadtests.torture.plan import Plan, draw
from loadtests.torture.publishers import Publishing
from loadtests.torture.runbook import Row
from loadtests.torture.subscribers import Subscribing
from loadtests.torture.system import System

PATIENCE_S: Final = 40.0
"""How long a fault lasts at most, if not all of its symptoms have been seen before."""
CALM_S: Final = 40.0
"""How long symptoms of an earlier fault may still show."""
AWAY: Final = "brief:away"
"""A stream whose events retention may remove, and that no client of the plan follows."""
_KEPT: Final = "select count(*) from headrace.kept_events() e where e.stream = %s"
_SETTINGS: Final = {
    "HEADRACE_FILTERS": "loadtests.torture.predicates",
    "HEADRACE_FILTER_DEADLINE_S": "1.5",
    "HEADRACE_PRUNE_INTERVAL_S": "0.5",
    "HEADRACE_OPS_TOKEN": OPS_TOKEN,
    # Events in the shards' memory would save clients from gaps.
    "HEADRACE_RING_BYTES": "0",
}
_DISPLACED: Final = ("move", "rebalance")
"""Faults without symptoms where the slots are balanced."""
_AGAIN: Final = ("move", "slots-exhausted")
"""Faults that may hit nothing and are injected again: the slot to move may have no client, for one."""


@dataclass(slots=True)
class Seen:
    """A clause or an alert of a row: how many seconds after the fault began it showed, and as what."""

    clause: str
    after_s: float
    what: str


@dataclass(slots=True)
class Outcome:
    """One fault, and whether its row is true. early lists symptoms that showed before it, missing the rest."""

    fault: str
    target: str = ""
    seen: list[Seen] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    well_after_s: float = 0.0

    @property
    def true(self) -> bool:
        """Whether everything that the row says was seen, and only during the fault."""
        return bool(self.seen) and not self.early and not self.missing


class Trial:
    """All rows, one after the other, on one system. Owned by the main greenlet."""

    def __init__(self, plan: Plan, rows: dict[str, Row], quiet_s: float, log: Path | None = None) -> None:
        self._plan = plan
        self._rows = rows
        self._quiet_s = quiet_s
        self._system = System(plan, log=log)
        self._publishing = Publishing(plan, self._system)
        self._observer = Observer(self._system)
        self._enough = False

    def __call__(self, faults: Sequence[str]) -> Iterator[Outcome]:
        """Try these faults; yields each outcome as soon as it is known, and ends all processes at last."""
        try:
            self._system.start()
            self._publishing.prepare()
            subscribing = Subscribing(self._plan, self._system)
            clients = [gevent.spawn(subscriber.run) for subscriber in subscribing.subscribers]
            publishers = [gevent.spawn(self._publishing.run, number) for number in range(self._plan.publishers)]
            others: list[gevent.Greenlet[..., None]] = [*clients, *publishers]
            self._wait_well()
            for name in faults:
                yield self._try(name)
            self._publishing.stopping = subscribing.closing = True
            gevent.joinall(others, timeout=10)
        finally:
            self._system.stop()

    def _try(self, name: str) -> Outcome:
        row, outcome = self._rows[name], Outcome(name)
        fault = FAULTS[name](self._system, self._publishing, self._plan.random(f"symptoms {name}"))
        if name in _DISPLACED:
            self._displace()
        before, outcome.early = self._calm(row)
        self._enough = False
        injecting = gevent.spawn(self._inject, name, fault)
        try:
            self._watch(row, before, outcome)
            self._enough = True
            outcome.target = injecting.get(timeout=60)
        finally:
            self._heal(name, fault)
        began = time.monotonic()
        if not self._wait_well():
            outcome.missing.append("the system is well again")
        outcome.well_after_s = round(time.monotonic() - began, 1)
        return outcome

    def _inject(self, name: str, fault: Fault) -> str:
        target = fault.inject(PATIENCE_S)
        while name in _AGAIN and not self._enough:
            time.sleep(0.2)
            target = fault.inject(PATIENCE_S)
        if name == "retention":
            self._come_back()
        return target

    def _come_back(self) -> None:
        """Have a client come back from before an event that was removed, of a stream that nobody else follows.

        The plan's clients are away for a moment only, and the shards' rings have what most of them missed. A client
        that came before the removal would have the ring remember the event.
        """
        with self._system.connect() as connection:
            headrace.publish(connection, AWAY, "missed")
        path = f"/streams/{tokens.sign([AWAY], secrets=(self._system.secret,))}?since=0"
        while not self._enough:
            time.sleep(0.2)
            with self._system.connect() as connection:
                if connection.execute(_KEPT, [AWAY]).fetchone() != (0,):
                    continue
            with suppress(OSError), socket.create_connection(self._system.address, timeout=2) as client:
                client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                # The gap comes after the log was read: a client that hangs up at the response's head is not told of it.
                while b"headrace:gap" not in (data := client.recv(4096)) and data:
                    pass

    def _calm(self, row: Row) -> tuple[Sight, list[str]]:
        """Wait, at most CALM_S, until the row's symptoms do not show; returns the last sight, and what still shows."""
        until = time.monotonic() + CALM_S
        while True:
            began = time.monotonic()
            before = self._observer.look(began)
            asking = self._ask_doctor(row.asks("doctor"))
            time.sleep(self._quiet_s)
            now = replace(self._observer.look(began), findings=asking.get())
            showing = [condition.text for condition in row.conditions() if condition.seen(before, now)]
            showing += [alert for choice in self._alerts(row) for alert in choice if _fires(alert, now, now)]
            if not showing or time.monotonic() > until:
                return now, showing

    def _watch(self, row: Row, before: Sight, outcome: Outcome) -> None:
        """Look until each clause was seen and each alert would fire, but no longer than PATIENCE_S."""
        began = time.monotonic()
        unseen, unfired = list(row.clauses), self._alerts(row)
        asking = self._ask_doctor(row.asks("doctor"))
        while True:
            now = self._observer.look(began)
            if asking.ready():
                # The doctor takes seconds; the other conditions need not wait for it.
                now = replace(now, findings=asking.get())
                asking = self._ask_doctor(any(one.source == "doctor" for clause in unseen for one in clause))
            at = round(time.monotonic() - began, 1)
            for clause in list(unseen):
                if found := _first(clause, before, now):
                    outcome.seen.append(Seen(found[0].text, at, found[1]))
                    unseen.remove(clause)
            for choice in unfired[:] if not unseen else ():
                if fired := [alert for alert in choice if _fires(alert, before, now)]:
                    outcome.seen.append(Seen(fired[0], at, "fires if this lasts"))
                    unfired.remove(choice)
            if not unseen and not unfired:
                return
            if at > PATIENCE_S:
                outcome.missing = [" or ".join(one.text for one in clause) for clause in unseen]
                outcome.missing += [" or ".join(choice) for choice in unfired]
                return
            time.sleep(0.1)

    def _alerts(self, row: Row) -> list[tuple[str, ...]]:
        return list(row.alerts) if alerts.can_fire() else []

    def _ask_doctor(self, needed: bool) -> "gevent.Greenlet[..., tuple[Finding, ...]]":
        return gevent.spawn(self._observer.ask_doctor if needed else tuple)

    def _heal(self, name: str, fault: Fault) -> None:
        fault.heal()
        if name == "clock-back":
            # In a torture the clock stays behind; here the next fault is to be seen alone.
            self._system.machine.set_right()

    def _displace(self) -> None:
        """Move all shared streams to one shard: where the slots are balanced, nothing moves."""
        for stream in self._plan.shared:
            self._system.headrace("move", stream, min(self._system.shards()))

    def _wait_well(self) -> bool:
        until = time.monotonic() + CALM_S
        while not (well := self._observer.well()) and time.monotonic() < until:
            time.sleep(0.1)
        return well


def _fires(alert: str, before: Sight, now: Sight) -> bool:
    return alerts.fires(alert, before.metrics, now.metrics)


def _first(clause: tuple[Condition, ...], before: Sight, now: Sight) -> tuple[Condition, str] | None:
    for condition in clause:
        if what := condition.seen(before, now):
            return condition, what
    return None


@click.command(epilog="Example: python -m loadtests.torture.symptoms --faults shard-kill,disk-full")
@click.option(
    "--faults", default="all", show_default=True, help="Names with commas between, `all`, or `marked`: those with a *."
)
@click.option("--seed", default=1, show_default=True, help="Decides whom a fault hits, and how.")
@click.option("--shards", default=2, show_default=True, type=click.IntRange(2, 16))
@click.option("--runbook", "path", default=runbook.PATH, type=click.Path(path_type=Path), help="Another one.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of headrace, as PING_INTERVAL_S=0.3."
)
@click.option("--quiet", default=1.0, show_default=True, help="Seconds before each fault without what it will show.")
@click.option("--log", type=click.Path(path_type=Path), help="Write all that the processes said to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes for programs; progress goes to stderr.")
def main(
    faults: str,
    seed: int,
    shards: int,
    path: Path,
    settings: tuple[str, ...],
    quiet: float,
    log: Path | None,
    as_json: bool,
) -> None:
    """Inject each fault alone and look for what the runbook says. Exits with 1 if a row is not true."""
    rows = runbook.read(path.read_text())
    chosen = {"all": list(FAULTS), "marked": [name for name in FAULTS if name in rows and rows[name].marked]}
    names = chosen[faults] if faults in chosen else [name.strip() for name in faults.split(",")]
    if unknown := [name for name in names if name not in FAULTS or name not in rows]:
        raise click.BadParameter(f"no fault with a row: {', '.join(unknown)}", param_hint="--faults")
    for what, there in (("a C compiler (`cc`)", can_compile()), ("promtool", alerts.can_fire())):
        if not there:
            click.echo(f"without {what} a part of this is not tried", err=True)
    logging.basicConfig(level=logging.WARNING)
    end_in_order()
    plan = draw(seed, seconds=60, subscribers=60, shards=shards, publishers=4, rate=160, faults=())
    outcomes = []
    began = time.monotonic()
    chosen_settings = _SETTINGS | {
        f"HEADRACE_{name}": value for name, _, value in (one.partition("=") for one in settings)
    }
    for outcome in Trial(replace(plan, settings=chosen_settings), rows, quiet, log)(_possible(names)):
        outcomes.append(outcome)
        click.echo(_render(outcome), err=as_json)
    if as_json:
        click.echo(json.dumps([asdict(outcome) | {"true": outcome.true} for outcome in outcomes], indent=1))
    untrue = [outcome.fault for outcome in outcomes if not outcome.true]
    verdict = f"{len(untrue)} rows are not true: {', '.join(untrue)}" if untrue else "every row is true"
    click.echo(f"{len(outcomes)} faults in {time.monotonic() - began:.0f} s: {verdict}", err=as_json)
    sys.exit(bool(untrue))


def _possible(names: list[str]) -> list[str]:
    return [name for name in names if can_compile() or name not in ("disk-full", "clock-back")]


def _render(outcome: Outcome) -> str:
    lines = [f"{outcome.fault} {outcome.target}".rstrip()]
    lines += [f"  {seen.after_s:5.1f} s  {seen.clause}   {_short(seen.what)}" for seen in outcome.seen]
    lines += [f"  BEFORE   {text}" for text in outcome.early]
    lines += [f"  NEVER    {text}" for text in outcome.missing]
    lines.append(f"  well again after {outcome.well_after_s:.1f} s")
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"


if __name__ == "__main__":
    main()
