"""A deployment as the directory shows it, in the shape of `headrace status --json` and of the operations page."""

from typing import Any

from headrace.node.directory_snapshot import DirectorySnapshot


def overview(snapshot: DirectorySnapshot) -> dict[str, Any]:
    """The nodes, shards, hot streams, slow clients and moves of a whole deployment, as values that JSON can hold."""
    owned = snapshot.owned()
    shards = [
        {
            **shard.shown(),
            "slots": owned.get(shard.id, 0),
            "lag_s": round(shard.lag_s, 1),
            "epoch": shard.settled.partition(" ")[2],
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
        "slow_clients": [
            {"shard": shard.id, "peer": peer, "seconds": seconds, "user": user}
            for shard in snapshot.shards
            for peer, seconds, user in shard.slow_clients()
        ],
        "moves": [
            {"from": shard.id, "to": target, "connections": connections}
            for shard in snapshot.shards
            for target, connections in shard.moves()
        ],
    }


def _node(node: str, snapshot: DirectorySnapshot) -> dict[str, Any]:
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
