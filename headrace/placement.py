"""Rendezvous hashing (highest random weight): which shards a slot prefers, in order, with nothing stored.

Everyone who knows the same shards computes the same order, and when a shard goes only its slots move, spread
over all the others.
"""

import hashlib
from collections.abc import Iterable


def rendezvous(slot: int, shard_ids: Iterable[str]) -> list[str]:
    """The shard ids in the slot's order of preference, the first being the one that should own it.

    The order depends on the set of ids alone, not on how it was given. The weight of a pair is the first 8
    bytes of the BLAKE2b of `<slot>/<id>`, so that it is the same in every process and release.
    """
    return sorted(set(shard_ids), key=lambda shard_id: (_weight(slot, shard_id), shard_id), reverse=True)


def _weight(slot: int, shard_id: str) -> bytes:
    return hashlib.blake2b(f"{slot}/{shard_id}".encode(), digest_size=8).digest()
