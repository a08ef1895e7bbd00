"""Pages: what the page of a client shows, and the cursor at which its stream begins, both of one snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from headrace import cursor
from loadtests.torture.system import System

_TIMEOUT_S = 3


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """What a page shows: the transactions whose nonces are bits of shown. Its stream begins at since."""

    since: str
    shown: int


def render(system: System, streams: Sequence[str]) -> RenderedPage | None:
    """A page of these streams as an application renders it; None while PostgreSQL does not answer."""
    try:
        with system.connect("page", _TIMEOUT_S) as connection, connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            connection.execute(f"set local statement_timeout to {_TIMEOUT_S * 1000}")
            shown = 0
            for (nonce,) in connection.execute("select nonce from torture.ledger"):
                shown |= 1 << nonce
            found = connection.execute("select headrace.watermark(u) from unnest(%s::text[]) u", [list(streams)])
            return RenderedPage(cursor.join([watermark for (watermark,) in found]), shown)
    except psycopg.Error:
        return None
