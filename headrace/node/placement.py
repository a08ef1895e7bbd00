"""Where clients belong: which shards a slot prefers, how a hot stream is spread, which shards have too many clients.

Nothing here is stored: all processes that know the same shards compute the same. A slot prefers shards in rendezvous
order (highest random weight): when a shard goes, only its own slots move, and they spread over all other shards.
"""

import hashlib
import math
import zlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Final

from headrace.stream import SLOTS

BUCKETS: Final = 1024
"""Parts into which the connections of a hot stream fall, by their peers' addresses."""

SLACK: Final = 32
"""So many connections above the mean never count as too many: among few clients, differences are chance."""


def rendezvous(slot: int, shard_ids: Iterable[str]) -> list[str]:
    """The shard ids in the slot's order of preference; the first shard is the one that should own the slot.

    The result depends on the set of ids alone, not on the order in which they are given. The weight of a slot and a
    shard is the first 8 bytes of the BLAKE2b of `<slot>/<id>`: the same in every process and release.
    """
    return list(_rendezvous(slot, tuple(sorted(set(shard_ids)))))


@lru_cache(maxsize=2 * SLOTS)
def _rendezvous(slot: int, shard_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Kept, since routers ask for it with each client, and shards come and go seldom."""
    return tuple(sorted(shard_ids, key=lambda shard_id: (_weight(slot, shard_id), shard_id), reverse=True))


def bucket(peer: str) -> int:
    """The bucket of a connection. peer is the address of its client, `host:port`."""
    return zlib.crc32(peer.encode("utf-8", "replace")) % BUCKETS


def spread(shard_ids: Iterable[str]) -> tuple[str, ...]:
    """For each bucket of a hot stream the shard that takes it.

    A bucket goes to the first shard, in the bucket's order of preference, that has not got its even share of the
    buckets yet. So no shard takes more than its even share, and few buckets change shards when one comes or goes.
    shard_ids MUST NOT be empty.
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
    """The shards that have too many connections: more than factor times the mean, and more than SLACK above it.

    connections has the number of connections of each shard. Never all of the shards: at least one is not above the
    mean.
    """
    if not connections:
        return ()
    mean = sum(connections.values()) / len(connections)
    bound = max(mean * factor, mean + SLACK)
    return {shard_id for shard_id, count in connections.items() if count > bound}


def _weight(slot: int, shard_id: str) -> bytes:
    return hashlib.blake2b(f"{slot}/{shard_id}".encode(), digest_size=8).digest()
