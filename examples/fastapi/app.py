"""Notes that every window shows as soon as they are committed, with FastAPI and an asynchronous session of SQLAlchemy.

Run it: python -m examples fastapi
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import headrace.asyncio
import headrace.jinja
from headrace.sqlalchemy import async_snapshot

engine = create_async_engine(os.environ["HEADRACE_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1))
templates = Jinja2Templates(Path(__file__).parent / "templates")
headrace.jinja.install(templates.env)


class Base(DeclarativeBase):
    """Where SQLAlchemy keeps the tables."""


class Note(Base):
    """A line of text."""

    __tablename__ = "fastapi_note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class NewNote(BaseModel):
    """What the page posts."""

    text: str
    end: Literal["commit", "rollback"]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Make the table before the first request."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def show(request: Request) -> Response:
    """The page; its stream goes on where it ends."""
    async with AsyncSession(engine) as session, async_snapshot(session) as page:
        notes = (await session.scalars(select(Note).order_by(Note.id))).all()
        stream = await page.element("fastapi:notes")
        return templates.TemplateResponse(request, "board.html", {"notes": notes, "stream": stream})


@app.post("/notes", status_code=204)
async def add(new: NewNote) -> None:
    """Save a note and publish it in one transaction."""
    async with AsyncSession(engine) as session:
        note = Note(text=new.text)
        session.add(note)
        await headrace.asyncio.publish(session, "fastapi:notes", note.text)
        await (session.rollback() if new.end == "rollback" else session.commit())


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "5000")))
