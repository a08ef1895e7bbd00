"""Notes that every window shows as soon as they are committed, with Flask and SQLAlchemy.

Run it: python -m examples flask
"""

import os

from flask import Flask, redirect, render_template, request
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from werkzeug.wrappers import Response

import headrace
import headrace.jinja
from headrace.sqlalchemy import snapshot

engine = create_engine(os.environ["HEADRACE_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1))
app = Flask(__name__)
headrace.jinja.install(app.jinja_env)


class Base(DeclarativeBase):
    """Where SQLAlchemy keeps the tables."""


class Note(Base):
    """A line of text."""

    __tablename__ = "flask_note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@app.get("/")
def show() -> str:
    """The page; its stream goes on where it ends."""
    with Session(engine) as session, snapshot(session):
        notes = session.scalars(select(Note).order_by(Note.id))
        return render_template("board.html", notes=notes)


@app.post("/")
def add() -> Response:
    """Save a note and publish it in one transaction."""
    with Session(engine) as session:
        note = Note(text=request.form["text"])
        session.add(note)
        headrace.publish(session, "flask:notes", note.text)
        session.rollback() if request.form["end"] == "rollback" else session.commit()
    return redirect("/")


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    app.run(port=int(os.environ.get("PORT", "5000")), threaded=True)
