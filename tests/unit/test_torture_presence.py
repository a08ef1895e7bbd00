"""loadtests/torture/presence.py: the judge of presence judges rightly."""

import json

import pytest

from loadtests.torture.plan import PlannedClient
from loadtests.torture.presence import Told, connected, differences, judge, never_away


def client(name: str, user: str, *streams: str, kind: str = "steady") -> PlannedClient:
    return PlannedClient(name, kind, streams, "now", user, frozenset(), None)


def told(*events: tuple[str, str, int]) -> list[Told]:
    return [
        Told("presence:shared:0", id_, type_, json.dumps({"user": user, "count": count}))
        for id_, (type_, user, count) in enumerate(events, 1)
    ]


JOIN, LEAVE = ("join", "u1", 1), ("leave", "u1", 0)


def test_who_is_connected() -> None:
    """Users are on the shared streams of their clients, once each; clients that vanish do not count."""
    clients = [
        client("a", "u1", "shared:0", "private:1"),
        client("b", "u1", "shared:0", "shared:1"),
        client("c", "u2", "shared:0", kind="vanishing"),
    ]
    assert connected(clients) == {"shared:0": {"u1"}, "shared:1": {"u1"}}
    assert never_away([*clients, client("d", "u1", "x", kind="stalling")]) == {"u2"}


@pytest.mark.parametrize(
    "events",
    [
        [],
        [JOIN],
        [JOIN, ("join", "u2", 2), ("leave", "u1", 1), ("join", "u1", 2)],
    ],
)
def test_what_is_right_is_not_complained_of(events: list[tuple[str, str, int]]) -> None:
    """Joins and leaves in turn, with the right counts, that add up to the members."""
    left = {user for user in ("u1", "u2") if [kind for kind, one, _ in events if one == user][-1:] == ["join"]}
    assert judge(told(*events), {"shared:0": left} if left else {}) == []


@pytest.mark.parametrize(
    ("events", "listed", "says"),
    [
        ([JOIN, JOIN], {"u1"}, "a join of 'u1', who is present"),
        ([LEAVE], set(), "a leave of 'u1', who is away"),
        ([JOIN, ("join", "u2", 3)], {"u1", "u2"}, "says that they are 3, and they are 2"),
        ([JOIN], set(), "the events add up to"),
        ([("message", "u1", 0)], set(), "a message of 'u1'"),
    ],
)
def test_what_is_wrong_is_found(events: list[tuple[str, str, int]], listed: set[str], says: str) -> None:
    """Twice the same, out of nothing, miscounted, or other than what is listed."""
    assert says in str(judge(told(*events), {"shared:0": listed})[0])


def test_who_stays_does_not_leave() -> None:
    """A leave of somebody who was never away is a broken promise where nothing else could have caused it."""
    events = told(JOIN, LEAVE)
    assert judge(events, {}) == []
    assert "never away" in str(judge(events, {}, {"u1"})[0])


def test_who_is_missing_and_who_is_left_over() -> None:
    """Members and connected users are compared stream by stream."""
    found = [str(one) for one in differences({"a": {"u1"}, "b": {"u2"}}, {"a": {"u1", "u3"}}, 0.0)]
    assert ["u3 is a member, and not connected" in found[0], "u2 is connected, and no member" in found[1]] == [True] * 2
