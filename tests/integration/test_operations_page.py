"""The endpoints of the operations page, on a real router with real shards."""

import http.client
import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.errors import StreamNameError
from headrace.node.directory import Directory
from headrace.shard.numbers.operations_feed import INTERVAL_S
from headrace.stream import OPS_AUDIENCE, OPS_STREAM
from tests.fixtures.directory import entry
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET, Router
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until

TOKEN = "a-token-of-the-operations-test"
ORIGIN = "https://www.example.com"
OTHER_ORIGIN = "https://elsewhere.example"


def ask(
    router: Router, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, Any]:
    """A request with a token, unless another authorization is given."""
    headers.setdefault("authorization", f"Bearer {TOKEN}")
    data = None if body is None else json.dumps(body).encode()
    status, given, answer = router.get(path, method=method, body=data, **headers)
    kind = given.get("Content-Type", "")
    return status, given, json.loads(answer) if kind == "application/json" else answer


def test_without_a_token_there_is_no_page(shared_redis: RedisServer, runtime_dir: Path) -> None:
    """Where HEADRACE_OPS_TOKEN is not set, no path of the page leads anywhere."""
    router = Router(redis_url=shared_redis.url, runtime_dir=runtime_dir)
    try:
        for path in ("", ".js", ".css", "/session", "/stream", "/status", "/plan", "/act"):
            for method in ("GET", "POST", "OPTIONS"):
                assert router.get(f"/ops{path}", method=method)[0] == 404
    finally:
        router.remove()


def test_the_page_is_for_operators_and_their_own_pages_only(start_stack: StartStack) -> None:
    """The page itself has nothing secret and runs nothing but its own files; no origin is granted anything; what
    applications sign shows no overview; plans are carried out as they were shown; and nothing secret is logged."""
    stack = start_stack(2, ops_token=TOKEN, allowed_origins=ORIGIN)
    router = stack.router
    assert router is not None

    for path in ("/ops", "/ops.js", "/ops.css"):
        status, headers, body = router.get(path)
        assert (status, headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == (200, "DENY", "nosniff")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert TOKEN.encode() not in body
        assert SECRET.encode() not in body
    for method, path in [("GET", "/ops/status"), ("GET", "/ops/stream"), ("POST", "/ops/plan"), ("POST", "/ops/act")]:
        body = {} if method == "POST" else None
        assert ask(router, method, path, body, authorization="", x_headrace_ops="1")[0] == 401
        for origin in (ORIGIN, OTHER_ORIGIN):
            _, headers, _ = router.get(path, method="OPTIONS", origin=origin)
            assert not [name for name in headers if name.lower().startswith("access-control")]
            _, headers, _ = ask(router, method, path, body, origin=origin)
            assert "Access-Control-Allow-Origin" not in headers
    assert router.get("/streams/x", origin=ORIGIN)[1]["Access-Control-Allow-Origin"] == ORIGIN

    right = json.dumps({"token": TOKEN}).encode()
    status, headers, _ = router.get("/ops/session", method="POST", body=right, x_headrace_ops="1")
    assert status == 204
    cookie = headers["Set-Cookie"].split(";")[0]
    status, _, found = ask(router, "GET", "/ops/status", authorization="", cookie=cookie)
    assert status == 200
    assert {shard["id"] for shard in found["shards"]} == {"n1-0", "n1-1"}
    assert ask(router, "POST", "/ops/act", {"action": "rebalance"}, authorization="", cookie=cookie)[0] == 403
    for body in (b"", b"[]", b"[" * 100_000, b'{"token": 5}'):
        assert router.get("/ops/session", method="POST", body=body, x_headrace_ops="1")[0] in (400, 413)

    reserved(stack)
    plans(router, stack)
    log = router.log.read_text()
    assert "operator acts" in log
    assert TOKEN not in log
    assert cookie.partition("=")[2] not in log


def test_a_session_ends_everywhere(own_redis: RedisServer, runtime_dir: Path) -> None:
    """After signing out at one router the cookie is worth nothing at another; others' sessions outlive Redis."""
    routers = [Router(redis_url=own_redis.url, runtime_dir=runtime_dir, ops_token=TOKEN) for _ in range(2)]
    try:
        right = json.dumps({"token": TOKEN}).encode()
        for router in routers:
            wait_until(lambda router=router: router.ready()["redis"]["status"] == "ok", "Redis is there")  # type: ignore[misc]
        cookies = []
        for _ in range(2):
            _, headers, _ = routers[0].get("/ops/session", method="POST", body=right, x_headrace_ops="1")
            cookies.append(headers["Set-Cookie"].split(";")[0])

        def answers() -> list[list[int]]:
            return [[router.get("/ops/status", cookie=cookie)[0] for cookie in cookies] for router in routers]

        assert answers() == [[200, 200], [200, 200]]
        assert routers[0].get("/ops/session", method="DELETE", cookie=cookies[0], x_headrace_ops="1")[0] == 204
        # A router that finds Redis standing still for a moment lets in whom it does not know to have left.
        wait_until(lambda: answers() == [[401, 200], [401, 200]], "the session has ended everywhere")
        own_redis.kill()
        for router in routers:
            wait_until(lambda router=router: router.ready()["redis"]["status"] == "away", "Redis is away")  # type: ignore[misc]
        assert answers()[0] == [401, 200]
        assert answers()[1][1] == 200
    finally:
        for router in routers:
            router.remove()


def reserved(stack: Stack) -> None:
    """Only the router's own URL shows overviews, and one comes every interval, however many watch."""
    with pytest.raises(StreamNameError):
        headrace.sign(OPS_STREAM, secrets=[SECRET])
    publisher = headrace.sign_publisher("*", secrets=[SECRET])
    event = json.dumps({"stream": OPS_STREAM, "data": "forged", "visible_to": OPS_AUDIENCE}).encode()
    assert stack.router is not None
    forged = stack.router.get("/publish", method="POST", body=event, authorization=f"Bearer {publisher}")
    assert forged[0] == 403
    uninvited = stack.subscribe(OPS_STREAM)
    status, _, found = ask(stack.router, "GET", "/ops/stream")
    assert status == 200
    watchers = [stack.connect(found["src"]) for _ in range(2)]
    for watcher in watchers:
        watcher.wait(lambda watcher=watcher: len(watcher.events) >= 3, "three overviews")  # type: ignore[misc]

    def spaced() -> bool:
        """Whether three have come with their time between them; one that is late is nearer to the next."""
        times = [json.loads(event.data or "")["at"] for event in watchers[0].events]
        apart = [later - earlier >= (INTERVAL_S - 0.5) * 1000 for earlier, later in pairwise(times)]
        return any(all(two) for two in pairwise(apart))

    watchers[0].wait(spaced, "overviews come one an interval")
    stack.database.publish(OPS_STREAM, "for everybody")
    assert [event.data for event in uninvited.wait_for(1)] == ["for everybody"]


def plans(router: Router, stack: Stack) -> None:
    """A plan names each shard's slots before and after; carried out it comes true, and a stale one is refused."""
    client = stack.subscribe("room:1")
    victim = stack.holder(client).id
    (other,) = {shard.id for shard in stack.shards} - {victim}
    status, _, plan = ask(router, "POST", "/ops/plan", {"action": "drain", "shard": victim})
    assert status == 200
    rows = {row["shard"]: row for row in plan["rows"]}
    assert (rows[victim]["slots_then"], rows[other]["slots_then"], plan["moves"]) == (0, 1024, rows[victim]["slots"])
    drain = {"action": "drain", "shard": victim, "epoch": plan["epoch"]}
    assert ask(router, "POST", "/ops/act", drain | {"epoch": "another 7"})[0] == 409
    assert ask(router, "POST", "/ops/act", drain)[0] == 200
    assert stack.holder(client).id == other
    assert ask(router, "POST", "/ops/act", drain)[0] == 409
    for body in ({"action": "stop"}, {"action": "drain", "shard": "none"}, {"action": "drain", "shard": other}, {}):
        assert ask(router, "POST", "/ops/plan", body)[0] == 400
    status, _, plan = ask(router, "POST", "/ops/plan", {"action": "undrain", "shard": victim})
    assert {row["shard"] for row in plan["rows"] if row["slots_then"] > 300} == {victim, other}
    undrain = {"action": "undrain", "shard": victim, "epoch": plan["epoch"]}
    assert ask(router, "POST", "/ops/act", undrain)[0] == 200
    wait_until(lambda: stack.holder(client).id == victim, "the client is back")
    assert not client.ended


def test_without_redis_the_router_shows_what_it_knew(start_stack: StartStack) -> None:
    """The status says that Redis is away, with the shards as last known; an action is 503."""
    stack = start_stack(1, ops_token=TOKEN)
    assert stack.router is not None
    stack.redis.pause()
    try:
        wait_until(lambda: ask(stack.router, "GET", "/ops/status")[2]["redis"] == "away", "Redis is missed")  # type: ignore[arg-type]
        assert [shard["id"] for shard in ask(stack.router, "GET", "/ops/status")[2]["shards"]] == ["n1-0"]
        assert ask(stack.router, "POST", "/ops/plan", {"action": "rebalance"})[0] == 503
    finally:
        stack.redis.resume()


def test_all_nodes_are_shown(start_stack: StartStack) -> None:
    """The page's status, and the overviews of its feed, tell of other nodes; so does the status while Redis is away."""
    stack = start_stack(1, ops_token=TOKEN)
    assert stack.router is not None
    directory = Directory(stack.redis.url, expiry_s=600)
    directory.register(entry("n2-0", node="n2", deployment=stack.database.one("select headrace.identity()")))

    def shown() -> list[str]:
        return [shard["id"] for shard in ask(stack.router, "GET", "/ops/status")[2]["shards"]]  # type: ignore[arg-type]

    assert shown() == ["n1-0", "n2-0"]
    watcher = stack.connect(ask(stack.router, "GET", "/ops/stream")[2]["src"])
    (overview, *_) = watcher.wait_for(1)
    assert [shard["id"] for shard in json.loads(overview.data or "")["shards"]] == ["n1-0", "n2-0"]
    directory.close()
    stack.redis.pause()
    try:
        wait_until(lambda: ask(stack.router, "GET", "/ops/status")[2]["redis"] == "away", "Redis is missed")  # type: ignore[arg-type]
        assert shown() == ["n1-0", "n2-0"]
    finally:
        stack.redis.resume()


def test_one_of_all_has_the_turn(shared_redis: RedisServer) -> None:
    """Of many who ask at once one is told that it is its turn, and after the time another one."""
    directory = Directory(shared_redis.url, expiry_s=30)
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(directory.turn("many", 30))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False] * 7 + [True]
    began = time.monotonic()
    assert directory.turn("brief", 0.5)
    wait_until(lambda: directory.turn("brief", 0.5), "the next turn")
    assert time.monotonic() - began >= 0.4
    directory.close()
