"""Pages: sessions that read what an application shows, and the watermark from which a client of the page follows."""

from typing import Any, Final

from psycopg import errors

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import Connection, parse_watermark
from loadtests.log_torture.notes import FINGERPRINT, Fingerprint, Page
from loadtests.log_torture.session_loop import SessionLoop
from loadtests.log_torture.streams import STREAMS

ROWS = f"""(select row({FINGERPRINT})::text from torture.publication where stream = %(stream)s)"""
VERSIONS = """(select jsonb_object_agg(name, version) from torture.chain where stream = %(stream)s)"""

SNAPSHOTS: Final = ("rows first", "watermark first")
"""Orders for which a page needs one snapshot for its statements."""
WAYS: Final = (*SNAPSHOTS, "one statement", "read committed", "plain head first")
"""In which order a page reads its parts, and under which isolation level."""


class PageReader(SessionLoop):
    """Makes pages in every order that is allowed, and pauses between the parts of one.

    standby: makes them at the standby, where a page is older, and as exact.
    """

    role = "page"
    standby = False

    @property
    def url(self) -> str:
        """The database of the pages."""
        return self.cluster.standby_url if self.standby else self.cluster.url

    def serve(self, connection: Connection) -> None:
        """Make one page after the other."""
        while not self.ending.is_set():
            try:
                self._make(connection, self.random.choice(WAYS), self.random.choice(STREAMS))
            except errors.SerializationFailure:  # the standby has replayed what removes rows that the page sees
                connection.execute("rollback")
                self.notes.count("pages refused by the standby")
            self.rest(0.02)

    def _make(self, connection: Connection, way: str, stream: str) -> None:
        era = self.cluster.era
        level = "repeatable read" if way in SNAPSHOTS else "read committed"
        if level == "repeatable read" and not self.standby and self.random.random() < 0.3:
            level = "serializable"
        connection.execute(f"begin isolation level {level}".encode())
        if way == "one statement":
            pause = f"pg_sleep({self.random.choice((0, 0.05))})"
            parts = f"select {ROWS}, {VERSIONS}, {pause}::text, {log_calls.WATERMARK}"
            shown, versions, _, text = self._row(connection, parts, stream)
        elif way == "rows first":
            shown, versions = self._row(connection, f"select {ROWS}, {VERSIONS}", stream)
            self.rest(0.1, 0.5)
            (text,) = self._row(connection, f"select {log_calls.WATERMARK}", stream)
        else:
            first = log_calls.HEAD if way == "plain head first" else log_calls.WATERMARK
            (text,) = self._row(connection, f"select {first}", stream)
            self.rest(0.1, 0.5)
            shown, versions = self._row(connection, f"select {ROWS}, {VERSIONS}", stream)
        connection.execute("commit")
        if era == self.cluster.era:
            numbers = Fingerprint(*map(int, shown.strip("()").split(",")))
            exact = way not in ("read committed", "plain head first")
            self.notes.page(Page(stream, era, parse_watermark(text), exact, numbers, versions or {}, way))
            self.notes.count("pages of the standby", self.standby)

    def _row(self, connection: Connection, question: str, stream: str) -> Any:
        row = connection.execute(question.encode(), {"stream": stream}).fetchone()
        assert row is not None
        return row
