"""loadtests/ against a running `headrace up`, and the connection that its users have."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.embedded.postgres import OWNER, EmbeddedPostgres
from headrace.node.sse_client import Message
from loadtests.payload import Writer
from loadtests.stream_connection import CursorNotice, EndedError, RefusedError, StreamConnection
from tests.fixtures.postgres import TEMPLATE, execute
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database
from tests.fixtures.waiting import DEADLINE_S, wait_until

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


@pytest.fixture(scope="module")
def log(postgres: EmbeddedPostgres) -> Iterator[Database]:
    execute(postgres, f"create database loaded template {TEMPLATE} owner {OWNER}")
    made = Database(postgres.owned_url("loaded"))
    yield made
    made.close()


class Up:
    """A running `headrace up`. Owned by the test thread; it dies with it."""

    def __init__(self, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.output = directory / "up.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace.cli", "up", "--port", "0", "--node", "n"],
                cwd=directory,
                env=ENVIRON | environ,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    def address(self) -> "re.Match[str] | None":
        assert self.process.poll() is None, self.output.read_text()
        return re.search(r"^headrace ready (http://\S+)\n", self.output.read_text(), re.MULTILINE)

    def live(self) -> int:
        """The clients that its shards have now, and deliver to."""
        url = f"{self.address()[1]}/metrics"  # type: ignore[index]
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
            numbers = re.findall(r'^headrace_connections\{.*state="live".*\} (\S+)$', response.read().decode(), re.M)
        return sum(map(int, map(float, numbers)))

    def load(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start locust."""
        return subprocess.Popen(
            [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", *arguments],
            cwd=self.directory,
            env=ENVIRON,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )


def outcome(locust: "subprocess.Popen[str]") -> tuple[int, int, str]:
    """Wait for locust; returns its exit status, how many events it has checked, and all that it said."""
    with locust:
        try:
            said, _ = locust.communicate(timeout=2 * DEADLINE_S)
        finally:
            locust.kill()
    match = re.search(r"^checked (\d+) events", said, re.MULTILINE)
    assert match is not None, said
    return locust.returncode, int(match[1]), said


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, log: Database, shared_redis: RedisServer) -> Iterator[Up]:
    """A node on the tests' servers."""
    made = Up(
        tmp_path_factory.mktemp("up"),
        HEADRACE_DATABASE_URL=log.url,
        HEADRACE_REDIS_URL=shared_redis.url,
        HEADRACE_CANARY_INTERVAL_S="0",  # live connections are the users' alone
        HEADRACE_HANDOFF_DEADLINE_S="10",
    )
    try:
        wait_until(made.address, "headrace is ready")
        yield made
    finally:
        made.process.terminate()
        made.process.wait(DEADLINE_S)
        print(made.output.read_text())  # noqa: T201  # pytest shows it with a failure


def test_all_scenarios_at_once_lose_nothing(up: Up) -> None:
    """Fan-out, small streams, storms, slow consumers and chat together: all events are checked and found well."""
    kinds = ("FanOut", "ManyStreams", "Storm", "Slow", "Chat")
    for time in ("6s", "30s"):
        status, checked, said = outcome(up.load("-u", "50", "-r", "50", "-t", time))
        assert status == 0, said
        idle = [kind for kind in kinds if not re.search(rf"^EVENT +{kind} +[1-9]", said, re.MULTILINE)]
        if checked > 500 and not idle:
            return
    raise AssertionError(f"only {checked} events were checked, none by {idle}: {said}")


def test_an_event_that_does_not_arrive_is_a_failure(up: Up, log: Database) -> None:
    """If an event between others does not arrive, here since it is for nobody, locust says so and exits non-zero."""
    wait_until(lambda: not up.live(), "nobody is connected")
    locust = up.load("-u", "2", "-r", "2", "-t", "240s", "FanOut")
    try:
        wait_until(lambda: up.live() == 2, "both users are connected")
        text = Writer().texts(["load:fanout"])[0]
        log.publish("load:fanout", text)
        log.publish("load:fanout", "hidden", visible_to="nobody")
        log.publish("load:fanout", "seen")
    finally:
        locust.terminate()
    status, checked, said = outcome(locust)
    assert (status, checked) == (1, 2), said
    assert "FanOut hole" in said


def test_to_have_checked_nothing_is_a_failure(up: Up) -> None:
    """A run in which nobody publishes proves nothing, and says so by its exit status."""
    status, checked, said = outcome(up.load("-u", "2", "-r", "2", "-t", "1s", "FanOut"))
    assert (status, checked) == (1, 0), said


@pytest.fixture
def answered(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers one request with the bytes that the test is parametrised with."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):
                client, _ = listening.accept()
                with client:
                    client.recv(65536)
                    client.sendall(request.param)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(DEADLINE_S)


def arrived(connection: StreamConnection) -> Iterator[Message | CursorNotice]:
    with suppress(EndedError):
        while True:
            yield from connection.read(5)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    "answered", [OK + b"retry: 5\n\nid: 7\n\nid: 9\ndata: a\n\nid: 11\n\nid: 12\nda"], indirect=True
)
def test_where_a_stream_begins_is_seen(answered: str) -> None:
    """The cursor before the first event is not lost between other frames, nor is a frame that was cut off taken."""
    connection = StreamConnection(answered, "/")
    assert list(arrived(connection)) == [CursorNotice("7"), Message("9", "message", "a"), CursorNotice("11")]
    connection.close()


@pytest.mark.parametrize(
    "answered", [b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\n\r\nfull\n"], indirect=True
)
def test_a_refusal_says_when_to_come_back(answered: str) -> None:
    """An answer without a stream is an error that has the status and the time to wait."""
    with pytest.raises(RefusedError, match="503 full") as refusal:
        StreamConnection(answered, "/")
    assert refusal.value.retry_after_s == 3
