"""The load test's few connections to PostgreSQL, shared by its users: more would test PostgreSQL's limit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from gevent.lock import BoundedSemaphore

MOST_CONNECTIONS = 8


class Database:
    """A pool of connections. Shared by all greenlets of the process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free = BoundedSemaphore(MOST_CONNECTIONS)
        self._idle: list[psycopg.Connection[Any]] = []

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection, whose transaction is committed at the end of the block; closed after any error. Yields."""
        with self._free:
            connection = self._idle.pop() if self._idle else psycopg.connect(self._url, prepare_threshold=None)
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    def heads(self, streams: Sequence[str]) -> list[int]:
        """The newest id of each stream. Yields."""
        sql = "select headrace.head(name) from unnest(%s::text[]) with ordinality as s (name, number) order by number"
        with self.connection() as connection:
            return [head for (head,) in connection.execute(sql, [list(streams)])]
