"""Pages: sessions that read what an application shows, and the watermark from which a client of the page follows."""

from typing import Any

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import Connection, parse_watermark
from loadtests.log_torture.notes import FINGERPRINT, Fingerprint, Page
from loadtests.log_torture.session_loop import SessionLoop
from loadtests.log_torture.streams import STREAMS

ROWS = f"""(select row({FINGERPRINT})::text from torture.publication where stream = %(stream)s)"""
VERSIONS = """(select jsonb_object_agg(name, version) from torture.chain where stream = %(stream)s)"""


class PageReader(SessionLoop):
    """Makes pages in every order that is allowed, and pauses between the parts of one."""

    role = "page"

    def serve(self, connection: Connection) -> None:
        """Make one page after the other."""
        ways = ("rows first", "watermark first", "one statement", "read committed", "plain head first")
        while not self.ending.is_set():
            way, stream = self.random.choice(ways), self.random.choice(STREAMS)
            era = self.cluster.era
            snapshot = way in ("rows first", "watermark first")
            level = (
                self.random.choice(("repeatable read", "repeatable read", "serializable"))
                if snapshot
                else "read committed"
            )
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
                watermark = parse_watermark(text)
                exact = way not in ("read committed", "plain head first")
                numbers = Fingerprint(*map(int, shown.strip("()").split(",")))
                self.notes.page(Page(stream, era, watermark, exact, numbers, versions or {}, way))
            self.rest(0.02)

    def _row(self, connection: Connection, question: str, stream: str) -> Any:
        row = connection.execute(question.encode(), {"stream": stream}).fetchone()
        assert row is not None
        return row
