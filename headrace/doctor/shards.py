"""The shards, as they describe themselves in the directory."""

from collections.abc import Sequence
from typing import Final

from headrace.doctor.finding import Finding, fail, ok, warn
from headrace.node.shard_entry import ShardEntry

LAG_FAIL_S: Final = 5.0
NEARLY_FULL: Final = 0.9


def serving(shards: Sequence[ShardEntry]) -> Finding:
    """Whether shards are there, keep up with the log, and have room."""
    up = [shard for shard in shards if shard.state == "up"]
    if not up:
        return fail("shards", f"{len(shards)} are registered, none is up", "start shards, or undrain one")
    for shard in up:
        if shard.lag_s >= LAG_FAIL_S:
            advice = "see whether PostgreSQL answers; events arrive when it does"
            return fail("shards", f"{shard.id} waits for PostgreSQL since {shard.lag_s:.0f} s", advice)
        if shard.canary not in ("", "ok"):
            advice = "see the front door below, and the shard's log"
            return fail("shards", f"the canary of {shard.id} does not arrive: {shard.canary}", advice)
    for shard in up:
        if shard.last_error:
            return warn("shards", f"{shard.id} says: {' '.join(shard.last_error.split())[:100]}", "see its log")
        if shard.connections > NEARLY_FULL * shard.capacity:
            found = f"{shard.id} has {shard.connections} of {shard.capacity} connections"
            return warn("shards", found, "add shards (`headrace scale`), or raise the limit of open files")
    return ok("shards", f"{len(up)} up, {sum(shard.connections for shard in shards)} connections")
