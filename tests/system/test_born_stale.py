"""Pages over HTTP while transactions commit: what a page shows and what its stream brings is the database, no more.

Every kind of page is rendered by a real server, with a pause between its query and its element in which others commit.
The streams are appended to, so a loss and a repeat both show.
"""

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
from tests.fixtures.waiting import DEADLINE_S

RENDERS = 200
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


def head_last(url: str, room: int) -> str:
    """What must not be done: the head is read after the page's query, under READ COMMITTED."""
    with psycopg.connect(url) as connection:
        texts = [row[0] for row in connection.execute(SELECT.format(room).encode())]
        pause()
        src = headrace.sign(f"room:{room}", since=headrace.head(connection, f"room:{room}"))
        return listed(texts, f'<headrace-stream src="{src}">')


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
        apps |= {render.__name__: wsgi(render, url) for render in (plain, outer, head_last)}

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
    client: Client


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", SECRET)


def test_a_page_and_its_stream_are_the_database(start_stack: StartStack, database: Database, secret: None) -> None:
    """Of 200 renders of each kind under load none loses or repeats an append; only a page whose head is read last does.

    In a READ COMMITTED transaction that was open before, an append may come twice and none is lost.
    """
    stack = start_stack(1)
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
        return Page(kind, room, re.findall(r"<li>(.*?)</li>", body), stack.connect(src))

    kinds = ("plain", "flask", "django", "outer", "head_last")
    with serving(database.url) as address:
        writers = Writers(database.url)
        try:
            with ThreadPoolExecutor(4) as browsers:
                jobs = [browsers.submit(render, number, kind) for number in range(RENDERS) for kind in kinds]
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
    assert wrong.pop(("head_last", "lost")) > 0, "the commits were too few to be told apart"
    del wrong["outer", "repeated"]
    assert not +wrong
