"""`python -m loadtests.operations`: the command line."""

import sys

import click

from loadtests.operations.run import OperationsRun, dump, render


@click.command(epilog="Example: python -m loadtests.operations --clients 500 --shards 3")
@click.option("--clients", default=2000, show_default=True, type=click.IntRange(1, 15_000))
@click.option("--streams", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--rate", default=200.0, show_default=True, type=click.FloatRange(min=1), help="Events a second.")
@click.option("--shards", default=4, show_default=True, type=click.IntRange(2, 16))
@click.option("--moves", default=3, show_default=True, type=click.IntRange(0, 20), help="Moves of all clients, timed.")
@click.option("--pause", "pause_s", default=1.0, show_default=True, help="Seconds after each operation.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict for programs; progress goes to stderr.")
def main(clients: int, streams: int, rate: float, shards: int, moves: int, pause_s: float, as_json: bool) -> None:
    """Operate a whole node under load. Exits with 1 if a connection closed, or an event was lost or out of order."""
    run = OperationsRun(
        clients=clients,
        streams=streams,
        rate=rate,
        shards=shards,
        moves=moves,
        pause_s=pause_s,
        say=lambda text: click.echo(text, err=True),
    )
    verdict = run()
    click.echo(dump(verdict) if as_json else render(verdict))
    sys.exit(1 if verdict.problems else 0)


if __name__ == "__main__":
    main()
