"""`headrace drain`, `undrain`, `move` and `rebalance`: they move live connections and slots between shards."""

import time

import click

from headrace.cli.command import aligned, main, open_operations
from headrace.errors import UsageError


@main.command(
    short_help="Move a shard's or a node's clients elsewhere.",
    epilog="Example: headrace drain web1-0    or: headrace drain --node web1 --over 120",
    help="""
    Move all clients of SHARD, or of a whole node, elsewhere, and give it no new ones until `undrain`.

    The connections of a shard move to other shards of its node, and no client reconnects; the drained shard stays up,
    and `rebalance` passes it over. Connections cannot move to another node: when a node is drained, its clients are
    asked to reconnect, evenly over the time of --over, and resume where they were. Meanwhile the node's router answers
    503, also at /readyz.
    """,
)
@click.argument("shard", required=False)
@click.option("--node", default=None, help="Drain this node: its clients reconnect to other nodes.")
@click.option(
    "--over",
    "over_s",
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400),
    help="With --node: the time over which the clients are asked.",
)
def drain(shard: str | None, node: str | None, over_s: float) -> None:
    """`headrace drain`."""
    operations = open_operations()
    if node is not None and shard is None:
        operations.drain_node(node, over_s)
        click.echo(f"node {node} is drained")
    else:
        operations.drain(_one(shard, node))
        click.echo(f"{shard} is drained")


@main.command(
    short_help="Let a drained shard or node serve again.",
    epilog="Example: headrace undrain web1-0    or: headrace undrain --node web1",
    help="""
    Let a drained SHARD serve again, with its share of the slots, or a node that was drained with --node.

    Shards that were drained by name stay drained when their node serves again. The command names them.
    """,
)
@click.argument("shard", required=False)
@click.option("--node", default=None, help="Let this node serve again.")
def undrain(shard: str | None, node: str | None) -> None:
    """`headrace undrain`."""
    operations = open_operations()
    if node is not None and shard is None:
        left = operations.undrain_node(node)
        click.echo(f"node {node} is {'no longer drained; none of its shards runs' if left is None else 'up'}")
        for id_ in left or ():
            click.echo(f"{id_} stays drained; `headrace undrain {id_}` lets it serve again")
    else:
        serves = operations.undrain(_one(shard, node))
        click.echo(f"{shard} is {'up' if serves else 'no longer drained; it does not run'}")


@main.command(
    short_help="Move a slot to a shard, with its connections.",
    epilog="Example: headrace move room:1 web1-0    or: headrace move 517 web1-0",
    help="""
    Move a slot to SHARD, with all its connections. No client reconnects.

    The slot is given by its number, 0 to 1023, or by the name of a stream in it.
    """,
)
@click.argument("what", metavar="STREAM|SLOT")
@click.argument("shard")
def move(what: str, shard: str) -> None:
    """`headrace move`."""
    number = open_operations().move(what, shard)
    of = "" if what == str(number) else f", that of {what!r},"
    click.echo(f"slot {number}{of} is served by {shard}")


@main.command(
    short_help="Spread the slots evenly over the shards.",
    epilog="Example: headrace rebalance --dry-run",
    help="""
    Spread the slots, with their connections, evenly over the shards that are up. No client reconnects.

    Prints the plan, the progress and the result.
    """,
)
@click.option("--dry-run", is_flag=True, help="Print the plan, and move nothing.")
def rebalance(dry_run: bool) -> None:
    """`headrace rebalance`."""
    operations = open_operations()
    plans = operations.plans()
    rows: list[tuple[str, ...]] = [("node", "shard", "slots now", "slots then", "connections now")]
    for plan in plans:
        for shard, slots in plan.before.items():
            rows.append((plan.node, shard, str(slots), str(plan.after[shard]), str(plan.connections[shard])))
    click.echo("\n".join(aligned(rows)))
    if dry_run:
        return
    began = time.monotonic()
    operations.rebalance(plans)
    click.echo(f"moved {sum(plan.moves for plan in plans)} slots in {time.monotonic() - began:.1f} s")
    rows = [("node", "shard", "slots", "connections")]
    for plan in operations.plans():
        rows += [(plan.node, shard, str(plan.before[shard]), str(plan.connections[shard])) for shard in plan.before]
    click.echo("\n".join(aligned(rows)))


def _one(shard: str | None, node: str | None) -> str:
    if shard is None or node is not None:
        raise UsageError("name either a shard or, with --node, a node")
    return shard
