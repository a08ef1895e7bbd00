"""Whom a connection counts for, where connections are limited: its user, and the address that it comes from.

A holder is text, `user:<name>` or `address:<host>`, the same for routers, which let clients in, and shards, which count
them. A long or unprintable name is replaced by its digest, so that a holder is short.
"""

import hashlib
import ipaddress
from typing import Final

_LONGEST_NAME: Final = 128


def user_limit_key(user: str) -> str:
    """The holder of a user's connections."""
    if len(user) > _LONGEST_NAME or not user.isprintable():
        return f"user#{hashlib.sha256(repr(user).encode()).hexdigest()}"
    return f"user:{user}"


def address_limit_key(peer: str) -> str:
    """The holder of the connections from the address of a peer, which is `host:port`."""
    return f"address:{network(peer.rpartition(':')[0])[:_LONGEST_NAME]}"


def network(host: str) -> str:
    """What a host counts as: its IPv4 address or, since a subscriber has a whole one, the /64 network of its IPv6
    address.

    host may be in brackets; text that is no address counts as itself.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def limits_of(user: str | None, peer: str, user_limit: int, address_limit: int) -> dict[str, int]:
    """For each holder of a connection that is limited, its limit; 0 is none."""
    limits = {}
    if user is not None and user_limit:
        limits[user_limit_key(user)] = user_limit
    if address_limit:
        limits[address_limit_key(peer)] = address_limit
    return limits
