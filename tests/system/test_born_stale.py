"""Pages over HTTP while transactions commit: what a page shows and what its stream brings is the database, no more.

Every kind of page is rendered by a real server, with a pause between its query and its element in which others commit.
The streams are appended to, so a loss and a repeat both show. A shard numbers the events, so that many are pending for
a few milliseconds after their commit, and pages are rendered with such events.
"""

import asyncio
import html
import random
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest
from django.core.wsgi import get_wsgi_application
from django.db import connection as django_connection
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import override_settings
from django.urls import path
from flask import Flask, render_template_string
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from werkzeug.serving import make_server

import headrace
import headrace.django
import headrace.jinja
import headrace.sqlalchemy
from tests.fixtures.client import Client, wait_all
from tests.fixtures.django import databases
from tests.fixtures.router import SECRET
from tests.fixtures.shard import Database
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import DEADLINE_S, wait_until

RENDERS = 100
ROOMS = 4
WRITERS = 4
PAUSE_S = 0.01
SELECT = "select text from public.note where room = {} order by id"

Environ = dict[str, Any]
Wsgi = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def pause() -> None:
    """What takes time between a page's query and its element."""
    time.sleep(random.random() * PAUSE_S)


def listed(texts: list[str], element: str) -> str:
    return "".join(f"<li>{html.escape(each)}</li>" for each in texts) + element


def plain(url: str, room: int) -> str:
    """The plain helper, on a connection of psycopg."""
    with psycopg.connect(url) as connection, headrace.snapshot(connection) as page:
        texts = [row[0] for row in connection.execute(SELECT.format(room).encode())]
        pause()
        return listed(texts, page.element(f"room:{room}"))


def outer(url: str, room: int) -> str:
    """The same in a READ COMMITTED transaction that was open before."""
    with psycopg.connect(url) as connection:
        connection.execute("select 1")
        with headrace.snapshot(connection) as page:
            pause()
            texts = [row[0] for row in connection.execute(SELECT.format(room).encode())]
            pause()
            return listed(texts, page.element(f"room:{room}"))


def statement(url: str, room: int) -> str:
    """The watermark and the page's rows in one statement of SQL, as a program in any language reads them."""
    with psycopg.connect(url) as connection:
        sql = f"select headrace.watermark('room:{room}'), array({SELECT.format(room)})"
        since, texts = connection.execute(sql.encode()).fetchone() or ("", [])
        return listed(texts, f'<headrace-stream src="{headrace.sign(f"room:{room}", since=since)}">')


def asynchronous(url: str, room: int) -> str:
    """An asynchronous session of SQLAlchemy, as FastAPI has it."""

    async def show() -> str:
        engine = create_async_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        async with AsyncSession(engine) as session, headrace.sqlalchemy.async_snapshot(session) as page:
            texts = (await session.scalars(text(SELECT.format(room)))).all()
            await asyncio.to_thread(pause)
            body = listed(list(texts), await page.element(f"room:{room}"))
        await engine.dispose()
        return body

    return asyncio.run(show())


def head_alone(url: str, room: int) -> str:
    """What a page of headrace 0.2 does: it begins at the head, although it shows events that are pending."""
    with psycopg.connect(url) as connection, headrace.snapshot(connection) as page:
        texts = [row[0] for row in connection.execute(SELECT.format(room).encode())]
        src = headrace.sign(f"room:{room}", since=page.head(f"room:{room}"))
        return listed(texts, f'<headrace-stream src="{src}">')


def watermark_last(url: str, room: int) -> str:
    """What must not be done: the watermark is read after the page's query, under READ COMMITTED."""
    with psycopg.connect(url) as connection:
        texts = [row[0] for row in connection.execute(SELECT.format(room).encode())]
        pause()
        src = headrace.sign(f"room:{room}", since=headrace.watermark(connection, f"room:{room}"))
        return listed(texts, f'<headrace-stream src="{src}">')


ALONE = (plain, outer, statement, asynchronous, head_alone, watermark_last)
"""The pages that need no framework for requests."""

KINDS = (*(render.__name__ for render in ALONE), "flask", "django")


def wsgi(render: Callable[[str, int], str], url: str) -> Wsgi:
    def respond(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        body = render(url, int(environ["PATH_INFO"].rpartition("/")[2])).encode()
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [body]

    return respond


@contextmanager
def flask(url: str) -> Iterator[Wsgi]:
    """Flask, a session of SQLAlchemy, and the function in the template."""
    app = Flask(__name__)
    headrace.jinja.install(app.jinja_env)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))

    @app.get("/flask/<int:room>")
    def show(room: int) -> str:
        with Session(engine) as session, headrace.sqlalchemy.snapshot(session):
            texts = session.scalars(text(SELECT.format(room))).all()
            pause()
            source = "{% for t in texts %}<li>{{ t }}</li>{% endfor %}{{ headrace_stream('room:%d' % room) }}"
            return render_template_string(source, texts=texts, room=room)

    yield app.wsgi_app
    engine.dispose()


@contextmanager
def django(url: str) -> Iterator[Wsgi]:
    """Django, its decorator and its tag."""

    @headrace.django.snapshot
    def show(request: HttpRequest, room: int) -> HttpResponse:
        with django_connection.cursor() as cursor:
            cursor.execute(SELECT.format(room))
            texts = [row[0] for row in cursor.fetchall()]
        pause()
        source = "{% load headrace %}{% for t in texts %}<li>{{ t }}</li>{% endfor %}{% headrace_stream stream %}"
        template = engines["django"].from_string(source)
        return HttpResponse(template.render({"texts": texts, "stream": f"room:{room}"}))

    with databases(default=url), override_settings(ROOT_URLCONF=(path("django/<int:room>", show),)):
        yield get_wsgi_application()


@contextmanager
def serving(url: str) -> Iterator[str]:
    """All kinds of pages, each below its own path; yields the server's address."""
    with flask(url) as flask_app, django(url) as django_app:
        apps = {"flask": flask_app, "django": django_app}
        apps |= {render.__name__: wsgi(render, url) for render in ALONE}

        def dispatch(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            return apps[environ["PATH_INFO"].split("/")[1]](environ, start_response)

        server = make_server("127.0.0.1", 0, dispatch, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class Writers:
    """Threads that append to the rooms, each in transactions of its own, until they are told to stop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(WRITERS)
        self._running = [self._pool.submit(self._write, number) for number in range(WRITERS)]

    def _write(self, writer: int) -> None:
        with psycopg.connect(self._url) as connection:
            number = 0
            while not self._stop.is_set():
                number += 1
                append(connection, random.randrange(ROOMS), f"{writer}-{number}")
                time.sleep(random.random() * 2 * PAUSE_S)
                connection.rollback() if number % 7 == 0 else connection.commit()

    def stop(self) -> None:
        self._stop.set()
        for each in self._running:
            each.result()
        self._pool.shutdown()


def append(connection: psycopg.Connection[Any], room: int, text: str) -> None:
    connection.execute("insert into public.note (room, text) values (%s, %s)", [room, text])
    headrace.publish(connection, f"room:{room}", text)


class Page(NamedTuple):
    """A page that was rendered, and the connection of its stream."""

    kind: str
    room: int
    texts: list[str]
    since: str
    client: Client


def watermark(database: Database) -> str:
    """Those of all rooms, joined."""
    return ".".join(headrace.watermark(database.connection, f"room:{room}") for room in range(ROOMS))


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", SECRET)


def test_a_page_and_its_stream_are_the_database(start_stack: StartStack, database: Database, secret: None) -> None:
    """Of 100 renders of each kind under load, many of them with pending events, none loses or repeats an append.

    A page whose watermark is read last loses some. A page that begins at the head loses none, but pending ones come
    twice. In a READ COMMITTED transaction that was open before, an append may come twice and none is lost.
    """
    stack = start_stack(1, announce_above_per_s=1, announce_interval_s=0.02)
    with psycopg.connect(database.url) as connection:
        connection.execute("create table public.note (id bigserial, room int, text text)")
        for room in range(ROOMS):
            append(connection, room, "first")

    def render(number: int, kind: str) -> Page:
        room = number % ROOMS
        with urllib.request.urlopen(f"{address}/{kind}/{room}", timeout=DEADLINE_S) as response:
            body = response.read().decode()
        pause()
        (src,) = re.findall(r'<headrace-stream src="([^"]*)"', body)
        since = src.partition("since=")[2]
        return Page(kind, room, re.findall(r"<li>(.*?)</li>", body), since, stack.connect(src))

    with serving(database.url) as address:
        writers = Writers(database.url)
        try:
            wait_until(lambda: "-" in watermark(database), "a shard that numbers: an event that is pending")
            with ThreadPoolExecutor(4) as browsers:
                jobs = [browsers.submit(render, number, kind) for number in range(RENDERS) for kind in KINDS]
                pages = [job.result() for job in jobs]
        finally:
            writers.stop()
    with psycopg.connect(database.url) as connection:
        for room in range(ROOMS):
            append(connection, room, "last")
        connection.commit()
        rows = connection.execute("select room, text from public.note").fetchall()
    wait_all([page.client for page in pages], lambda client: "last" in client.data, "the last append")
    wrong = Counter[tuple[str, str]]()
    for page in pages:
        told = Counter([*page.texts, *page.client.data])
        there = Counter(text for room, text in rows if room == page.room)
        wrong[page.kind, "lost"] += bool(there - told)
        wrong[page.kind, "repeated"] += bool(told - there)
    assert len(rows) > RENDERS
    pending = Counter(page.kind for page in pages if "-" in page.since)
    assert all(pending[kind] > 0 for kind in KINDS if kind != "head_alone"), f"pages with pending events: {pending}"
    assert wrong.pop(("watermark_last", "lost")) > 0, "the commits were too few to be told apart"
    assert wrong.pop(("head_alone", "repeated")) > 0, "no event was pending when a page was made"
    del wrong["outer", "repeated"]
    assert not +wrong
