"""`python -m loadtests.log_torture`: the command line."""

import logging
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from loadtests.log_torture.broken_schemas import BREAKS
from loadtests.log_torture.cluster import Cluster
from loadtests.log_torture.run import LogTortureRun, Plan, Verdict
from loadtests.torture.interrupt import end_in_order

SHOWN = 20
"""So many violations are printed in full."""


@click.command(epilog="Example: python -m loadtests.log_torture --seconds 60 --seed 7 --seeds 3")
@click.option("--seed", default=1, show_default=True, help="Decides the transactions and the faults.")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1), help="So many runs, with seeds from there on."
)
@click.option(
    "--seconds", default=20.0, show_default=True, type=click.FloatRange(min=1), help="Of torture, for each run."
)
@click.option("--crash/--no-crash", default=True, show_default=True, help="Kill PostgreSQL now and then.")
@click.option(
    "--failover",
    is_flag=True,
    help="Promote a standby in each run, instead of the kills; with an even seed commits wait for it.",
)
@click.option("--publishers", default=10, show_default=True, type=click.IntRange(3, 40))
@click.option(
    "--break", "broken", type=click.Choice([*BREAKS, "all"]), help="Torture a schema that is broken on purpose."
)
@click.option(
    "--postgres", type=click.Path(path_type=Path, file_okay=False), help="The directory of another PostgreSQL."
)
def main(
    seed: int,
    seeds: int,
    seconds: float,
    crash: bool,
    failover: bool,
    publishers: int,
    broken: str | None,
    postgres: Path | None,
) -> None:
    """Torture the log and judge it. Exits with 1 if any promise was broken.

    With --break, exits with 1 if a broken schema is not caught in any of its runs.
    """
    logging.basicConfig(level=logging.WARNING)
    end_in_order()
    faults = frozenset({"failover"} if failover else {"crash"} if crash else ())
    names: list[str | None] = list(BREAKS) if broken == "all" else [broken]
    failed = False
    with ExitStack() as opened:
        shared = None if failover else opened.enter_context(Cluster(postgres))
        for name in names:
            caught = False
            for number in range(seed, seed + seeds):
                plan = Plan(number, seconds, faults, name, publishers)
                if shared is not None:
                    verdict = LogTortureRun(shared, plan)()
                    shared.drop()
                else:
                    with Cluster(postgres, synchronous=number % 2 == 0) as cluster:
                        verdict = LogTortureRun(cluster, plan)()
                _show(verdict)
                caught = caught or bool(verdict.violations)
                if name is not None and caught:
                    break
            failed = failed or caught == (name is None)
    sys.exit(1 if failed else 0)


def _show(verdict: Verdict) -> None:
    click.echo(verdict.line())
    for one in verdict.violations[:SHOWN]:
        click.echo(f"    {one}")


if __name__ == "__main__":
    main()
