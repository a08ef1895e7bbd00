"""Notes that every window shows as soon as they are committed, with a trigger and Python's own web server.

The application does not publish: the trigger that schema.sql makes does, for every program that inserts a note.

Run it: python -m examples sql
"""

import os
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import psycopg

import headrace
from headrace.element import script

HERE = Path(__file__).parent
DATABASE_URL = os.environ["HEADRACE_DATABASE_URL"]
ORIGIN = os.environ.get("HEADRACE_PUBLIC_URL", "")


class Handler(BaseHTTPRequestHandler):
    """The page, and its form."""

    def do_GET(self) -> None:
        """The page; its stream goes on where it ends."""
        with psycopg.connect(DATABASE_URL) as connection, headrace.snapshot(connection) as page:
            notes = connection.execute("select text from sql_note order by id").fetchall()
            html = (
                (HERE / "board.html")
                .read_text()
                .format(
                    script=script(ORIGIN),
                    notes="".join(f"<li>{escape(text)}</li>" for (text,) in notes),
                    stream=page.element("sql:notes"),
                )
            )
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(html.encode())

    def do_POST(self) -> None:
        """Save a note."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        with psycopg.connect(DATABASE_URL) as connection:
            connection.execute("insert into sql_note (text) values (%s)", form["text"])
            if form["end"] == ["rollback"]:
                connection.rollback()
        self.send_response(303)
        self.send_header("Location", "/")
        self.end_headers()


if __name__ == "__main__":
    with psycopg.connect(DATABASE_URL) as connection:
        connection.execute((HERE / "schema.sql").read_bytes())
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "5000"))), Handler).serve_forever()
