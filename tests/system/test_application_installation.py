"""The wheel without extras, as an application installs it: with a database driver and a framework of its own choice.

These tests take packages from the index that pip is set up with, into environments that borrow nothing from this one.
"""

import json
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from tests.fixtures.wheel import environment, succeeds

SECRET = "a-secret-that-only-tests-use"

IMPORTS = """
import sys
import headrace, headrace.asyncio, headrace.jinja, headrace.errors, headrace.settings
from headrace import *

print(*sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)))
print(sign("room:1", user="ann", secrets=["a-secret-that-only-tests-use"]))
"""

DRIVERS = """
import asyncio, json, os, sys
import psycopg, psycopg2
import headrace, headrace.asyncio

url, said = os.environ["HEADRACE_DATABASE_URL"], {}
with psycopg.connect(url) as connection:
    headrace.publish(connection, "room:1", "psycopg")
    headrace.publish_many(connection, ["room:1", "room:2"], ["many", "many"])
with psycopg2.connect(url) as connection:
    headrace.publish(connection, "room:1", "psycopg2")
connection.close()

async def publish():
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await headrace.asyncio.publish(connection, "room:1", "asyncio")
        return await headrace.asyncio.members(connection, "room:1")

said["members"] = asyncio.run(publish())
with psycopg.connect(url) as connection, headrace.snapshot(connection) as page:
    said["snapshot"] = page.url("room:1", user="ann")
    said["element"] = page.element("room:2")
with psycopg.connect(url, autocommit=True) as connection:
    said["now"] = headrace.publish_now(connection, "room:1", "now")
    headrace.disconnect(connection, user="ann")
    said["head"] = headrace.head(connection, "room:1")
    said["watermark"] = headrace.watermark(connection, "room:1")
print(json.dumps(said))
"""

DJANGO = """
import os
import django
from django.conf import settings
from django.http import HttpResponse
from django.template import engines
from django.test import Client
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

url = conninfo_to_dict(os.environ["HEADRACE_DATABASE_URL"])
names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
database = {"ENGINE": "django.db.backends.postgresql", **{name: url[part] for name, part in names.items()}}
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["headrace.django"],
    DATABASES={"default": database},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
django.setup()

from django.db import transaction
from headrace.django import publish, snapshot

PAGE = "{% load headrace %}{% headrace_script %}{% headrace_stream 'notes' user='ann' %}"

@snapshot
def board(request):
    return HttpResponse(engines["django"].from_string(PAGE).render({}, request))

urlpatterns = [path("", board)]
with transaction.atomic():
    publish("notes", "django")
print(Client().get("/").content.decode())
"""

SQLALCHEMY = """
import os
import headrace, headrace.jinja
import jinja2
from headrace.sqlalchemy import snapshot
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

engine = create_engine(os.environ["HEADRACE_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
templates = jinja2.Environment(autoescape=True)
headrace.jinja.install(templates)
with Session(engine) as session, session.begin():
    headrace.publish(session, "rows", "sqlalchemy")
with Session(engine) as session, snapshot(session):
    print(templates.from_string("{{ headrace_script() }}{{ headrace_stream('rows', user='ann') }}").render())
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of programs of an environment with the wheel alone; each test adds what it is about."""
    return environment(tmp_path_factory.mktemp("application") / "venv", str(wheel))


def run(programs: Path, program: str, database_url: str = "") -> str:
    environ = {"HEADRACE_SECRET": SECRET, "HEADRACE_DATABASE_URL": database_url}
    return succeeds(programs / "python", "-P", "-W", "error", "-c", program, environ=environ, cwd=Path("/"))


def install(programs: Path, *requirements: str) -> set[str]:
    """Install what an application chooses; returns the names of all that is installed then."""
    pip = (programs / "python", "-m", "pip")
    if requirements:
        succeeds(*pip, "install", "--quiet", *requirements)
    return {package["name"].lower() for package in json.loads(succeeds(*pip, "list", "--format", "json"))}


def events(database_url: str, stream: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "select data from headrace.kept_events() where stream = %s order by id",
            (stream,),
        )
        return [data for (data,) in rows]


def test_the_wheel_alone_brings_itsdangerous(programs: Path) -> None:
    """`pip install headrace` brings no server and no driver, and what applications import needs no more."""
    assert install(programs) - {"pip", "setuptools"} == {"headrace", "itsdangerous"}
    imported, url = run(programs, IMPORTS).splitlines()
    assert set(imported.split()) <= {"__main__", "_distutils_hack", "headrace", "itsdangerous"}
    assert url.startswith("/streams/")


@pytest.mark.parametrize("command", [("headrace",), ("headrace", "up"), ("python", "-P", "-m", "headrace.shard")])
def test_what_needs_an_extra_says_so(command: tuple[str, ...], programs: Path) -> None:
    """The command and the shard name the extra in one sentence, without a traceback, and exit with 1."""
    program, *options = command
    ran = subprocess.run([programs / program, *options], capture_output=True, text=True, cwd="/", check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("headrace: ")
    assert "pip install 'headrace[server]'" in line
    assert "pip install 'headrace[embedded]'" in line


def test_it_publishes_signs_and_renders_with_the_application_s_driver(programs: Path, database_url: str) -> None:
    """With psycopg or psycopg2 an application publishes, asynchronously too, renders a snapshot and disconnects."""
    assert "gevent" not in install(programs, "psycopg[binary]", "psycopg2-binary")
    said = json.loads(run(programs, DRIVERS, database_url))
    assert events(database_url, "room:1") == ["psycopg", "many", "psycopg2", "asyncio", "now"]
    assert said["members"] == []
    assert parse_qs(urlsplit(said["snapshot"]).query)["since"] == ["4"]
    assert said["element"].startswith('<headrace-stream src="')
    assert (said["now"], said["head"], said["watermark"]) == (5, 5, "5")


def test_the_django_application_works(programs: Path, database_url: str) -> None:
    """With Django an atomic block publishes, and a page has the script and the element at its watermark."""
    assert not {"gevent", "gunicorn", "click"} & install(programs, "psycopg[binary]", "django")
    page = run(programs, DJANGO, database_url)
    assert events(database_url, "notes") == ["django"]
    assert '<script type="module"' in page
    assert "<headrace-stream " in page
    assert "since=1" in page


def test_sqlalchemy_and_jinja_work(programs: Path, database_url: str) -> None:
    """With SQLAlchemy and Jinja a session publishes, and a page has the script and the element at its watermark."""
    assert not {"gevent", "gunicorn", "click"} & install(programs, "psycopg[binary]", "sqlalchemy", "jinja2")
    page = run(programs, SQLALCHEMY, database_url)
    assert events(database_url, "rows") == ["sqlalchemy"]
    assert '<script type="module"' in page
    assert "since=1" in page
