"""What shards tell each other over the bus: it arrives as it was told, and nobody else can tell anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shard.bus.bulletin import CHANNELS, Bulletin, News, NewsPage, Pulse, Seal, Wants

SECRETS = ["a secret of sixteen", "an older secret here"]
ROWS = [(1, 9, 2, 1, [3, 4], ["", "staff"], [2, 1], False, "0000000A", 9, 71, "order", "données 🌊\n", "staff", 1500)]
BULLETINS = [
    News("s", 7, "0000000A", [("a b", 4)], [NewsPage("room:1", 8, ROWS)]),
    News("s", 1, None, [], [NewsPage("empty", 3, [(1, 3, 0, 0, None, None, None, False, None, *[None] * 6)])]),
    Pulse("s", 12.5, [*range(CHANNELS)]),
    Wants("n-1", ["room:1", "é"]),
]


def seal(*secrets: str, identity: str = "one") -> Seal:
    return Seal(secrets or SECRETS[:1], lambda: identity)


@pytest.mark.parametrize("bulletin", BULLETINS)
def test_what_is_told_arrives(bulletin: Bulletin) -> None:
    """Sealed and opened, each kind of message is what it was."""
    opened = seal().open("c", seal().close("c", bulletin))
    assert opened == bulletin


def test_a_former_secret_opens() -> None:
    """While the secret is changed, shards with the new one and the old one hear each other's messages."""
    assert seal(*SECRETS).open("c", seal(SECRETS[1]).close("c", BULLETINS[0])) is not None
    assert seal(SECRETS[1]).open("c", seal(*SECRETS).close("c", BULLETINS[0])) is None


def test_another_channel_secret_or_deployment_does_not_open() -> None:
    """A message holds for one channel of one deployment, and is made with its secret."""
    message = seal().close("c", BULLETINS[0])
    assert seal().open("d", message) is None
    assert seal(SECRETS[1]).open("c", message) is None
    assert seal(identity="two").open("c", message) is None
    assert Seal(SECRETS, lambda: "").open("c", message) is None
    assert Seal([], lambda: "one").open("c", message) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    """No byte of a message can be changed, and none left out at its end."""
    message = bytearray(seal().close("c", BULLETINS[0]))
    message[place % len(message)] ^= change
    assert seal().open("c", bytes(message)) is None
    assert seal().open("c", bytes(message[: place % len(message)])) is None
