"""Where a node serves."""

import socket
from pathlib import Path

import pytest

from headrace.embedded.free_port import ROUTERS
from headrace.errors import UsageError
from headrace.up.address import Address
from tests.fixtures.ports import free_port


def test_taken_port_is_refused() -> None:
    """A port at which another program listens is named, with what to do."""
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UsageError, match=rf"port {port} .* --port"):
            Address.claim("127.0.0.1", port)
    assert Address.claim("127.0.0.1", port) == Address("127.0.0.1", port)


def test_port_zero_is_chosen() -> None:
    """Port 0 becomes one that is free, and that the kernel gives to nobody who asks it for any."""
    address = Address.claim("127.0.0.1", 0)
    assert address.port in ROUTERS
    assert max(ROUTERS) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert not address.is_ready()


def test_foreign_host_is_refused() -> None:
    """A host that is no address of this machine is the user's to correct."""
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(UsageError, match=r"192|--host"):
            Address.claim(host, 0)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, local: bool) -> None:
    """What is for everybody is told from what is for this machine alone."""
    assert Address(host, 80).is_local is local


@pytest.mark.parametrize(
    ("host", "bind", "url"),
    [
        ("127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:80"),
        ("0.0.0.0", "0.0.0.0:80", "http://127.0.0.1:80"),
        ("::", "[::]:80", "http://[::1]:80"),
        ("::1", "[::1]:80", "http://[::1]:80"),
    ],
)
def test_written_forms(host: str, bind: str, url: str) -> None:
    """The listening side and the browser's side write an address each in its own way."""
    address = Address(host, 80)
    assert (address.bind, address.url) == (bind, url)
