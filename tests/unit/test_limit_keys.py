"""Whom a connection counts for."""

import pytest

from headrace.node.limit_keys import address_limit_key


@pytest.mark.parametrize(
    ("peer", "holder"),
    [
        ("192.0.2.7:4711", "address:192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]:4711", "address:2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff::]:1", "address:2001:db8:1:2::/64"),
        ("[2001:db8:1:3::1]:1", "address:2001:db8:1:3::/64"),
        ("[fe80::1%eth0]:1", "address:fe80::/64"),
        ("[::ffff:192.0.2.7]:1", "address:192.0.2.7"),
        (":", "address:"),
        ("unknown:1", "address:unknown"),
    ],
)
def test_an_address_is_what_one_subscriber_has(peer: str, holder: str) -> None:
    """An IPv4 address by itself, an IPv6 address with its whole /64 network."""
    assert address_limit_key(peer) == holder
