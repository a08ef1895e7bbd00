"""The commands as they are typed: what they print, what they refuse, and with which status."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from headrace.cli import main
from headrace.node.sse_client import Parser
from tests.fixtures.proxy import Proxy
from tests.fixtures.up import OPS_TOKEN, Up

DEADLINE_S = 120


def headrace(*arguments: str, cwd: Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end, in a directory."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environ |= options.pop("environ", {})  # type: ignore[arg-type]
    return subprocess.run(
        [sys.executable, "-P", "-m", "headrace.cli", *arguments],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def read_events(url: str, count: int) -> list[tuple[str, str]]:
    """The first so many events of a stream, as (id, data)."""
    parser, found = Parser(), []
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
        while len(found) < count:
            more = response.read1()
            assert more, f"the stream ended after {found}"
            found += [(message.id, message.data) for message in parser.feed(more)]
    return found


def test_publish_url_and_curl(running_up: Up) -> None:
    """Published events reach whoever reads the printed URL; ids are printed, one per line of input."""
    here = running_up.directory
    assert headrace("publish", "cli:1", "hello", cwd=here).stdout == "1\n"
    assert headrace("publish", "cli:1", "-", cwd=here, input="two\n\n four \n").stdout == "2\n3\n4\n"
    path = headrace("url", "cli:1", "--since", "all", cwd=here).stdout.strip()
    expected = [("1", "hello"), ("2", "two"), ("3", ""), ("4", " four ")]
    assert read_events(running_up.ready() + path, 4) == expected


def test_commit_and_rollback_in_psql(running_up: Up) -> None:
    """What a transaction published arrives if it commits, and leaves no trace if it rolls back."""
    with psycopg.connect(running_up.environ["HEADRACE_DATABASE_URL"], autocommit=True) as connection:
        for end in ("rollback", "commit"):
            connection.execute("begin")
            connection.execute("select headrace.publish('cli:order', %s)", (end,))
            connection.execute(end)
    path = headrace("url", "cli:order", "--since", "0", cwd=running_up.directory).stdout.strip()
    assert read_events(running_up.ready() + path, 1) == [("1", "commit")]


def test_tail(running_up: Up) -> None:
    """Tail prints the events of a stream as they come, with id and type."""
    headrace("publish", "cli:tail", "kept", "--event", "note", cwd=running_up.directory)
    tail = subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace.cli", "tail", "cli:tail", "--since", "all"],
        cwd=running_up.directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    with tail:
        assert tail.stdout is not None
        assert tail.stdout.readline() == "1\tnote\tkept\n"
        headrace("publish", "cli:tail", "live", cwd=running_up.directory)
        assert tail.stdout.readline() == "2\tmessage\tlive\n"
        tail.terminate()


def test_tail_goes_on_when_its_connection_is_cut(running_up: Up) -> None:
    """A cut connection is told of on standard error, and no event is missing or printed twice."""
    here = running_up.directory
    proxy = Proxy("127.0.0.1", urlsplit(running_up.ready()).port or 80)
    environ = {"HEADRACE_PUBLIC_URL": f"http://127.0.0.1:{proxy.port}"}
    tail = subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace.cli", "tail", "cli:cut", "--since", "all"],
        cwd=here,
        env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with tail:
            assert tail.stdout is not None and tail.stderr is not None
            headrace("publish", "cli:cut", "before", cwd=here)
            assert tail.stdout.readline() == "1\tmessage\tbefore\n"
            proxy.cut()
            assert "connecting again in" in tail.stderr.readline()
            headrace("publish", "cli:cut", "meanwhile", cwd=here)
            proxy.resume()
            assert tail.stdout.readline() == "2\tmessage\tmeanwhile\n"
            tail.terminate()
    finally:
        tail.kill()
        proxy.close()


def test_up_says_where_the_operations_page_is(running_up: Up) -> None:
    """With a token `up` prints the page's address, and never the token."""
    assert f"operations page: {running_up.ready()}/ops" in running_up.text
    assert OPS_TOKEN not in running_up.text


def test_status(running_up: Up) -> None:
    """Status lists every shard, for people and for programs."""
    shards = json.loads(headrace("status", "--json", cwd=running_up.directory).stdout)["shards"]
    assert [shard["id"] for shard in shards] == ["n-0", "n-1"]
    assert {"id", "node", "pid", "state", "connections", "streams"} <= shards[0].keys()
    table = headrace("status", cwd=running_up.directory).stdout
    assert "n-0" in table
    assert "connections" in table


def test_migrate_again(running_up: Up) -> None:
    """Migrating what is migrated does nothing and says so."""
    done = headrace("migrate", cwd=running_up.directory)
    assert (done.returncode, done.stdout) == (0, "the schema is up to date\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["publish", "", "x"], "must not be empty"),
        (["publish", "x" * 513, "x"], "at most 512"),
        (["publish", "a", "x", "--event", "headrace:gap"], "reserved"),
        (["publish", "a", "x", "--event", "a\nb"], "line break"),
        (["publish", "a", "x", "--visible-to", ""], "0 bytes"),
        (["url", "a", "--since", "-1"], "cursor"),
        (["url", "a", "--since", "99999999999999999999"], "cursor"),
        (["url", "a", "b", "--since", "1"], "2 streams"),
        (["url", "a", "a"], "once"),
        (["url", "a", "--ttl", "0"], "ttl"),
        (["drain", "nobody"], "no shard 'nobody'"),
        (["move", "a", "nobody"], "no shard 'nobody'"),
        (["disconnect", "--user", ""], "must not be empty"),
    ],
)
def test_bad_input(running_up: Up, arguments: list[str], says: str) -> None:
    """Bad input is refused with status 2 and a sentence that says what is wrong."""
    done = headrace(*arguments, cwd=running_up.directory)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_too_large(running_up: Up) -> None:
    """A payload above the limit is refused with its size and the limit."""
    done = headrace("publish", "a", "-", cwd=running_up.directory, input="x" * (2**20 + 1))
    assert done.returncode == 2
    assert "1048577 bytes" in done.stderr


@pytest.mark.parametrize(
    ("environ", "status", "says"),
    [
        ({}, 2, "HEADRACE_DATABASE_URL is not set"),
        ({"HEADRACE_DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 1, "PostgreSQL cannot be reached"),
        ({"HEADRACE_DATABASE_URL": "sqlite:///x"}, 2, "HEADRACE_DATABASE_URL"),
        ({"HEADRACE_HEARTBEAT_INTERVAL_S": "soon"}, 2, "'soon'"),
        ({"HEADRACE_HEARTBEATS": "1"}, 2, "unknown setting HEADRACE_HEARTBEATS"),
    ],
)
def test_bad_environment(tmp_path: Path, environ: dict[str, str], status: int, says: str) -> None:
    """A missing, wrong or unknown setting, and a server that is away, are said in one sentence."""
    done = headrace("publish", "a", "x", cwd=tmp_path, environ=environ)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert says in done.stderr


def test_no_redis(tmp_path: Path) -> None:
    """Without Redis, status says so and what to do."""
    done = headrace("status", cwd=tmp_path, environ={"HEADRACE_REDIS_URL": "redis://127.0.0.1:1"})
    assert done.returncode == 1
    assert "HEADRACE_REDIS_URL" in done.stderr


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_has_an_example(tmp_path: Path, command: str) -> None:
    """Every command explains itself with an example."""
    assert f"headrace {command}" in headrace(command, "--help", cwd=tmp_path).stdout.split("Example:")[1]
