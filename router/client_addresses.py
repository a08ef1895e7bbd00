"""The address of a client: the one that connects or, behind proxies that are trusted, the one that they name."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ClientAddresses:
    """Tells clients' addresses. Keeps nothing between calls but which hosts are trusted.

    trusted are addresses and networks of proxies, and `unix` for whoever connects to a unix socket, which has no
    address. Anybody can send X-Forwarded-For: it is believed only from them, and only back to the first address that
    is not theirs. The header Forwarded (RFC 7239) is not read. Where a proxy names no address (`unknown`, or something
    of its own), the client counts as the proxy itself.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(word) for word in trusted if word != "unix"]
        self._unix = "unix" in trusted
        # The same few proxies, or clients that come back, connect again and again.
        self._trusts = lru_cache(maxsize=1024)(self._is_trusted)

    def client(self, peer: str, forwarded: str) -> str:
        """The client's address as `host:port`.

        The port stays that of the connection to us, which tells clients of one host apart.
        peer is who connects, forwarded the value of X-Forwarded-For.
        """
        host, _, port = peer.rpartition(":")
        if not self._trusts(host):
            return peer
        for word in reversed(forwarded.split(",")):
            text = word.strip().strip('"')
            if not text:
                continue
            address = _address(_without_port(text))
            if address is None:
                break
            host = str(address) if address.version == 4 else f"[{address}]"
            if not self._trusts(host):
                break
        return f"{host}:{port}"

    def _is_trusted(self, host: str) -> bool:
        if not host:
            return self._unix
        address = _address(host.strip("[]"))
        return address is not None and any(address in network for network in self._networks)


def _without_port(text: str) -> str:
    """`[::1]:80`, `[::1]` and `192.0.2.1:80`, as some proxies write, as the address alone."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        return host if bracket and (port == "" or (port[0] == ":" and port[1:].isdecimal())) else text
    host, colon, port = text.partition(":")
    return host if colon and port.isdecimal() else text


def _address(text: str) -> Address | None:
    try:
        # A zone is of use only to the machine that names it.
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # As a socket that takes both kinds names its IPv4 peers.
    return getattr(address, "ipv4_mapped", None) or address
