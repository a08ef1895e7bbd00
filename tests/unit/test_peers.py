"""Whose connection it is, behind proxies and without."""

import pytest

from router.peers import Peers


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ((), "10.0.0.1:5", "203.0.113.9", "10.0.0.1:5"),
        (("10.0.0.0/8",), "10.0.0.1:5", "203.0.113.9", "203.0.113.9:5"),
        (("10.0.0.0/8",), "192.0.2.1:5", "203.0.113.9", "192.0.2.1:5"),
        # Whatever stands before the first address that no trusted proxy has written may be a lie.
        (("10.0.0.0/8",), "10.0.0.1:5", "198.51.100.7, 203.0.113.9, 10.0.0.2", "203.0.113.9:5"),
        (("10.0.0.0/8",), "10.0.0.1:5", "203.0.113.9, no address", "10.0.0.1:5"),
        (("10.0.0.0/8",), "10.0.0.1:5", "10.0.0.3, 10.0.0.2", "10.0.0.3:5"),
        (("10.0.0.1",), "10.0.0.1:5", "", "10.0.0.1:5"),
        (("10.0.0.1",), "[::ffff:10.0.0.1]:5", "::ffff:203.0.113.9", "203.0.113.9:5"),
        (("::1",), "[::1]:5", "2001:db8::7", "[2001:db8::7]:5"),
        (("unix",), ":", "203.0.113.9", "203.0.113.9:"),
        (("10.0.0.1",), ":", "203.0.113.9", ":"),
    ],
)
def test_the_client_behind_proxies(trusted: tuple[str, ...], peer: str, forwarded: str, client: str) -> None:
    """X-Forwarded-For is believed from trusted proxies only, and back to the first address that is not theirs."""
    assert Peers(trusted).client(peer, forwarded) == client
