"""Reads the truth from a database when all clients have ended: the log, as shards read it, and the tables."""

from typing import Any

from loadtests.log_torture import log_calls
from loadtests.log_torture.commit_order import Link
from loadtests.log_torture.judge import Publication, Truth
from loadtests.log_torture.log_calls import Connection, StreamRead
from loadtests.log_torture.streams import all_streams


def read_truth(connection: Connection) -> Truth:
    """All that the database holds. Nobody else is at work any more."""
    names = all_streams()
    publications = {
        row[0]: Publication(*row)
        for row in _rows(connection, "select token, stream, transaction, chain, version, id from torture.publication")
    }
    return Truth(
        log={name: _read_whole(connection, name) for name in names},
        watermarks={
            name: log_calls.parse_watermark(row[0])
            for name in names
            if (row := connection.execute(f"select {log_calls.WATERMARK}".encode(), {"stream": name}).fetchone())
        },
        publications=publications,
        links=[Link(*row) for row in _rows(connection, "select chain, version, transaction, step from torture.link")],
        chains=dict(_rows(connection, "select name, version from torture.chain")),
    )


def _read_whole(connection: Connection, stream: str) -> StreamRead:
    whole: StreamRead | None = None
    while True:
        after = whole.events[-1].id if whole is not None and whole.events else 0
        page = log_calls.read(connection, {stream: after})[stream]
        if whole is None:
            whole = page
        whole.events += page.events if page is not whole else []
        if not page.events:
            return whole


def _rows(connection: Connection, question: str) -> list[Any]:
    return connection.execute(question.encode()).fetchall()
