"""Proxies of the environment, and whom headrace's own programs ask without them."""

import http.server
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from headrace.node import http_client
from tests.fixtures.waiting import DEADLINE_S


class Handler(http.server.BaseHTTPRequestHandler):
    """Says whether it was asked as a proxy is: with a whole URL."""

    def do_GET(self) -> None:
        body = b"proxy" if urlsplit(self.path).netloc else b"itself"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that the environment names as its proxy for everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join(DEADLINE_S)


def test_a_nodes_own_programs_go_past_proxies(port: int) -> None:
    """The canary, the doctor and status ask a node itself, whatever the environment says."""
    with http_client.open_direct(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE_S) as response:
        assert response.read() == b"itself"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_goes_past_them_on_its_own_machine(port: int, host: str) -> None:
    """`tail` beside a router reaches it without a proxy."""
    with http_client.open_as_client(f"http://{host}:{port}/", timeout=DEADLINE_S) as response:
        assert response.read() == b"itself"


def test_a_client_goes_through_them_to_other_hosts(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tail` far away from a router goes the way that every other client there goes, whatever was asked before."""
    before = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    monkeypatch.setattr(urllib.request, "_opener", before)  # as what was asked without proxies leaves it
    with http_client.open_as_client("http://192.0.2.7/", timeout=DEADLINE_S) as response:
        assert response.read() == b"proxy"
