"""`python -m loadtests.torture`: the command line."""

# ruff: noqa: E402  # gevent patches before anything is imported

from gevent import monkey

monkey.patch_all()

import json
import logging
import sys
from pathlib import Path
from typing import Final

import click

from loadtests.torture.faults import FAULTS
from loadtests.torture.interrupt import end_in_order
from loadtests.torture.machine import can_compile
from loadtests.torture.plan import draw
from loadtests.torture.run import TortureRun, TortureVerdict

COMPILED: Final = ("disk-full", "clock-back")
"""Faults of the machine: a library that is compiled for the run makes them."""


@click.command(epilog="Example: python -m loadtests.torture --seed 7 --seconds 60 --faults shard-kill,postgres-pause")
@click.option("--seed", default=1, show_default=True, help="Decides the clients, the transactions and the faults.")
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(min=1), help="Of torture.")
@click.option("--faults", default="all", show_default=True, help="Names with commas between, `all` or `none`.")
@click.option("--subscribers", default=400, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--shards", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--publishers", default=12, show_default=True, type=click.IntRange(1, 40))
@click.option("--rate", default=150.0, show_default=True, type=click.FloatRange(min=1), help="Events a second, about.")
@click.option("--headrace", "command", default="", help="The command to torture.  [default: this checkout's headrace]")
@click.option("--log", type=click.Path(path_type=Path), help="Write all that the processes said to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict for programs; progress goes to stderr.")
@click.option("--list-faults", is_flag=True, help="Print the faults and what each does.")
def main(
    seed: int,
    seconds: float,
    faults: str,
    subscribers: int,
    shards: int,
    publishers: int,
    rate: float,
    command: str,
    log: Path | None,
    as_json: bool,
    list_faults: bool,
) -> None:
    """Torture a whole headrace and judge what every client was sent. Exits with 1 if any promise was broken."""
    if list_faults:
        for name, fault in FAULTS.items():
            click.echo(f"{name:20} {(fault.__doc__ or '').splitlines()[0]}")
        return
    chosen = {"all": list(FAULTS), "none": []}
    if not can_compile():
        click.echo(f"without a C compiler (`cc`) there are no {' and '.join(COMPILED)}", err=True)
        chosen["all"] = [name for name in FAULTS if name not in COMPILED]
    names = chosen.get(faults) if faults in chosen else [name.strip() for name in faults.split(",")]
    assert names is not None
    if unknown := set(names) - set(FAULTS):
        raise click.BadParameter(f"unknown: {', '.join(sorted(unknown))}; see --list-faults", param_hint="--faults")
    if not can_compile() and set(names) & set(COMPILED):
        raise click.BadParameter("these need a C compiler; install `cc`", param_hint="--faults")
    logging.basicConfig(level=logging.WARNING)
    end_in_order()
    plan = draw(
        seed, seconds=seconds, subscribers=subscribers, shards=shards, publishers=publishers, rate=rate, faults=names
    )
    verdict = TortureRun(plan, lambda text: click.echo(text, err=True), command, log)()
    click.echo(json.dumps(verdict.as_json(), indent=1, default=str) if as_json else _render(verdict))
    sys.exit(1 if verdict.violations else 0)


def _render(verdict: TortureVerdict) -> str:
    by_kind: dict[str, int] = {}
    for violation in verdict.violations:
        by_kind[violation.kind] = by_kind.get(violation.kind, 0) + 1
    lines = [*verdict.accounts, ""] if verdict.violations else []
    rest = [str(violation) for violation in verdict.violations][:40]
    lines += [*rest, ""] if verdict.violations else []
    lines += [f"{one.process}: {one.quantity} {one.early:.4g}, later {one.late:.4g}" for one in verdict.growth]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(by_kind.items())) or "no promise broken"
    lines.append(
        f"seed {verdict.seed}, {verdict.seconds:g} s: {verdict.events} events of {verdict.transactions} transactions, "
        f"{verdict.deliveries} deliveries to {verdict.subscribers} clients over {verdict.connections} connections, "
        f"{verdict.pages} pages ({verdict.pages_with_pending} with pending events), "
        f"{len(verdict.faults)} faults, {verdict.gaps} gaps owed and told; whole after {verdict.whole_after_s:g} s; "
        f"{kinds}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
