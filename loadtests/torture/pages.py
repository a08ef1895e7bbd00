"""Pages: what the page of a client shows, and the cursor at which its stream begins, both of one snapshot."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from headrace import cursor
from loadtests.torture.system import System

TIMEOUT_S = 3
AT_A_TIME = 4
"""How many pages are rendered at a time: an application has so many connections to PostgreSQL."""


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """What a page shows: the transactions whose nonces are bits of shown. Its stream begins at since."""

    since: str
    shown: int


class Pages:
    """Renders the pages of the clients. rendered counts them, with_pending those that show pending events."""

    def __init__(self, system: System) -> None:
        self.rendered = 0
        self.with_pending = 0
        self._system = system
        self._places = threading.BoundedSemaphore(AT_A_TIME)

    def render(self, streams: Sequence[str]) -> RenderedPage | None:
        """A page of these streams as an application renders it; None while PostgreSQL does not answer."""
        try:
            with self._places:
                page = self._render(streams)
        except psycopg.Error:
            return None
        self.rendered += 1
        self.with_pending += "-" in page.since
        return page

    def _render(self, streams: Sequence[str]) -> RenderedPage:
        with self._system.connect("page", TIMEOUT_S) as connection, connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            connection.execute(f"set local statement_timeout to {TIMEOUT_S * 1000}")
            shown = 0
            for (nonce,) in connection.execute("select nonce from torture.ledger"):
                shown |= 1 << nonce
            found = connection.execute("select headrace.watermark(u) from unnest(%s::text[]) u", [list(streams)])
            return RenderedPage(cursor.join([watermark for (watermark,) in found]), shown)
