"""The code of the README's chapters on who may do what, as it stands there."""

import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest

import headrace
from headrace.settings import Settings
from tests.fixtures.up import ENVIRON, Up
from tests.fixtures.waiting import DEADLINE_S, wait_until

README = (Path(__file__).parents[2] / "README.md").read_text()


def code(chapter: str, language: str = "") -> list[str]:
    """The blocks of one language in a chapter."""
    _, found, rest = README.partition(f"\n## {chapter}\n")
    assert found, f"the README has no chapter {chapter!r}"
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", rest.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    return [text for kind, text in blocks if kind == language]


class Site:
    """A running `up` with a connection to its database. Owned by the test."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.base = up.ready()
        self.settings = Settings.from_environ(up.environ)
        self.connection: psycopg.Connection[Any] = psycopg.connect(self.settings.database_url, autocommit=True)

    def sign(self, *streams: str, **options: Any) -> str:
        return headrace.sign(streams, secrets=self.settings.secret, **options)

    def shell(self, line: str) -> str:
        """What a line of a terminal prints, where `headrace` is this one and the server this `up`."""
        command = f'headrace() {{ {shlex.quote(sys.executable)} -P -m headrace.cli "$@"; }}\n{line}'
        command = command.replace("http://127.0.0.1:8000", self.base)
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.up.directory, env=ENVIRON, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, path: str) -> int:
        """What the server answers to a request, whose body is not read."""
        try:
            with urllib.request.urlopen(self.base + path, timeout=DEADLINE_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@pytest.fixture
def site(running_up: Up) -> Any:
    made = Site(running_up)
    yield made
    made.connection.close()


def test_disconnect(site: Site) -> None:
    """The Python, the SQL and the command each refuse an old token; a new one is good."""
    old = site.sign("room:1", user="ada")
    assert site.status(old) == 200
    site.connection.execute("create table account (name text, banned boolean)")
    (python,) = code("Disconnect and revoke", "python")
    exec(python, {"connection": site.connection, "headrace": headrace})
    wait_until(lambda: site.status(old) == 403, "the token is refused")
    _, _, text = README.partition("\n## Disconnect and revoke\n")
    statements = re.findall(r"select headrace\.disconnect\([^`]*\)", text.partition("\n## ")[0])
    commands = re.findall(r"headrace disconnect --user ada", text.partition("\n## ")[0])
    assert statements
    assert commands
    for run, text in ((site.connection.execute, statements[0]), (site.shell, commands[0])):
        new = site.sign("room:1", user="ada")
        assert site.status(new) == 200
        run(text)  # type: ignore[operator]
        wait_until(lambda path=new: site.status(path) == 403, "the next token is refused")  # type: ignore[misc]


def test_history(site: Site) -> None:
    """The line prints a page of the form that is shown."""
    (shown,) = code("History")
    line, example = shown.strip().split("\n")
    for number in range(1, 43):
        label = "nobody" if number == 19 else None
        text = {18: "hello", 20: "you"}.get(number, str(number))
        headrace.publish(site.connection, "room:past", text, visible_to=label)
    printed = json.loads(site.shell(line.removeprefix("$ ").replace("room:1", "room:past")))
    assert printed == json.loads(example.replace("room:1", "room:past"))


def test_publish(site: Site) -> None:
    """The token of the line of Python, used as the lines of the terminal show, is answered as shown."""
    (python,) = code("Publish over HTTP", "python")
    (shown,) = code("Publish over HTTP")
    names: dict[str, Any] = {"headrace": _Signing(site)}
    exec(python, names)
    pairs = re.findall(
        r"^\$ (.*)\n(.*)$", shown.replace("room:1", "room:http").replace("audit", "room:audit"), re.MULTILINE
    )
    assert len(pairs) == 2
    for line, answer in pairs:
        assert json.loads(site.shell(f"TOKEN={names['token']}; {line}")) == json.loads(answer)
    command = re.search(r"# or: (headrace publisher .*)", python)
    assert command
    assert site.shell(command.group(1)).strip()


class _Signing:
    """`headrace` in the application's own environment, which has the site's secret."""

    def __init__(self, site: Site) -> None:
        self._secrets = site.settings.secret

    def sign_publisher(self, streams: list[str], **options: Any) -> str:
        return headrace.sign_publisher(streams, secrets=self._secrets, **options)
