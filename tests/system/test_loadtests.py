"""loadtests/ against a running `headrace up`, and the connection that its users have."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.sse import Message
from loadtests.connection import Connection, EndedError, Place, RefusedError
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import wait_until

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


@pytest.fixture
def up(tmp_path: Path, database_url: str, redis_server: RedisServer) -> Iterator[str]:
    """The address of a running `headrace up` in tmp_path, on the tests' servers."""
    output = tmp_path / "up.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli", "up", "--port", "0", "--node", "n"],
            cwd=tmp_path,
            env=ENVIRON | {"HEADRACE_DATABASE_URL": database_url, "HEADRACE_REDIS_URL": redis_server.url},
            stdout=log,
            stderr=log,
        )

    def ready() -> "re.Match[str] | None":
        assert process.poll() is None, output.read_text()
        return re.search(r"^headrace ready (http://\S+)$", output.read_text(), re.MULTILINE)

    try:
        match = wait_until(ready, "headrace is ready", 30)
        assert match is not None
        yield match.group(1)
    finally:
        process.terminate()
        process.wait(30)
        print(output.read_text())  # noqa: T201  # pytest shows it with a failure


def locust(directory: Path, address: str, *arguments: str) -> tuple[int, int, str]:
    """Run locust; returns its exit status, how many events it has checked, and all that it said."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
            *("--host", address, *arguments),
        ],
        cwd=directory,
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = ended.stdout + ended.stderr
    match = re.search(r"^checked (\d+) events", said, re.MULTILINE)
    assert match is not None, said
    return ended.returncode, int(match.group(1)), said


def test_all_scenarios_at_once_lose_nothing(up: str, tmp_path: Path) -> None:
    """Fan-out, small streams, storms, slow consumers and chat together: all events are checked and found well."""
    status, checked, said = locust(tmp_path, up, "-u", "50", "-r", "50", "-t", "6s")
    assert (status, checked > 500) == (0, True), said
    for kind in ("FanOut", "ManyStreams", "Storm", "Slow", "Chat"):
        assert re.search(rf"^EVENT +{kind} +[1-9]", said, re.MULTILINE), f"nothing was checked by {kind}: {said}"


def test_to_have_checked_nothing_is_a_failure(up: str, tmp_path: Path) -> None:
    """A run in which nobody publishes proves nothing, and says so by its exit status."""
    status, checked, said = locust(tmp_path, up, "-u", "2", "-r", "2", "-t", "1s", "FanOut")
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
        yield "http://127.0.0.1:{}".format(listening.getsockname()[1])
        thread.join(5)


def arrived(connection: Connection) -> Iterator[Message | Place]:
    with suppress(EndedError):
        while True:
            yield from connection.read(5)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    "answered", [OK + b"retry: 5\n\nid: 7\n\nid: 9\ndata: a\n\nid: 11\n\nid: 12\nda"], indirect=True
)
def test_where_a_stream_begins_is_seen(answered: str) -> None:
    """The cursor before the first event is not lost between other frames, nor is a frame that was cut off taken."""
    connection = Connection(answered, "/")
    assert list(arrived(connection)) == [Place("7"), Message("9", "message", "a"), Place("11")]
    connection.close()


@pytest.mark.parametrize(
    "answered", [b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\n\r\nfull\n"], indirect=True
)
def test_a_refusal_says_when_to_come_back(answered: str) -> None:
    """An answer without a stream is an error that has the status and the time to wait."""
    with pytest.raises(RefusedError, match="503 full") as refusal:
        Connection(answered, "/")
    assert refusal.value.retry_after_s == 3
