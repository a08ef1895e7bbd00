"""`headrace drain`, `undrain`, `move` and `rebalance`: which shard serves what, while clients stay connected."""

import time

import click

from headrace.cli.command import aligned, main, open_operations
from headrace.errors import UsageError


@main.command(
    short_help="Move a shard's or a node's clients elsewhere.",
    epilog="Example: headrace drain web1-0    or: headrace drain --node web1 --over 120",
    help="""
    Have SHARD, or a whole node, without clients, and send it no new ones until `undrain`.

    The connections of a shard move to others of its node, and no client reconnects; the shard stays up, and
    `rebalance` passes it over. Connections cannot move to another node: there, clients are asked to reconnect, one by
    one over the set time, and resume where they were. Meanwhile the node's router answers 503, and its /readyz too.
    """,
)
@click.argument("shard", required=False)
@click.option("--node", default=None, help="Drain all shards of this node; its clients go to other nodes.")
@click.option(
    "--over", "over_s", default=60.0, show_default=True, type=click.FloatRange(0, 86_400), help="Seconds, with --node."
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
    Let a drained SHARD serve again, and move its share of the slots to it; or a whole node that was drained as such.

    A shard that was drained by its name stays so when its node serves again. The command names those that do.
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
    help="Move a slot, given by number or by a stream in it, to SHARD with all its connections. No client reconnects.",
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
    Spread the slots evenly over the shards that are up, with their connections. No client reconnects.

    Shows the plan, how far it is, and what has come of it.
    """,
)
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
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
