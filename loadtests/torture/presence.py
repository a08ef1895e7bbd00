"""Judges presence: the members that PostgreSQL lists, and the joins and leaves that it published, against the clients.

Clients that follow a `shared:` stream are present on it, two to a user; except those that vanish, since the server
takes them for connected until its deadlines. What is owed:

    a user joins, leaves, joins … in turn, and each event has the count that follows from all before it
    a visitor (`loadtests/torture/visitors.py`), who comes once, leaves
    after a quiet time as long as the expiry and the grace, the members are exactly the users who are connected
    without faults, no user leaves who comes back within the grace
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from headrace.stream import PRESENCE_PREFIX
from loadtests.torture.judge import Violation
from loadtests.torture.plan import PRESENCE_EXPIRY_S, PRESENCE_GRACE_S, PlannedClient

WITHIN_S: Final = PRESENCE_EXPIRY_S + PRESENCE_GRACE_S + 2
"""The two seconds are for the way to PostgreSQL, and for pauses of this machine."""
_TOLD: Final = """
    select s.name, h.id, h.type, h.data from torture.history h join headrace.stream s using (stream_id)
        where starts_with(s.name, %s) order by s.name, h.id"""


@dataclass(frozen=True, slots=True)
class Told:
    """An event of a companion stream."""

    stream: str
    id: int
    type: str
    data: str


def connected(clients: Iterable[PlannedClient]) -> dict[str, set[str]]:
    """The users on each stream while all these clients are connected."""
    users: dict[str, set[str]] = defaultdict(set)
    for client in clients:
        for stream in client.presence:
            users[stream].add(client.user)
    return dict(users)


def listed(connection: psycopg.Connection[Any], streams: Iterable[str]) -> dict[str, set[str]]:
    """The members of each of these streams; a stream without members is left out."""
    rows = connection.execute(
        "select s, m.member from unnest(%s::text[]) s cross join headrace.members(s) m", [list(streams)]
    )
    users: dict[str, set[str]] = defaultdict(set)
    for stream, member in rows:
        users[stream].add(member)
    return dict(users)


def settle(
    connection: psycopg.Connection[Any], streams: Iterable[str], expected: Mapping[str, set[str]]
) -> tuple[float, list[Violation]]:
    """Wait, at most WITHIN_S, until exactly these are members; returns the seconds it took, and the differences."""
    since = time.monotonic()
    while (found := listed(connection, streams)) != expected and time.monotonic() - since < WITHIN_S:
        time.sleep(0.1)
    took_s = round(time.monotonic() - since, 1)
    return took_s, list(differences(expected, found, time.monotonic()))


def differences(expected: Mapping[str, set[str]], found: Mapping[str, set[str]], at: float) -> Iterable[Violation]:
    """The users who are missing on a stream, or still listed, as violations."""
    for stream in sorted({*expected, *found}):
        wanted, there = expected.get(stream, set()), found.get(stream, set())
        if missing := wanted - there:
            yield _violation(stream, (), at, f"{_some(missing)} connected, and no member")
        if left := there - wanted:
            yield _violation(stream, (), at, f"{_some(left)} a member, and not connected")


def told(connection: psycopg.Connection[Any]) -> list[Told]:
    """All events of companion streams, in order."""
    return [Told(*row) for row in connection.execute(_TOLD, [PRESENCE_PREFIX])]


def never_away(clients: Iterable[PlannedClient]) -> set[str]:
    """The users who never leave in a run without faults: their clients notice at once if the server closes them."""
    late = {client.user for client in clients if client.kind in ("stalling", "slow")}
    return {client.user for client in clients} - late


def judge(events: Iterable[Told], found: Mapping[str, set[str]], staying: Collection[str] = ()) -> list[Violation]:
    """Every promise that the events break, among themselves or against the members that PostgreSQL lists at the end.

    staying are users who were never away for longer than the grace.
    """
    broken: list[Violation] = []
    users: dict[str, set[str]] = defaultdict(set)
    for event in events:
        stream = event.stream.removeprefix(PRESENCE_PREFIX)
        present = users[stream]
        value = json.loads(event.data)
        user, count = value["user"], value["count"]
        if event.type not in ("join", "leave") or (user in present) != (event.type == "leave"):
            state = "present" if user in present else "away"
            broken.append(_violation(stream, (event.id,), 0.0, f"a {event.type} of {user!r}, who is {state}"))
        (present.add if event.type == "join" else present.discard)(user)
        if count != len(present):
            broken.append(
                _violation(stream, (event.id,), 0.0, f"says that they are {count}, and they are {len(present)}")
            )
        if user in staying and event.type == "leave":
            broken.append(_violation(stream, (event.id,), 0.0, f"{user!r} has left, who was never away for long"))
    for stream, present in users.items():
        if present != found.get(stream, set()):
            text = f"add up to {sorted(present)}, listed are {sorted(found.get(stream, set()))}"
            broken.append(_violation(stream, (), 0.0, f"the events {text}"))
    return broken


def _violation(stream: str, ids: tuple[int, ...], at: float, text: str) -> Violation:
    return Violation("presence", "PostgreSQL", stream, ids, at, text)


def _some(users: set[str]) -> str:
    shown = ", ".join(sorted(users)[:8])
    return f"{shown}{', …' if len(users) > 8 else ''} {'is' if len(users) == 1 else 'are'}"
