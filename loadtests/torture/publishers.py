"""Publishers: transactions of every kind, each with a row of its own in a ledger that tells whether it committed.

    torture.ledger (nonce)                                a transaction that has committed
    torture.history (stream, id, data, type, label)       every event that was ever committed, kept beyond retention

An event's data begins with `<nonce>.<number>`, so that no two are alike.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import psycopg

import headrace
from loadtests.torture.plan import AUDIENCES, Plan
from loadtests.torture.system import System

SCHEMA: Final = """
    create schema torture;
    create table torture.ledger (nonce bigint primary key);
    create table torture.history (stream_id int, id bigint, data text, type text, label text);
    create function torture.copy() returns trigger language plpgsql as $$
    begin
        insert into torture.history
            select new.stream_id, new.id, coalesce(new.data, p.data), coalesce(new.type, p.type),
                    coalesce(new.visible_to, p.visible_to)
                from (select) as always left join headrace.payload p on p.xid = new.xid and p.seq = new.seq;
        return null;
    end $$;
    create trigger torture_copy after insert on headrace.event for each row execute function torture.copy();
    select headrace.set_retention('*', interval '1 day');
"""
_KINDS: Final = {
    "plain": 22, "now": 12, "several": 24, "long": 6, "rollback": 10, "savepoints": 8, "batch": 6, "immediate": 4,
    "repeatable": 4, "async": 4,
}  # fmt: skip
_TYPES: Final = ("message", "message", "message", "note", "\u00fcn\u00ef type")
# Errors that the faults cause: outages, a full disk, a lack of slots. (40001 belongs to REPEATABLE READ, and 40P01 is
# documented for SET CONSTRAINTS.)
_EXPECTED_ERRORS: Final = re.compile("57P0.|08...|53100|53300")
_BREAK: Final = re.compile("\r\n|\r")


@dataclass(slots=True)
class Planned:
    """An event that a transaction publishes. data is the text as it must arrive."""

    stream: str
    data: str
    type: str
    label: str | None


@dataclass(slots=True)
class Transaction:
    """One transaction: its events, and what its publisher knows of its end. Times are monotonic, of COMMIT."""

    nonce: int
    kind: str
    events: list[Planned] = field(default_factory=list)
    outcome: str = "open"  # then "committed", "rolled back" or "unknown"
    began: float | None = None
    ended: float | None = None


class Publishing:
    """All publishers and their transactions.

    `extreme` are labels of failing predicates that a fault has switched on.
    """

    def __init__(self, plan: Plan, system: System) -> None:
        self.transactions: list[Transaction] = []
        self.errors: Counter[str] = Counter()
        self.complaints: list[tuple[float, str]] = []
        self.published = 0
        self.stopping = False
        self.extreme: tuple[str, ...] = ()
        self._plan = plan
        self._system = system
        self._nonces = count(1)

    def prepare(self) -> None:
        """Make the ledger, and the trigger that copies events. MUST be called once, after the migration."""
        with self._system.connect() as connection:
            connection.execute(SCHEMA)

    def run(self, number: int) -> None:
        """Publish until `stopping`; the last transaction is finished."""
        chance = self._plan.random(f"publisher {number}")
        connection: psycopg.Connection[Any] | None = None
        while not self.stopping:
            transaction = Transaction(next(self._nonces), chance.choices(tuple(_KINDS), tuple(_KINDS.values()))[0])
            try:
                if connection is None:
                    connection = self._system.connect(f"publisher {number}")
                    connection.autocommit = False
                self.transactions.append(transaction)
                self._publish(connection, transaction, chance)
            except psycopg.Error as error:
                self._failed(transaction, error)
                if connection is not None:
                    connection.close()
                    connection = None
                time.sleep(chance.uniform(0.05, 0.3))
            # The mean transaction has about four events.
            time.sleep(chance.expovariate(self._plan.rate / 4.0 / self._plan.publishers))
        if connection is not None:
            connection.close()

    def say_farewell(self) -> None:
        """Publish one last event to every stream."""
        transaction = Transaction(next(self._nonces), "farewell")
        self.transactions.append(transaction)
        plan, chance = self._plan, self._plan.random("farewell")
        make = _Maker(plan, transaction, chance, ())
        made = [make.event(stream) for stream in (*plan.shared, *plan.private, *plan.brief, *plan.veiled)]
        transaction.events = [event for event, _ in made]
        with self._system.connect("farewell") as connection:
            connection.autocommit = False
            connection.execute("insert into torture.ledger values (%s)", [transaction.nonce])
            headrace.publish_many(
                connection,
                [event.stream for event, _ in made],
                [data for _, data in made],
                events=[event.type for event, _ in made],
            )
            transaction.began = time.monotonic()
            connection.commit()
        transaction.ended, transaction.outcome = time.monotonic(), "committed"
        self.published += len(made)

    def _publish(self, connection: psycopg.Connection[Any], transaction: Transaction, chance: random.Random) -> None:
        kind = transaction.kind
        make = _Maker(self._plan, transaction, chance, self.extreme)
        if kind == "repeatable":
            connection.execute("set transaction isolation level repeatable read")
        if kind == "async":
            connection.execute("set local synchronous_commit to off")
        connection.execute("insert into torture.ledger values (%s)", [transaction.nonce])
        if kind == "now":
            event, data = make.event()
            headrace.publish_now(connection, event.stream, data, event=event.type, visible_to=event.label)
            transaction.events.append(event)
        elif kind == "batch":
            only = make.stream() if chance.random() < 0.5 else None
            made = [make.event(only) for _ in range(chance.choice((5, 20, 60, 200)))]
            transaction.events += [event for event, _ in made]
            headrace.publish_many(
                connection,
                [event.stream for event, _ in made],
                [data for _, data in made],
                events=[event.type for event, _ in made],
                visible_to=[event.label for event, _ in made],
            )
        elif kind == "savepoints":
            for _ in range(chance.randint(2, 5)):
                connection.execute("savepoint s")
                kept = [self._one(connection, make) for _ in range(chance.randint(1, 2))]
                if chance.random() < 0.5:
                    connection.execute("rollback to savepoint s")
                else:
                    transaction.events += kept
        else:
            for _ in range(1 if kind in ("plain", "async") else chance.randint(2, 8)):
                transaction.events.append(self._one(connection, make))
                if kind == "long":
                    time.sleep(chance.uniform(0.05, 0.9))
        if kind == "immediate":
            connection.execute("set constraints all immediate")
        if kind == "rollback":
            connection.rollback()
            transaction.outcome = "rolled back"
            return
        transaction.began = time.monotonic()
        connection.commit()
        transaction.ended = time.monotonic()
        transaction.outcome = "committed"
        self.published += len(transaction.events)

    def _one(self, connection: psycopg.Connection[Any], make: "_Maker") -> Planned:
        event, data = make.event()
        headrace.publish(connection, event.stream, data, event=event.type, visible_to=event.label)
        return event

    def _failed(self, transaction: Transaction, error: psycopg.Error) -> None:
        state = error.sqlstate or "connection"
        self.errors[state] += 1
        # Only a COMMIT whose answer was lost leaves the outcome open, and the ledger knows it.
        lost = state == "connection" or state.startswith(("57", "08"))
        transaction.outcome = "unknown" if transaction.began is not None and lost else "rolled back"
        if state == "connection" or _EXPECTED_ERRORS.fullmatch(state):
            return
        if state == "40001" and transaction.kind == "repeatable":
            return
        self.complaints.append((time.monotonic(), f"a {transaction.kind} transaction failed: {state} {error}"))


class _Maker:
    """Makes the events of one transaction."""

    def __init__(self, plan: Plan, transaction: Transaction, chance: random.Random, extreme: tuple[str, ...]) -> None:
        self._plan = plan
        self._transaction = transaction
        self._chance = chance
        self._extreme = extreme
        self._numbers = count()

    def stream(self) -> str:
        """Any stream, most often a shared one."""
        plan, chance = self._plan, self._chance
        pools: tuple[tuple[str, ...], ...] = (plan.shared, plan.private, plan.brief, plan.veiled)
        return chance.choice(chance.choices(pools, (60, 25 if plan.private else 0, 12, 3))[0])

    def event(self, stream: str | None = None) -> tuple[Planned, str]:
        """An event as it must arrive, and its data as it is published."""
        chance = self._chance
        stream = stream or self.stream()
        data = f"{self._transaction.nonce}.{next(self._numbers)}{chance.choice(_BODIES)(chance)}"
        label = chance.choice(AUDIENCES) if chance.random() < 0.2 else None
        if chance.random() < 0.04:
            label = "even"
        if stream in self._plan.veiled and self._extreme and chance.random() < 0.6:
            label = chance.choice(self._extreme)
        return Planned(stream, _BREAK.sub("\n", data), chance.choice(_TYPES), label), data


_BODIES: Final[tuple[Callable[[random.Random], str], ...]] = (
    *[lambda chance: ""] * 6,
    *[lambda chance: " " + "x" * chance.randint(10, 400)] * 12,
    lambda chance: "\n\n two\n lines \n",
    lambda chance: "\r\ncarriage\rreturns",
    lambda chance: "\u2028\u2029\u0085 \U0001f30a \u00e9 id: 5\ndata: forged\n\nevent: headrace:gap",
    lambda chance: "y" * 9000,
    lambda chance: "z" * (chance.randint(10_000, 150_000) if chance.random() < 0.2 else 3000),
)
