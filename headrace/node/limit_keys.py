"""Limit keys: the texts under which connections are counted and limited, one for the user and one for the address.

A limit key is `user:<name>` or `address:<host>`. Routers, which admit clients, and shards, which count connections,
make the same keys. A long or unprintable name is replaced by its digest, so that every key is short.
"""

import hashlib
import ipaddress
from typing import Final

_LONGEST_NAME: Final = 128


def user_limit_key(user: str) -> str:
    """The limit key of a user."""
    if len(user) > _LONGEST_NAME or not user.isprintable():
        return f"user#{hashlib.sha256(repr(user).encode()).hexdigest()}"
    return f"user:{user}"


def address_limit_key(peer: str) -> str:
    """The limit key of a client's address. peer is the address as `host:port`."""
    return f"address:{network(peer.rpartition(':')[0])[:_LONGEST_NAME]}"


def network(host: str) -> str:
    """The network that a host counts for: its IPv4 address itself, or the /64 network of its IPv6 address.

    A single customer of a provider has a whole /64 network. host may be in brackets; text that is no address is
    returned as it is.
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
    """The limit keys of a connection that are limited, each with its limit.

    user_limit and address_limit are how many connections a user, and an address, may have; 0 means no limit.
    """
    limits = {}
    if user is not None and user_limit:
        limits[user_limit_key(user)] = user_limit
    if address_limit:
        limits[address_limit_key(peer)] = address_limit
    return limits
