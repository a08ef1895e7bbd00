"""Bodies that are not what their request's head says, at every endpoint that reads one."""

import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.publisher_tokens import sign_publisher
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET, Router
from tests.fixtures.waiting import wait_until

OPS_TOKEN = "a-token-that-only-tests-use"
BODY = json.dumps({"stream": "chat", "data": "x", "token": OPS_TOKEN}).encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
MALFORMED = {
    "no chunk": CHUNKED + b"zz\r\n",
    "a size below zero": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with a prefix": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "an endless size": CHUNKED + b"1" * 70_000,
    "a chunk too short": CHUNKED + b"50\r\nhello",
    "a chunk too long": CHUNKED + b"2\r\nhello\r\n0\r\n\r\n",
    "no last chunk": CHUNKED + b"%x\r\n%s\r\n" % (len(BODY), BODY),
    "a bad extension": CHUNKED + b"5;\x00=1\r\nhello\r\n0\r\n\r\n",
    "a bad trailer": CHUNKED + b"%x\r\n%s\r\n0\r\nnonsense\r\n\r\n" % (len(BODY), BODY),
    "a line feed alone": CHUNKED + b"5\nhello\n0\n\n",
    "many small chunks": CHUNKED + b"1\r\n \r\n" * 5000 + b"0\r\n\r\n",
    "less than was announced": b"Content-Length: %d\r\n\r\n%s" % (len(BODY) + 1, BODY),
    "nested without end": b"Content-Length: 4000\r\n\r\n" + b"[" * 4000,
}
ENDPOINTS = {
    "/publish": f"Authorization: Bearer {sign_publisher('*', secrets=[SECRET])}",
    "/demo/publish": "X: 1",
    "/ops/session": "X-Headrace-Ops: 1",
    "/ops/plan": f"Authorization: Bearer {OPS_TOKEN}",
    "/ops/act": f"Authorization: Bearer {OPS_TOKEN}",
}


@pytest.fixture(scope="module")
def router(
    module_database_url: str, shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Router]:
    runtime_dir: Path = tmp_path_factory.mktemp("run")
    made = Router(
        redis_url=shared_redis.url,
        database_url=module_database_url,
        runtime_dir=runtime_dir,
        demo="on",
        ops_token=OPS_TOKEN,
    )
    yield made
    made.remove()


def answers(router: Router) -> Counter[str]:
    """How often the router has answered, by status."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(router.get("/metrics")[2].decode()):
        for sample in family.samples:
            if sample.name == "headrace_router_responses_total":
                found[sample.labels["status"]] += int(sample.value)
    return found


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(65536):
        received += part
    return received


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_malformed_body_is_the_clients_fault(router: Router, endpoint: str, name: str) -> None:
    """It is answered with 400, does nothing, and makes no error in the log."""
    head = f"POST {endpoint} HTTP/1.1\r\nHost: h\r\n{ENDPOINTS[endpoint]}\r\n".encode()
    with socket.create_connection(("127.0.0.1", router.port), timeout=60) as client:
        client.sendall(head + MALFORMED[name])
        client.shutdown(socket.SHUT_WR)
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b'{"error":"the body ' in answer
    assert "Traceback" not in router.log.read_text()


def test_a_client_that_resets_within_its_body_is_no_error(router: Router) -> None:
    """Nor is it an error of ours if the client breaks off."""
    before = answers(router)
    for endpoint, header in ENDPOINTS.items():
        head = (header, "Content-Length: 100", "Expect: 100-continue")
        with router.connect(endpoint, *head, method="POST") as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: answers(router)["400"] == before["400"] + len(ENDPOINTS), "each is taken for the client's fault")
    assert answers(router)["500"] == 0
    assert "Traceback" not in router.log.read_text()


def test_an_answer_outlives_a_body_that_nobody_reads(router: Router) -> None:
    """A client that is refused while it still sends gets the answer, and then the end."""
    for length in (b"Content-Length: 9000000\r\n\r\n", CHUNKED + b"a00000\r\n"):
        with socket.create_connection(("127.0.0.1", router.port), timeout=60) as client:
            client.sendall(b"POST /publish HTTP/1.1\r\nHost: h\r\n" + length)
            client.sendall(bytes(3_000_000))
            client.shutdown(socket.SHUT_WR)
            received = read_to_end(client)
        assert received.startswith(b"HTTP/1.1 401 "), received
        assert b"connection: close" in received.lower()
