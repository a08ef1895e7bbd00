"""Whose connections a shard counts, and what of that it still has to tell."""

from headrace.node.limit_keys import address_limit_key, user_limit_key
from headrace.shard.connection import Connection
from headrace.shard.connection_counts import MOST_ARRIVED, ConnectionCounts
from headrace.tokens import Context


def connection(number: int, user: str | None = "ada", peer: str = "192.0.2.1:7") -> Connection:
    return Connection(number, Context(user), f"r{number}", peer)


def test_users_and_addresses_are_counted() -> None:
    """Each connection counts for its user and its address until it is gone; without a user it counts for no user."""
    counts = ConnectionCounts(by_address=True)
    first, second, nobody = connection(1), connection(2, peer="[2001:db8::1]:7"), connection(3, user=None)
    for one in (first, second, nobody):
        counts.add(one)
    assert counts.count("user:ada") == 2
    assert counts.count("address:192.0.2.1") == 2
    assert counts.count("address:2001:db8::/64") == 1
    counts.remove(first)
    counts.remove(nobody)
    assert counts.count("user:ada") == 1
    assert counts.count("address:192.0.2.1") == 0


def test_changes_are_told_once_and_in_parts() -> None:
    """What has changed is taken once, so much at a time; after a loss everything is told again."""
    counts = ConnectionCounts()
    for number, user in enumerate("abc"):
        counts.add(connection(number, user))
    parts = [counts.take_changes(2) for _ in range(3)]
    assert [len(held) for held, _ in parts] == [2, 1, 0]
    assert [len(arrived) for _, arrived in parts] == [2, 1, 0]
    assert parts[0][0] | parts[1][0] == {f"user:{user}": 1 for user in "abc"}
    assert ("user:a", "r0") in parts[0][1]
    gone = connection(0, "a")
    counts.remove(gone)
    assert counts.take_changes(9) == ({"user:a": 0}, [])
    counts.forget()
    assert counts.take_changes(9) == ({"user:b": 1, "user:c": 1}, [])


def test_what_is_not_told_is_bounded() -> None:
    """While nobody takes the changes, arrivals do not pile up without end."""
    counts = ConnectionCounts()
    for number in range(MOST_ARRIVED + 5):
        counts.add(connection(number))
    assert len(counts.take_changes(10 * MOST_ARRIVED)[1]) == MOST_ARRIVED


def test_holders_are_short_and_differ() -> None:
    """A long name, or one with odd characters, stands as its digest; different names never meet."""
    names = ["ada", "x" * 500, "x" * 501, "a\nb", "\ud800", "user#ada", ""]
    holders = {user_limit_key(name) for name in names}
    assert len(holders) == len(names)
    assert max(map(len, holders)) < 200
    assert all(holder.isprintable() for holder in holders)
    assert len(address_limit_key("x" * 5000 + ":1")) < 200
