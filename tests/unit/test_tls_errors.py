"""headrace/node/tls_errors.py, in all that goes through the front door as a client would"""

import ssl
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import gevent
import pytest

from headrace.doctor import front
from headrace.errors import UnavailableError
from headrace.node import sse_client, tls_errors
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.settings import Settings
from headrace.shard.numbers.canary import Canary
from headrace.stream import SLOTS
from tests.fixtures.reverse_proxy import make_certificate
from tests.fixtures.waiting import DEADLINE_S, wait_until

SECRET = "s" * 32


class Door(BaseHTTPRequestHandler):
    """Says that it is full, to whoever gets so far."""

    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "own.pem"
    make_certificate(path)
    return path


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    """Of a server with a certificate that it has signed itself, in a thread of its own."""
    server = HTTPServer(("127.0.0.1", 0), Door)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # So that a client that ends the handshake ends its own connection only.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join(DEADLINE_S)
    server.server_close()


def probe(url: str) -> Canary:
    """A canary that has probed once."""
    canary = Canary(Settings(node="n", secret=(SECRET,), canary_interval_s=0.01, canary_url=url), "n-0", lambda: True)
    canary.placed(DirectorySnapshot(slots={"n": dict.fromkeys(range(SLOTS), "n-0")}))
    canary.start()
    try:
        wait_until(lambda: gevent.sleep(0.001) or canary.result, "a probe has ended")
    finally:
        canary.stop()
    return canary


def test_a_certificate_of_its_own_is_named(port: int) -> None:
    """The doctor, the canary and `headrace tail` say that the certificate is not trusted, and what to do about it."""
    url = f"https://127.0.0.1:{port}"
    finding = front.delivery(url, [SECRET], lambda stream, data: None)
    assert finding.found == f"{url}: its certificate is not trusted on this machine: self-signed certificate"
    assert "SSL_CERT_FILE" in finding.advice
    canary = probe(url)
    assert canary.result == "unreachable"
    assert "self-signed certificate; have it signed" in canary.last_error
    with pytest.raises(UnavailableError, match="self-signed certificate; have it signed"):
        sse_client.check_reachable(f"{url}/healthz")


def test_the_advice_helps(port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SSL_CERT_FILE, as advised, the answer is the server's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    # A process of its own would read the variable at its first connection, which this one has had.
    monkeypatch.setattr(urllib.request, "_opener", None)
    sse_client.check_reachable(f"https://127.0.0.1:{port}/healthz")
    assert front.delivery(f"https://127.0.0.1:{port}", [SECRET], lambda stream, data: None).found == "answered 503"


def test_a_server_without_tls_is_named(port: int) -> None:
    """A URL that promises TLS where there is none is told apart from a server that is away."""
    plain = HTTPServer(("127.0.0.1", 0), Door)
    serving = threading.Thread(target=plain.serve_forever, args=(0.02,))
    serving.start()
    try:
        finding = front.delivery(f"https://127.0.0.1:{plain.server_port}", [SECRET], lambda stream, data: None)
    finally:
        plain.shutdown()
        serving.join(DEADLINE_S)
        plain.server_close()
    assert "TLS fails there" in finding.found
    assert "http://" in finding.advice


def test_other_errors_are_no_fault_of_tls() -> None:
    """A refused connection is told as before."""
    assert tls_errors.fault(ConnectionRefusedError(111, "Connection refused")) is None
