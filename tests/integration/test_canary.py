"""What the canary makes of a front door that is played by the test."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import gevent
import pytest

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.settings import Settings
from headrace.shard.numbers.canary import Canary
from headrace.stream import CANARY_PREFIX, SLOTS
from tests.fixtures.shard import Database
from tests.fixtures.waiting import DEADLINE_S, wait_until

OURS = DirectorySnapshot(slots={"n": dict.fromkeys(range(SLOTS), "n-0")})


class Door(BaseHTTPRequestHandler):
    """Tells the client its cursor and ends; before that the shard loses all its slots."""

    canary: Canary

    def do_GET(self) -> None:
        self.canary.placed(DirectorySnapshot())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"id: 0\n\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def door() -> Iterator[HTTPServer]:
    """A server in a thread of its own."""
    server = HTTPServer(("127.0.0.1", 0), Door)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server
    server.shutdown()
    serving.join(DEADLINE_S)
    server.server_close()


def test_slots_that_go_during_a_probe_end_nobody(database: Database, door: HTTPServer) -> None:
    """A probe goes on with the stream that it began with, though the shard has none of its own by now."""
    url = f"http://127.0.0.1:{door.server_port}"
    settings = Settings(node="n", secret=("s" * 32,), database_url=database.url, canary_interval_s=0.01, canary_url=url)
    Door.canary = canary = Canary(settings, "n-0", lambda: True)
    canary.placed(OURS)
    (greenlet,) = canary.start()
    try:
        wait_until(lambda: gevent.sleep(0.001) or sum(canary.results.counts.values()), "a probe has ended")
        assert canary.results.counts["no event"] == 1
        assert database.head(f"{CANARY_PREFIX}n-0:0") == 1
        assert not greenlet.dead
    finally:
        canary.stop()
