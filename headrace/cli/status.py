"""`headrace status`: what the directory says of nodes and shards, as a table and as JSON."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from headrace.cli.command import aligned, main, read_settings
from headrace.directory import Directory, Snapshot


@main.command(epilog="Example: headrace status --json | jq '.shards[].connections'")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> None:
    """Show nodes, shards, connections, slots, and how far the shards are behind the log."""
    settings = read_settings("redis_url")
    directory = Directory(settings.redis_url, expiry_s=settings.directory_expiry_s)
    snapshot = directory.read()
    if as_json:
        click.echo(json.dumps(_status(snapshot), indent=2))
    else:
        click.echo("\n".join(_table(snapshot)))


def _status(snapshot: Snapshot) -> dict[str, Any]:
    owned: dict[str, int] = {}
    for slots in snapshot.slots.values():
        for owner in slots.values():
            owned[owner] = owned.get(owner, 0) + 1
    shards = [
        {
            "id": shard.id,
            "node": shard.node,
            "pid": shard.pid,
            "state": shard.state,
            "connections": shard.connections,
            "capacity": shard.capacity,
            "streams": shard.streams,
            "slots": owned.get(shard.id, 0),
            "lag_s": shard.lag_s,
            "last_error": shard.last_error,
            "version": shard.version,
        }
        for shard in snapshot.shards
    ]
    return {"epoch": list(snapshot.epoch), "nodes": sorted({shard.node for shard in snapshot.shards}), "shards": shards}


def _table(snapshot: Snapshot) -> Iterator[str]:
    columns = ("id", "node", "pid", "state", "connections", "streams", "slots", "lag_s", "last_error")
    rows = [
        columns,
        *(
            tuple(f"{shard[c]:.1f}" if c == "lag_s" else str(shard[c]) for c in columns)
            for shard in _status(snapshot)["shards"]
        ),
    ]
    yield from aligned(rows)
    if len(rows) == 1:
        yield "no shard is registered"
    yield f"epoch {snapshot.epoch[0]} {snapshot.epoch[1]}, {datetime.now():%H:%M:%S}"
