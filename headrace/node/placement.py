"""Where clients belong: which shards a slot prefers, how a hot stream is spread, and which shards have too many.

Nothing here is stored: everyone who knows the same shards computes the same. In the rendezvous order (highest random
weight), when a shard goes only its slots move, spread over all the others.
"""

import hashlib
import math
import zlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Final

BUCKETS: Final = 1024
"""Parts into which the connections of a hot stream fall, by their peers' addresses."""

SLACK: Final = 32
"""Connections above the mean that never count as too many: with few clients their number says nothing."""


def rendezvous(slot: int, shard_ids: Iterable[str]) -> list[str]:
    """The shard ids in the slot's order of preference, the first being the one that should own it.

    The order depends on the set of ids alone, not on how it was given. The weight of a pair is the first 8
    bytes of the BLAKE2b of `<slot>/<id>`, so that it is the same in every process and release.
    """
    return sorted(set(shard_ids), key=lambda shard_id: (_weight(slot, shard_id), shard_id), reverse=True)


def bucket(peer: str) -> int:
    """The bucket of a connection whose client has this address, `host:port`."""
    return zlib.crc32(peer.encode("utf-8", "replace")) % BUCKETS


def spread(shard_ids: Iterable[str]) -> tuple[str, ...]:
    """For each bucket the shard that takes it: the first in the bucket's order that has not its even share yet.

    So no shard takes more than its even share, and few buckets change when a shard comes or goes. shard_ids MUST NOT
    be empty.
    """
    return _spread(tuple(sorted(set(shard_ids))))


@lru_cache(maxsize=8)
def _spread(shard_ids: tuple[str, ...]) -> tuple[str, ...]:
    room = dict.fromkeys(shard_ids, math.ceil(BUCKETS / len(shard_ids)))
    owners = []
    for number in range(BUCKETS):
        owner = next(shard_id for shard_id in rendezvous(number, shard_ids) if room[shard_id])
        room[owner] -= 1
        owners.append(owner)
    return tuple(owners)


def overloaded(connections: Mapping[str, int], factor: float) -> Collection[str]:
    """The shards that have more than factor times their fair share of these connections, and SLACK more than it.

    Never all of them: somebody is at most at the mean.
    """
    if not connections:
        return ()
    mean = sum(connections.values()) / len(connections)
    bound = max(mean * factor, mean + SLACK)
    return {shard_id for shard_id, count in connections.items() if count > bound}


def _weight(slot: int, shard_id: str) -> bytes:
    return hashlib.blake2b(f"{slot}/{shard_id}".encode(), digest_size=8).digest()
