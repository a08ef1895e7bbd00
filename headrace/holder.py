"""Whom a connection counts for, where connections are limited: its user, and the address that it comes from.

A holder is text, `user:<name>` or `address:<host>`, the same for routers, which let clients in, and shards, which count
them. A long or unprintable name is replaced by its digest, so that a holder is short.
"""

import hashlib
from typing import Final

_LONGEST_NAME: Final = 128


def user_holder(user: str) -> str:
    """The holder of a user's connections."""
    if len(user) > _LONGEST_NAME or not user.isprintable():
        return f"user#{hashlib.sha256(repr(user).encode()).hexdigest()}"
    return f"user:{user}"


def address_holder(peer: str) -> str:
    """The holder of the connections from the address of a peer, which is `host:port`."""
    return f"address:{peer.rpartition(':')[0][:_LONGEST_NAME]}"


def limits_of(user: str | None, peer: str, user_limit: int, address_limit: int) -> dict[str, int]:
    """For each holder of a connection that is limited, its limit; 0 is none."""
    limits = {}
    if user is not None and user_limit:
        limits[user_holder(user)] = user_limit
    if address_limit:
        limits[address_holder(peer)] = address_limit
    return limits
