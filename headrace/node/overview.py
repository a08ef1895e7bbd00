"""What the directory says of a deployment, in the shape of `headrace status --json` and the operations page."""

from collections.abc import Iterator
from typing import Any

from headrace.node.directory import ShardEntry, Snapshot


def overview(snapshot: Snapshot) -> dict[str, Any]:
    """The nodes, shards, hot streams, slow clients and moves of a whole deployment, in values that JSON has."""
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
            "events_s": shard.events_s,
            "deliveries_s": shard.deliveries_s,
            "latency_p50_ms": shard.latency_p50_ms,
            "latency_p99_ms": shard.latency_p99_ms,
            "blocked": shard.blocked,
            "lag_s": round(shard.lag_s, 1),
            "epoch": shard.settled.partition(" ")[2],
            "last_error": shard.last_error,
            "database_error": shard.database_error,
            "canary": shard.canary,
            "version": shard.version,
        }
        for shard in snapshot.shards
    ]
    hot = [
        {"node": node, "stream": stream, "connections": connections}
        for node, streams in sorted(snapshot.hot.items())
        for stream, connections in sorted(streams.items(), key=lambda item: -item[1])
    ]
    return {
        "redis": "ok",
        "epoch": list(snapshot.epoch),
        "nodes": [_node(node, snapshot) for node in sorted({shard.node for shard in snapshot.shards})],
        "shards": shards,
        "hot_streams": hot,
        "slow_clients": [client for shard in snapshot.shards for client in _slow(shard)],
        "moves": [move for shard in snapshot.shards for move in _moves(shard)],
    }


def _node(node: str, snapshot: Snapshot) -> dict[str, Any]:
    shards = [shard for shard in snapshot.shards if shard.node == node]
    connections = sum(shard.connections for shard in shards)
    state = "up" if node not in snapshot.drained_nodes else "draining" if connections else "drained"
    return {
        "name": node,
        "state": state,
        "shards": len(shards),
        "connections": connections,
        "capacity": sum(shard.capacity for shard in shards),
    }


def _moves(shard: ShardEntry) -> Iterator[dict[str, Any]]:
    """The connections that are on their way from a shard; a successor of it has the same id."""
    for target in shard.targets.split():
        id_, _, count = target.rpartition(":")
        # The last of many is cut where the entry's text ends.
        if id_ and count.isdecimal():
            yield {"from": shard.id, "to": id_, "connections": int(count)}


def _slow(shard: ShardEntry) -> Iterator[dict[str, Any]]:
    """The clients that have been longest without reading what was sent to them."""
    for line in shard.slowest.splitlines():
        peer, _, rest = line.partition(" ")
        seconds, _, user = rest.partition(" ")
        if seconds.isdecimal():
            yield {"shard": shard.id, "peer": peer, "seconds": int(seconds), "user": user}
