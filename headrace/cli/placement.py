"""`headrace drain`, `undrain`, `move` and `rebalance`: which shard serves what, while clients stay connected."""

import click

from headrace.cli.command import aligned, main, open_operations


@main.command(epilog="Example: headrace drain web1-0")
@click.argument("shard")
def drain(shard: str) -> None:
    """Move all connections of SHARD to other shards of its node, and send it no new ones.

    No client reconnects. The shard stays up, and `rebalance` passes it over, until `undrain`.
    """
    open_operations().drain(shard)
    click.echo(f"{shard} is drained")


@main.command(epilog="Example: headrace undrain web1-0")
@click.argument("shard")
def undrain(shard: str) -> None:
    """Let a drained SHARD serve again, and move its share of the slots to it."""
    open_operations().undrain(shard)
    click.echo(f"{shard} is up")


@main.command(epilog="Example: headrace move room:1 web1-0    or: headrace move 517 web1-0")
@click.argument("what", metavar="STREAM|SLOT")
@click.argument("shard")
def move(what: str, shard: str) -> None:
    """Move a slot, given by number or by a stream in it, to SHARD with all its connections. No client reconnects."""
    number = open_operations().move(what, shard)
    click.echo(f"slot {number} is served by {shard}")


@main.command(epilog="Example: headrace rebalance --dry-run")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
def rebalance(dry_run: bool) -> None:
    """Spread the slots evenly over the shards that are up, with their connections. No client reconnects."""
    operations = open_operations()
    plans = operations.plans()
    rows = [("node", "shard", "slots now", "slots then")]
    for plan in plans:
        rows += [(plan.node, shard, str(plan.before[shard]), str(plan.after[shard])) for shard in plan.before]
    click.echo("\n".join(aligned(rows)))
    if not dry_run:
        operations.rebalance()
        click.echo(f"moved {sum(plan.moves for plan in plans)} slots")
