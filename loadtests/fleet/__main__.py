"""`python -m loadtests.fleet`: the command line."""

import dataclasses
import json
import sys

import click

from headrace.settings import Settings
from loadtests.fleet.extrapolation import explain
from loadtests.fleet.run import FleetRun, render

BUS = "bus"


@click.command(epilog="Example: nice python -m loadtests.fleet --shards 1 --shards 12 --shards 24 --rate 50")
@click.option(
    "--shards",
    "sizes",
    multiple=True,
    default=(1, 12, 24, 40),
    show_default=True,
    type=click.IntRange(1, 100),
    help="How many shards are measured; may be given several times.",
)
@click.option("--rate", default=150.0, show_default=True, type=click.FloatRange(1, 2000), help="Events a second.")
@click.option("--size", default=200, show_default=True, type=click.IntRange(1, 1 << 20), help="Bytes of an event.")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(min=0.5), help="Of each measurement.")
@click.option("--settle", "settle_s", default=20.0, show_default=True, help="Seconds before each measurement.")
@click.option("--bus", type=click.Choice(["on", "off"]), help="HEADRACE_BUS of the shards; theirs unless given.")
@click.option(
    "--to", "target", default=400, show_default=True, type=click.IntRange(1), help="Shards to extrapolate to."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict for programs; progress goes to stderr.")
def main(
    sizes: tuple[int, ...],
    rate: float,
    size: int,
    seconds: float,
    settle_s: float,
    bus: str | None,
    target: int,
    as_json: bool,
) -> None:
    """Measure what a fleet of shards costs PostgreSQL and Redis: idle, and for each event of one hot stream.

    It starts both servers and all shards on this machine, with one subscriber on each shard. Exits with 1 if a
    subscriber lost an event, or was sent one twice or out of order.
    """
    settings = {}
    if bus is not None:
        if any(field.name == BUS for field in dataclasses.fields(Settings)):
            settings["HEADRACE_BUS"] = bus
        else:
            click.echo("this version of headrace has no bus: --bus has no effect", err=True)
    run = FleetRun(
        sizes=sizes,
        rate=rate,
        size=size,
        seconds=seconds,
        settle_s=settle_s,
        settings=settings,
        say=lambda text: click.echo(text, err=True),
    )
    verdict = run()
    arithmetic = explain(verdict.figures, target, rate)
    if as_json:
        click.echo(json.dumps({**verdict.as_json(), "extrapolation": arithmetic}, indent=2))
    else:
        click.echo("\n".join([render(verdict), "", *arithmetic, f"problems: {verdict.problems or 'none'}"]))
    sys.exit(1 if verdict.problems else 0)


if __name__ == "__main__":
    main()
