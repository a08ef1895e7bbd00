"""The plan of a run: everything that the seed decides before anything starts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtests.torture.predicates import EXPECTED

AUDIENCES: Final = ("blue", "green", "red")
PRESENCE_GRACE_S: Final = 3.0
PRESENCE_EXPIRY_S: Final = 5.0
_ODD_NAMES: Final = ("room:1", "Room:1", "room_1", "r\u00f6\u00f6m \u2028 \U0001f600", "a" * 512)
_KINDS: Final = {"steady": 40, "slow": 12, "stalling": 12, "vanishing": 12, "restless": 18, "late": 6}


@dataclass(frozen=True, slots=True)
class PlannedClient:
    """A subscriber of the run: its streams, where it begins, its user and audiences, and how it behaves (kind).

    start is `now`, `all`, a cursor, or `page`: where the page of the client ends.
    """

    name: str
    kind: str
    streams: tuple[str, ...]
    start: str
    user: str
    audiences: frozenset[str]
    ttl_s: float | None

    @property
    def presence(self) -> tuple[str, ...]:
        """The streams on which this client makes its user present."""
        return tuple(s for s in self.streams if s.startswith("shared:") and self.kind != "vanishing")


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    brief are streams whose events retention may remove, veiled those with labels of predicates that fail.
    """

    seed: int
    seconds: float
    shards: int
    publishers: int
    rate: float
    faults: tuple[str, ...]
    shared: tuple[str, ...]
    brief: tuple[str, ...]
    veiled: tuple[str, ...]
    clients: tuple[PlannedClient, ...]
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def private(self) -> tuple[str, ...]:
        """The streams with a single subscriber."""
        return tuple(dict.fromkeys(s for client in self.clients for s in client.streams if s.startswith("private:")))

    def random(self, purpose: str) -> random.Random:
        """A random generator for one purpose, so that more draws for one purpose do not change those for another."""
        return random.Random(f"{self.seed} {purpose}")


def draw(
    seed: int, *, seconds: float, subscribers: int, shards: int, publishers: int, rate: float, faults: Sequence[str]
) -> Plan:
    """The plan that follows from this seed."""
    chance = random.Random(f"{seed} plan")
    shared = (*(f"shared:{n}" for n in range(8)), *_ODD_NAMES)
    brief = tuple(f"brief:{n}" for n in range(3))
    veiled = tuple(f"veiled:{n}" for n in range(2))
    clients = tuple(_client(chance, n, shared, brief, veiled) for n in range(subscribers))
    settings = _settings(random.Random(f"{seed} settings"))
    return Plan(seed, seconds, shards, publishers, rate, tuple(faults), shared, brief, veiled, clients, settings)


def _client(
    chance: random.Random, number: int, shared: Sequence[str], brief: Sequence[str], veiled: Sequence[str]
) -> PlannedClient:
    toss = chance.random()
    streams: list[str]
    if toss < 0.35:
        streams = [chance.choice(shared)]
    elif toss < 0.6:
        streams = [f"private:{number}"]
    elif toss < 0.7:
        streams = [chance.choice(brief)]
    elif toss < 0.76:
        streams = [chance.choice(veiled)]
    else:
        pool = [*shared, *brief, f"private:{number}"]
        streams = chance.sample(pool, chance.randint(2, 5))
    start = chance.choices(("now", "all", "0", "page"), (45, 20, 10, 25))[0]
    if start == "0":
        start = ".".join("0" for _ in streams)
    kind = chance.choices(tuple(_KINDS), tuple(_KINDS.values()))[0]
    audiences = frozenset(label for label in AUDIENCES if chance.random() < 0.4)
    ttl_s = chance.uniform(4, 15) if chance.random() < 0.08 else None
    return PlannedClient(f"c{number}", kind, tuple(streams), start, f"u{number // 2}", audiences, ttl_s)


def _settings(chance: random.Random) -> dict[str, str]:
    """Settings of the tortured system: small buffers and pages, so that every path of the code is used."""
    drawn = {
        "SEND_BUFFER_BYTES": chance.choice(("4096", "4096", "16384", "65536", "0")),
        "RING_BYTES": chance.choice(("0", "3000", "30000", "1048576")),
        "RING_TOTAL_BYTES": chance.choice(("20000", "1000000", "134217728")),
        "PAGE_EVENTS": chance.choice(("2", "20", "500")),
        "PAGE_BYTES": chance.choice(("5000", "100000", "4194304")),
        "READERS": chance.choice(("1", "2", "3")),
        "HEARTBEAT_INTERVAL_S": chance.choice(("1", "5", "15")),
        # Rare sweeps mend nothing within a run: events that should have been read at once are then missing at its end.
        "SWEEP_INTERVAL_S": chance.choice(("1", "5", "600", "600")),
        "UNLISTEN_AFTER_S": chance.choice(("0", "1", "300")),
        "WRITE_DEADLINE_S": "8",
        "LOG_CLIENTS_PER_S": "1000000",  # each client's line tells which shard has it
        "READ_DEADLINE_S": chance.choice(("3", "10")),
        "PRUNE_INTERVAL_S": "0.4",
        "PRUNE_BATCH": chance.choice(("7", "2000")),
        "FILTERS": "loadtests.torture.predicates",
        "FILTER_DEADLINE_S": "1.5",
        "PRESENCE_INTERVAL_S": "0.2",
        "PRESENCE_GRACE_S": str(PRESENCE_GRACE_S),
        "PRESENCE_EXPIRY_S": str(PRESENCE_EXPIRY_S),
        # From 50 a second a shard is hardly ever in office; from 0 or 1, most of the time or now and then.
        "ANNOUNCE_ABOVE_PER_S": chance.choice(("0", "1", "1", "50")),
        # Nearly always on the bus, now and then, or never.
        "BUS_ABOVE_PER_S": chance.choice(("0.5", "0.5", "10", "100000")),
        "ANNOUNCE_INTERVAL_S": chance.choice(("0.001", "0.005", "0.05")),
    }
    assert set(EXPECTED) >= {"even", "slow", "raises", "late"}
    return {f"HEADRACE_{name}": value for name, value in drawn.items()}
