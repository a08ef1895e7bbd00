"""`python -m loadtests.bench`: the command line."""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click

from loadtests.bench import cores
from loadtests.bench.bench import Bench
from loadtests.bench.catalogue import SCENARIOS, Scenario
from loadtests.bench.clients import FailedError
from loadtests.bench.figure import Figure, Row, rows, table
from loadtests.bench.machine import described
from loadtests.bench.node import Node
from loadtests.bench.plots import draw
from loadtests.bench.publisher import BenchPublisher
from loadtests.bench.tools import Tools


class Running:
    """The node that scenarios measure; it is started anew for a scenario that needs another one.

    Owned by the command.
    """

    def __init__(self) -> None:
        self.postgres = ""
        self._node: Node | None = None

    def node(self, scenario: Scenario) -> Node:
        """A running node with the settings that the scenario wants."""
        node = self._node
        if node and (
            scenario.fresh
            or (node.shards, node.router_workers, node.settings, node.counts_statements)
            != (scenario.shards, scenario.router_workers, scenario.settings, scenario.counts_statements)
        ):
            self.stop()
            node = None
        if node is None:
            node = self._node = Node(
                scenario.shards,
                scenario.router_workers,
                settings=scenario.settings,
                counts_statements=scenario.counts_statements,
            )
            node.start()
        return node

    def stop(self) -> None:
        """End the node, if one runs."""
        if self._node is not None:
            self._node.stop()
            self._node = None


@click.command(epilog="Example: python -m loadtests.bench --scenario fanout --scenario latency --json figures.json")
@click.argument("more", nargs=-1, metavar="[SCENARIO]...")
@click.option("--scenario", "chosen", multiple=True, help=f"Any of {', '.join(SCENARIOS)}.  [default: all]")
@click.option("--repeat", type=click.IntRange(1), help="Times that each is measured.  [default: 3; 5 for pairs]")
@click.option("--n", default=5000, show_default=True, type=click.IntRange(10, 6500), help="Connections.")
@click.option("--seconds", type=click.FloatRange(0.5), help="Of publishing, each time.  [default: 8; 10 for pairs]")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Draw what was measured, into here.")
@click.option("--tools", type=click.Path(path_type=Path), help="Directory of ssebench.c and rawfan.c.")
def main(
    more: tuple[str, ...],
    chosen: tuple[str, ...],
    repeat: int | None,
    n: int,
    seconds: float | None,
    as_json: Path | None,
    plots: Path | None,
    tools: Path | None,
) -> None:
    """Measure headrace beside the floor and print medians, in brackets the least and the greatest."""
    names = [*chosen, *more] or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        raise click.BadParameter(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    about: dict[str, str] = {}
    found: list[Row] = []
    repetitions: dict[str, list[list[Figure]]] = {}
    times: dict[str, int] = {}
    lengths: dict[str, float] = {}
    running = Running()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-tools-") as directory:
        built = Tools.build(tools, Path(directory))
        try:
            for name in names:
                scenario = SCENARIOS[name]
                times[name], lengths[name] = repeat or scenario.repeat, seconds or scenario.seconds
                for number in range(times[name]):
                    click.echo(f"{name} {number + 1} of {times[name]}", err=True)
                    figures = _measured(scenario, running, built, n, lengths[name], f"{name}-{number}", about)
                    repetitions.setdefault(name, []).append(figures)
                    for figure in figures:
                        beside = f" of {figure.floor:,.1f}: {figure.ratio:.2f}" if figure.floor else ""
                        click.echo(f"    {figure.name} {figure.headrace:,.1f} {figure.unit}{beside}", err=True)
                found += rows(name, repetitions[name])
        except FailedError as error:
            raise click.ClickException(str(error)) from error
        finally:
            running.stop()
    each = ", ".join(f"{name} {times[name]} times {lengths[name]:g} s" for name in times)
    click.echo(f"{n} connections; {each}; " + ", ".join(f"{k} {v}" for k, v in about.items()))
    click.echo(table(found))
    value = {
        "about": about,
        "connections": n,
        "seconds": lengths,
        "rows": [asdict(row) for row in found],
        "repetitions": {name: [[asdict(f) for f in each] for each in all_] for name, all_ in repetitions.items()},
    }
    if plots:
        for file in draw(value, plots):
            click.echo(f"drawn: {file}", err=True)
    if as_json:
        as_json.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _measured(
    scenario: Scenario, running: Running, tools: Tools, n: int, seconds: float, stream: str, about: dict[str, str]
) -> list[Figure]:
    node = running.node(scenario)
    publisher = BenchPublisher(node.database_url)
    try:
        if not about:
            cores.pin(0, cores.ALL)
            about.update(described(publisher.connection.info.parameter_status("server_version") or "?"))
        cores.pin(0, cores.CLIENT if scenario.shards == 1 else cores.ALL)
        # The clients of the scenario before may still be leaving.
        time.sleep(0.5)
        return scenario.run(Bench(tools, node, publisher, n, seconds, f"bench:{stream}"))
    finally:
        publisher.close()


if __name__ == "__main__":
    main()
