"""What a router refuses whatever a client, a proxy or the environment says."""

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.tokens import sign
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET, Router
from tests.fixtures.scripted_shard import Shards
from tests.fixtures.waiting import DEADLINE_S, wait_until

ORIGIN = "https://app.example"
OTHER_ORIGIN = "https://elsewhere.example"


@pytest.fixture(scope="module")
def router(shared_redis: RedisServer, runtime_dir: Path, module_database_url: str) -> Iterator[Router]:
    made = Router(
        redis_url=shared_redis.url,
        runtime_dir=runtime_dir,
        database_url=module_database_url,
        allowed_origins=ORIGIN,
        directory_interval_s=0.2,
        demo="on",
    )
    yield made
    made.remove()


@pytest.mark.parametrize("arguments", ["--worker-class gthread", "--threads 4 -k gevent", "--preload"])
def test_another_kind_of_worker_does_not_start(
    shared_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    """gunicorn's variable for arguments cannot make a worker that writes to sockets which were given away."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    with pytest.raises(AssertionError, match=r"needs gunicorn's worker class headrace\.router\.worker\.HeadraceWorker"):
        Router(redis_url=shared_redis.url, runtime_dir=tmp_path)


@pytest.mark.parametrize("path", ["/%6detrics", "/metric%73", "/%72eadyz", "/%68ealthz", "/metrics#x", "//metrics"])
def test_paths_of_the_operator_have_one_spelling(router: Router, path: str) -> None:
    """A spelling that a proxy's rule may not know is answered with 404."""
    with router.connect(path) as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 404 ")
    assert router.get("/metrics")[0] == 200


def test_the_demo_runs_its_own_files_only(router: Router) -> None:
    """The demo's page has a policy that allows nothing inline, and nothing in it is."""
    for path in ("/", "/demo.js", "/demo.css"):
        status, headers, body = router.get(path)
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    body = router.get("/")[2]
    assert b"<style" not in body
    assert body.count(b"<script") == body.count(b'<script type="module" src="/') == 1


def test_streams_are_not_sniffed(router: Router, shards: Shards) -> None:
    """A shard is given the headers of its response, for a stream and for a page of history."""
    shard = shards.add("sniffed")
    router.knows("sniffed")
    path = f"/streams/{sign('room:1', secrets=[SECRET])}"
    with router.connect(path), router.connect(f"{path}/events"):
        wait_until(lambda: len(shard.messages) == 2, "both are handed over")
    assert all(dict(message.headers)["X-Content-Type-Options"] == "nosniff" for message in shard.messages)


def test_a_refused_origin_is_told_of(router: Router) -> None:
    """It is logged once, with what to do, and each request is counted."""
    for _ in range(3):
        router.get("/streams/x", Origin=OTHER_ORIGIN)
        router.get("/streams/x", Origin=ORIGIN)
        router.get("/demo/config", Origin=f"http://127.0.0.1:{router.port}")
    text = router.log.read_text()
    assert text.count("origin refused") == 1
    assert text.count(OTHER_ORIGIN) == 1
    assert "HEADRACE_ALLOWED_ORIGINS" in text
    assert 'headrace_router_refused_origins_total{process="router-0"} 3.0' in router.get("/metrics")[2].decode()


def test_a_refused_request_for_a_stream_leaves_the_connection_open(router: Router) -> None:
    """A client may ask for a stream in vain and go on over the same connection, unless it has asked to close it."""
    host = f"127.0.0.1:{router.port}"
    connection = http.client.HTTPConnection(host, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        for path, status in (("/streams/1.x", 404), ("/healthz", 200), ("/streams/1.x", 404)):
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.will_close) == (status, False)
            response.read()
        connection.request("GET", "/streams/1.x", headers={"Connection": "close"})
        assert connection.getresponse().will_close
    with contextlib.closing(http.client.HTTPConnection(host, timeout=DEADLINE_S)) as connection:
        connection.request("GET", "/streams/1.x", headers={"Connection": "close"})
        assert connection.getresponse().will_close
