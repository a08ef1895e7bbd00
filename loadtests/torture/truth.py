"""The truth: what PostgreSQL committed, and whether the log itself keeps its promises to the publishers.

It is read once, at the end: the ledger says which transactions committed, the history which id each event got.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from loadtests.torture.judge import Violation
from loadtests.torture.publishers import Transaction
from loadtests.torture.stream_log import Committed, StreamLog

_HISTORY = """
    select s.name, h.id, h.data, coalesce(h.type, 'message'), h.label
        from torture.history h join headrace.stream s using (stream_id)
        where not starts_with(s.name, 'presence:') and not starts_with(s.name, 'headrace:') order by s.name, h.id"""
_KEPT = """
    select s.name, coalesce(t.trimmed_to, 0), count(e.id), min(e.id), max(e.id), s.last_id
        from headrace.stream s
        left join headrace.trimmed t using (stream_id)
        left join headrace.kept_events() e using (stream_id)
        where not starts_with(s.name, 'presence:') and not starts_with(s.name, 'headrace:')
        group by s.name, t.trimmed_to, s.last_id"""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event as the table torture.history has it."""

    stream: str
    id: int
    data: str
    type: str
    label: str | None


def read(connection: psycopg.Connection[Any]) -> tuple[set[int], list[LoggedEvent], list[tuple[Any, ...]]]:
    """The nonces of committed transactions, the history in order, and the events that are kept of each stream."""
    nonces = {nonce for (nonce,) in connection.execute("select nonce from torture.ledger")}
    rows = [LoggedEvent(*row) for row in connection.execute(_HISTORY)]
    return nonces, rows, connection.execute(_KEPT).fetchall()


def backends(connection: psycopg.Connection[Any]) -> int:
    """How many connections the shards have open."""
    row = connection.execute("select count(*) from pg_stat_activity where application_name like 'headrace%'").fetchone()
    return int(row[0]) if row else 0


def check(
    transactions: Iterable[Transaction], nonces: set[int], rows: Sequence[LoggedEvent], kept: Iterable[tuple[Any, ...]]
) -> tuple[dict[str, StreamLog], list[Violation]]:
    """The log of each stream for the judge, and every promise that the log itself has broken.

    Events of a stream are numbered 1, 2, 3 …; each event of a committed transaction is there once, in the order of
    publishing, and no other event is; a transaction that COMMIT has confirmed stays; only the oldest are removed.
    """
    broken: list[Violation] = []

    def complain(text: str, stream: str = "", ids: tuple[int, ...] = ()) -> None:
        broken.append(Violation("log", "PostgreSQL", stream, ids, 0.0, text))

    events: dict[str, list[Committed]] = defaultdict(list)
    by_nonce = {transaction.nonce: transaction for transaction in transactions}
    for row in rows:
        nonce = int(row.data.partition(".")[0])
        transaction = by_nonce.get(nonce)
        of = events[row.stream]
        if row.id != len(of) + 1:
            complain(f"id {row.id} follows {len(of)}", row.stream, (row.id,))
        if nonce not in nonces or transaction is None:
            complain(f"an event of transaction {nonce}, which did not commit", row.stream, (row.id,))
            of.append(Committed(row.id, row.data, row.type, row.label))
        else:
            arrives = row.data.replace("\r\n", "\n").replace("\r", "\n")
            times = transaction.began, transaction.ended
            of.append(Committed(row.id, arrives, row.type, row.label, *times, nonce))
    where = {(stream, event.data): event.id for stream, log in events.items() for event in log}
    if len(where) != len(rows):
        complain(f"{len(rows) - len(where)} events are in the log twice")
    expected = 0
    for transaction in by_nonce.values():
        if transaction.outcome == "committed" and transaction.nonce not in nonces:
            complain(f"transaction {transaction.nonce} ({transaction.kind}) was confirmed, and is gone")
        if transaction.outcome == "rolled back" and transaction.nonce in nonces:
            complain(f"transaction {transaction.nonce} ({transaction.kind}) committed, though it had failed")
        if transaction.nonce not in nonces:
            continue
        last: dict[str, int] = {}
        for planned in transaction.events:
            expected += 1
            id_ = where.get((planned.stream, planned.data))
            if id_ is None:
                complain(f"{planned.data[:40]!r} of transaction {transaction.nonce} is missing", planned.stream)
            elif id_ <= last.get(planned.stream, 0):
                complain(f"transaction {transaction.nonce} is out of order", planned.stream, (id_,))
            else:
                last[planned.stream] = id_
    if expected != len(rows):
        complain(f"{expected} events were committed, the log has had {len(rows)}")
    logs = {stream: StreamLog(of) for stream, of in events.items()}
    for stream, trimmed_to, number, first, newest, head in kept:
        logs.setdefault(stream, StreamLog(())).trimmed_to = trimmed_to
        if head != len(events[stream]):
            complain(f"the head is {head}, of {len(events[stream])} events", stream)
        whole = number == 0 or (first == trimmed_to + 1 and newest == head)
        if not whole or trimmed_to + number != head:
            complain(f"kept are {number} events from {first} to {newest}, with a mark of {trimmed_to}", stream)
    return logs, broken
