"""Whose connection it is: the address that connects or, behind proxies that are trusted, the one they name."""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peers:
    """Tells clients' addresses. Keeps nothing between calls.

    trusted are addresses and networks of proxies, and `unix` for whoever connects to a unix socket, which has no
    address. Anybody can send X-Forwarded-For: it is believed only from them, and only back to the first address that
    is not theirs.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(word) for word in trusted if word != "unix"]
        self._unix = "unix" in trusted

    def client(self, peer: str, forwarded: str) -> str:
        """The client's address as `host:port`.

        The port stays that of the connection to us, which tells clients of one host apart.
        peer is who connects, forwarded the value of X-Forwarded-For.
        """
        host, _, port = peer.rpartition(":")
        if not self._trusts(host):
            return peer
        for word in reversed(forwarded.split(",")):
            address = _address(word.strip())
            if address is None:
                break
            host = str(address) if address.version == 4 else f"[{address}]"
            if not self._trusts(host):
                break
        return f"{host}:{port}"

    def _trusts(self, host: str) -> bool:
        if not host:
            return self._unix
        address = _address(host.strip("[]"))
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # As a socket that takes both kinds names its IPv4 peers.
    return getattr(address, "ipv4_mapped", None) or address
