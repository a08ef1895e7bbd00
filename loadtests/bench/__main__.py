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
            or (node.shards, node.router_workers, node.settings)
            != (scenario.shards, scenario.router_workers, scenario.settings)
        ):
            self.stop()
            node = None
        if node is None:
            node = self._node = Node(scenario.shards, scenario.router_workers, settings=scenario.settings)
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
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Times that each is measured.")
@click.option("--n", default=5000, show_default=True, type=click.IntRange(10, 6500), help="Connections.")
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(0.5), help="Of publishing, each time.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Draw what was measured, into here.")
@click.option("--tools", type=click.Path(path_type=Path), help="Directory of ssebench.c and rawfan.c.")
def main(
    more: tuple[str, ...],
    chosen: tuple[str, ...],
    repeat: int,
    n: int,
    seconds: float,
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
    running = Running()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-tools-") as directory:
        built = Tools.build(tools, Path(directory))
        try:
            for name in names:
                for number in range(repeat):
                    click.echo(f"{name} {number + 1} of {repeat}", err=True)
                    figures = _measured(SCENARIOS[name], running, built, n, seconds, f"{name}-{number}", about)
                    repetitions.setdefault(name, []).append(figures)
                    for figure in figures:
                        beside = f" of {figure.floor:,.1f}: {figure.ratio:.2f}" if figure.floor else ""
                        click.echo(f"    {figure.name} {figure.headrace:,.1f} {figure.unit}{beside}", err=True)
                found += rows(name, repetitions[name])
        except FailedError as error:
            raise click.ClickException(str(error)) from error
        finally:
            running.stop()
    click.echo(f"{n} connections, {seconds:g} s, {repeat} times; " + ", ".join(f"{k} {v}" for k, v in about.items()))
    click.echo(table(found))
    value = {
        "about": about,
        "connections": n,
        "seconds": seconds,
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
