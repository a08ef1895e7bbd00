"""The router as a real gunicorn process, against shards that follow a script."""

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

import headrace
from headrace.cursor import Position
from headrace.node.directory import Directory
from headrace.node.placement import rendezvous
from headrace.node.socket_passing import MAX_CHANNELS
from headrace.router.client_placement import SUSPICION_S
from headrace.stream import slot
from headrace.tokens import sign
from tests.fixtures import scripted_shard
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET, Router
from tests.fixtures.scripted_shard import HEAD, Shards
from tests.fixtures.waiting import took_less, wait_until

Opened = Callable[[socket.socket], socket.socket]
NUMBERS = itertools.count(1)


def path(*streams: str, since: str = "", **options: object) -> str:
    signed = sign(streams or ("room:1",), secrets=[SECRET], **options)  # type: ignore[arg-type]
    return f"/streams/{signed}" + (f"?since={since}" if since else "")


def read_to_end(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def router(shared_redis: RedisServer, runtime_dir: Path) -> Iterator[Router]:
    """One router for the tests that leave it as it was: they use shards with ids of their own."""
    made = start(shared_redis, runtime_dir)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def impatient(shared_redis: RedisServer, runtime_dir: Path) -> Iterator[Router]:
    """The same, which waits for a shard's answer for less than it suspects one that gave none."""
    made = start(shared_redis, runtime_dir, handoff_deadline_s=SUSPICION_S - 1)
    yield made
    made.remove()


@pytest.fixture
def own_router(shared_redis: RedisServer, runtime_dir: Path) -> Iterator[Router]:
    """A router of the test's own, to stop, or because it must know nothing yet."""
    made = start(shared_redis, runtime_dir)
    yield made
    made.remove()


def start(server: RedisServer, runtime_dir: Path, **settings: object) -> Router:
    return Router(
        redis_url=server.url,
        runtime_dir=runtime_dir,
        allowed_origins="https://app.example",
        directory_interval_s=0.2,
        **settings,
    )


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Closes at the end of the test each socket that it is given."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def pair() -> tuple[str, str]:
    """Two ids that no other test uses, the first being the first choice for the stream."""
    number = next(NUMBERS)
    first, second = rendezvous(slot("room:1"), [f"a{number}", f"b{number}"])
    return first, second


def test_after_the_answer_the_client_is_the_shards_alone(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A client that was handed over gets every byte from the shard, and the end when the shard closes it."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    with router.connect(path(since="17", user="ada"), "X-Request-Id: r-1") as client:
        held = shard.client()
        wait_until(lambda: not router.holds(os.fstat(held.fileno()).st_ino), "the router let go of the socket")
        held.sendall(HEAD + b"id: 18\ndata: x\n\n")
        client.sendall(b"what the client sends now is the shard's to read")
        assert held.recv(4096) == b"what the client sends now is the shard's to read"
        held.sendall(b": heartbeat\n\n")
        shard.clients.clear()
        held.close()
        assert read_to_end(client) == HEAD + b"id: 18\ndata: x\n\n: heartbeat\n\n"
        (message,) = shard.messages
        assert message.streams == (("room:1", Position(17)),)
        assert message.context.user == "ada"
        assert message.request_id == "r-1"
        assert message.peer == "{}:{}".format(*client.getsockname())


@pytest.mark.parametrize(("script", "guest"), [(scripted_shard.refuses, True), (scripted_shard.ends, False)])
def test_a_shard_that_does_not_take_the_client_is_passed_over(
    router: Router, shards: Shards, pair: tuple[str, str], script: scripted_shard.Script, guest: bool
) -> None:
    """A refusal, or an end of the channel without an answer, sends the same client to the next shard.

    There it is a guest if its own had no room.
    """
    unwilling, willing = shards.add(pair[0], script), shards.add(pair[1])
    router.knows(*pair)
    with router.connect(path()) as client:
        willing.client().sendall(HEAD)
        assert client.recv(4096) == HEAD
    assert len(unwilling.messages) == 1
    assert [message.guest for message in willing.messages] == [guest]


def test_who_is_passed_on_by_a_shard_that_accepts_nothing_is_a_guest(
    router: Router, shards: Shards, pair: tuple[str, str], opened: Opened
) -> None:
    """Its own shard stands still, and would cost it the connection: the other one does not send it there."""
    shards.register(pair[0])
    willing = shards.add(pair[1])
    listener = opened(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    listener.bind(str(shards.runtime_dir / f"{pair[0]}.sock"))
    listener.listen(0)
    waiting = opened(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    waiting.connect(listener.getsockname())
    router.knows(*pair)
    with router.connect(path()):
        assert willing.client()
    assert [message.guest for message in willing.messages] == [True]


def test_a_dead_shards_socket_is_passed_over(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A shard that died without leaving costs its clients nothing while its entry lives on."""
    shards.register(pair[0])
    willing = shards.add(pair[1])
    router.knows(*pair)
    with router.connect(path()):
        assert willing.client()


def test_a_silent_shard_costs_its_client_the_connection(
    impatient: Router, shards: Shards, pair: tuple[str, str]
) -> None:
    """On silence the client is closed without a byte, and a shard that wakes later cannot write to it."""
    silent, other = shards.add(pair[0], scripted_shard.says_nothing), shards.add(pair[1])
    impatient.knows(*pair)
    with impatient.connect(path()) as client:
        assert read_to_end(client) == b""
    silent.woken.set()
    wait_until(lambda: silent.errors, "the late answer fails")
    with pytest.raises(BrokenPipeError):
        silent.client().sendall(HEAD)
    assert not other.messages
    wait_until(lambda: "outcome=silent" in impatient.log.read_text(), "the silence is logged")


def test_after_silence_others_are_tried_first(impatient: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """The next clients of a silent shard's slots go to another shard at once."""
    silent, other = shards.add(pair[0], scripted_shard.says_nothing), shards.add(pair[1])
    impatient.knows(*pair)
    with impatient.connect(path()) as client:
        assert read_to_end(client) == b""
    with impatient.connect(path()):
        assert other.client()
    assert len(silent.messages) == 1


def test_an_answer_that_is_none_counts_as_silence(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """When nobody can tell whether the shard has the client, the client is closed."""
    shards.add(pair[0], scripted_shard.babbles)
    router.knows(pair[0])
    with router.connect(path()) as client:
        assert read_to_end(client) == b""


def test_when_no_shard_takes_it_the_client_is_told_when_to_return(
    router: Router, shards: Shards, pair: tuple[str, str]
) -> None:
    """With every shard full the answer is 503 with Retry-After, and the connection stays usable."""
    shards.add(pair[0], scripted_shard.refuses)
    shards.add(pair[1], scripted_shard.refuses)
    router.knows(*pair)
    status, headers, body = router.get(path(), Origin="https://app.example")
    assert status == 503
    assert 1 <= int(headers["Retry-After"]) <= 5
    assert "no shard accepts" in json.loads(body)["error"]
    assert headers["Access-Control-Allow-Origin"] == "https://app.example"


def test_without_any_shard_the_answer_is_503(own_router: Router, shards: Shards) -> None:
    """A node without shards answers 503 with Retry-After and is not ready."""
    status, headers, _ = own_router.get(path())
    assert status == 503
    assert "Retry-After" in headers
    assert own_router.get("/readyz")[0] == 503


def test_a_draining_shard_gets_no_clients(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """Only shards that are up are offered clients."""
    draining, up = shards.add(pair[0]), shards.add(pair[1])
    shards.register(pair[0], "draining")
    router.knows(*pair)
    wait_until(lambda: pair[0] in router.draining(), "the router knows that it drains")
    with router.connect(path()):
        assert up.client()
    assert not draining.messages


def test_other_nodes_shards_get_no_clients(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A socket can only be passed on the same node."""
    shards.add(pair[0], register=False)
    shards.register(pair[0], node="n2")
    mine = shards.add(pair[1])
    router.knows(pair[1])
    with router.connect(path()):
        assert mine.client()


def test_the_owner_of_the_slot_comes_first(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A slot's owner gets its clients, though another shard would be its first choice."""
    owner = shards.add(pair[1])
    shards.directory.claim("n-router", settle_s=0)
    shards.add(pair[0])
    router.knows(*pair)
    with router.connect(path()):
        assert owner.client()


def test_a_restarted_shard_is_found_behind_its_old_channels(
    router: Router, shards: Shards, pair: tuple[str, str]
) -> None:
    """A shard that was replaced on the same socket gets the next client, not a refusal."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    with router.connect(path()):
        assert shard.client()
    shard.stop()
    shard.start()
    with router.connect(path()):
        assert shard.client()
    assert len(shard.messages) == 2


def test_many_clients_at_once_are_each_given_once(
    router: Router, shards: Shards, pair: tuple[str, str], opened: Opened
) -> None:
    """Two hundred clients at the same moment all reach the shard, each one time, over a few channels."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    address = path()
    with ThreadPoolExecutor(50) as pool:
        clients = [opened(client) for client in pool.map(lambda _: router.connect(address), range(200))]
    wait_until(lambda: len(shard.clients) == 200, "all are handed over")
    peers = {"{}:{}".format(*client.getsockname()) for client in clients}
    assert {message.peer for message in shard.messages} == peers
    assert len(shard.handoffs_by_channel) <= MAX_CHANNELS


def test_a_stopped_shard_costs_no_more_clients_than_it_has_places(
    impatient: Router, shards: Shards, pair: tuple[str, str], opened: Opened
) -> None:
    """When a shard goes silent in a burst, only the clients already offered to it are lost."""
    silent, other = shards.add(pair[0], scripted_shard.says_nothing), shards.add(pair[1])
    impatient.knows(*pair)
    address = path()
    with ThreadPoolExecutor(40) as pool:
        for client in pool.map(lambda _: impatient.connect(address), range(40)):
            opened(client)
    wait_until(lambda: len(silent.messages) + len(other.messages) == 40, "each was offered to one of them")
    assert len(silent.messages) <= MAX_CHANNELS


def test_a_router_restarts_without_its_clients_noticing(
    own_router: Router, shards: Shards, pair: tuple[str, str]
) -> None:
    """A client that was handed over goes on while the router stops and after it is gone."""
    shard = shards.add(pair[0])
    own_router.knows(pair[0])
    with own_router.connect(path()) as client:
        held = shard.client()
        held.sendall(HEAD)
        assert own_router.stop() == 0
        held.sendall(b"data: still here\n\n")
        shard.clients.clear()
        held.close()
        assert read_to_end(client) == HEAD + b"data: still here\n\n"


@pytest.mark.parametrize(
    ("request_path", "status"),
    [
        (path(since="1x"), 400),
        (path(since="1.2"), 400),
        (path(ttl_s=60, now=1.0), 403),
        (path()[:-1], 404),
        ("/streams/" + path().partition("/streams/")[2].replace(".", ".x", 1), 404),
        ("/streams/1." + path().partition(".")[2], 404),
        ("/streams/", 404),
        ("/elsewhere", 404),
    ],
)
def test_a_wrong_request_is_answered_with_its_reason(
    router: Router, shards: Shards, request_path: str, status: int
) -> None:
    """Each wrong request has its status and a sentence, which a page of an allowed origin can read."""
    got, headers, body = router.get(request_path, Origin="https://app.example")
    assert got == status
    assert json.loads(body)["error"]
    assert headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Vary"] == "Origin"


def test_a_method_that_is_not_answered(router: Router, shards: Shards) -> None:
    """POST on a stream is 405 with what is allowed."""
    for method in ("POST", "DELETE"):
        status, headers, _ = router.get(path(), method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_a_head_is_answered_as_a_get_would_be(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """HEAD on a stream or a page of its past says what GET would, without a body, and no shard hears of it."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    status, headers, body = router.get(path(), method="HEAD")
    assert (status, headers["Content-Type"], body) == (200, "text/event-stream; charset=utf-8", b"")
    assert "Content-Length" not in headers
    page = path().partition("?")[0] + "/events"
    status, headers, body = router.get(page, method="HEAD")
    assert (status, headers["Content-Type"], body) == (200, "application/json", b"")
    assert router.get("/streams/1.nonsense", method="HEAD")[0] == 404
    assert not shard.messages


def test_a_get_with_a_body_is_refused(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A body, of known length or chunked, would be left on the socket that the shard writes to."""
    shards.add(pair[0])
    router.knows(pair[0])
    assert router.get(path(), body=b"x", method="GET")[0] == 400
    with router.connect(path(), "Transfer-Encoding: chunked") as client:
        client.sendall(b"1\r\nx\r\n0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_cross_origin_headers_travel_to_the_shard(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """The shard is told the headers that let an allowed origin read the stream, and none for another."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    for number, origin in enumerate(("https://app.example", "https://evil.example"), 1):
        router.connect(path(), f"Origin: {origin}").close()
        wait_until(lambda number=number: len(shard.messages) == number, "it is handed over")  # type: ignore[misc]
    allowed, other = (dict(message.headers) for message in shard.messages)
    assert allowed["Access-Control-Allow-Origin"] == "https://app.example"
    assert allowed["Access-Control-Allow-Credentials"] == "true"
    assert other == {"Vary": "Origin", "X-Content-Type-Options": "nosniff"}


def test_a_token_of_many_streams_fits(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A URL of 64 long stream names reaches the shard whole."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    names = [f"{number}:{os.urandom(120).hex()}" for number in range(64)]
    with router.connect(path(*names)):
        shard.client()
    assert [name for name, _ in shard.messages[0].streams] == names


def test_a_token_is_never_logged(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """Whatever happens to a request, the log has its request id and not its token."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    address = path()
    with router.connect(address, "X-Request-Id: seen-1"):
        shard.client()
    with router.connect(f"{address} {address}") as broken:
        assert broken.recv(4096).startswith(b"HTTP/1.1 400 ")
    for logged in ("Invalid request", "seen-1"):
        wait_until(lambda logged=logged: logged in router.log.read_text(), f"{logged!r} is logged")  # type: ignore[misc]
    assert address.partition(".")[2] not in router.log.read_text()


def test_ready_names_each_part(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """/readyz says how the shards, Redis and PostgreSQL are, and is 200 while a shard can be reached."""
    shards.add(pair[0])
    shards.register(pair[0], database_error="PostgreSQL is away", canary="no event", last_error="an old story")
    shards.register(pair[1])
    router.knows(*pair)
    status, _, body = router.get("/readyz")
    assert status == 200
    ready = json.loads(body)
    assert ready["status"] == "degraded"
    assert ready["redis"]["status"] == "ok"
    assert ready["postgresql"] == {"status": "degraded", "lag_s": 0.0, "errors": ["PostgreSQL is away"]}
    assert ready["canary"] == {"status": "failing", "found": ["no event"]}
    assert {shard["id"]: shard["reachable"] for shard in ready["shards"]} == {pair[0]: True, pair[1]: False}
    assert next(shard for shard in ready["shards"] if shard["id"] == pair[0])["last_error"] == "an old story"


def test_ready_tells_strangers_the_state_alone(
    shared_redis: RedisServer, runtime_dir: Path, shards: Shards, pair: tuple[str, str]
) -> None:
    """Through a proxy it has a word for each part, and names, pids and errors only with the operators' token."""
    shards.add(pair[0])
    shards.register(pair[0], database_error="away", canary="no event", last_error="an old story")
    token = "a-token-of-the-operators"
    router = start(shared_redis, runtime_dir, ops_token=token)
    try:
        router.knows(pair[0])
        for header in ("X-Forwarded-For", "Forwarded", "Via"):
            status, _, body = router.get("/readyz", **{header: "192.0.2.1"})
            assert status == 200
            words = {"redis": "ok", "postgresql": "degraded", "canary": "failing"}
            expected = {"status": "degraded"} | {part: {"status": word} for part, word in words.items()}
            assert json.loads(body) == expected
            for authorization in (f"Bearer {token}x", "Bearer", f"Basic {token}"):
                _, _, body = router.get("/readyz", Authorization=authorization, **{header: "192.0.2.1"})
                assert json.loads(body) == expected
        _, _, body = router.get("/readyz", X_Forwarded_For="192.0.2.1", Authorization=f"Bearer {token}")
        assert json.loads(body)["shards"][0]["last_error"] == "an old story"
    finally:
        router.remove()


def test_the_element_is_served_with_a_validator(router: Router) -> None:
    """/headrace.js is JavaScript, and a client that has it gets 304."""
    status, headers, body = router.get("/headrace.js")
    assert status == 200
    assert headers["Content-Type"].startswith("text/javascript")
    assert body
    assert router.get("/headrace.js", If_None_Match=headers["ETag"])[0] == 304
    assert router.get("/headrace.js", method="HEAD")[2] == b""


def test_metrics_count_hand_offs(router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """/metrics has the hand-offs by outcome."""
    shard = shards.add(pair[0])
    router.knows(pair[0])
    with router.connect(path()):
        shard.client()
    for name in ('headrace_router_handoffs_total{outcome="accepted"', "headrace_router_handoff_seconds_count"):
        wait_until(lambda name=name: name in router.get("/metrics")[2].decode(), f"{name} is told")  # type: ignore[misc]


def test_an_outage_of_redis_changes_nothing_for_clients(own_redis: RedisServer, runtime_dir: Path) -> None:
    """While Redis is away, and after it came back empty, clients are handed to the shards last known."""
    directory = Directory(own_redis.url, expiry_s=60)
    shards = Shards("n-router", directory, runtime_dir)
    shard = shards.add("a")
    router = Router(redis_url=own_redis.url, runtime_dir=runtime_dir, directory_interval_s=0.1)
    try:
        router.knows("a")
        own_redis.kill()
        wait_until(lambda: router.ready()["redis"]["status"] == "away", "the outage is noticed")
        assert router.ready()["status"] == "degraded"
        with router.connect(path()):
            wait_until(lambda: len(shard.messages) == 1, "handed over during the outage")
        own_redis.start()
        wait_until(lambda: router.ready()["redis"]["status"] == "ok", "the return is noticed")
        with router.connect(path()):
            wait_until(lambda: len(shard.messages) == 2, "handed over with an empty directory")
        # A Redis that stands still for a second is another outage; that each is told of once has a unit test.
        assert "going on with the shards last known" in router.log.read_text()
        assert "Redis is back" in router.log.read_text()
    finally:
        router.remove()
        shards.remove()
        directory.close()


def test_a_stopped_redis_does_not_slow_clients(own_redis: RedisServer, runtime_dir: Path) -> None:
    """A Redis that is stopped, and so neither answers nor closes, is in no client's way."""
    directory = Directory(own_redis.url, expiry_s=60)
    shards = Shards("n-router", directory, runtime_dir)
    shard = shards.add("a")
    router = Router(redis_url=own_redis.url, runtime_dir=runtime_dir, directory_interval_s=0.1)
    try:
        router.knows("a")

        def hand_over() -> float:
            own_redis.resume()
            wait_until(lambda: router.ready()["redis"]["status"] == "ok", "Redis is there")
            own_redis.pause()
            began, before = time.monotonic(), len(shard.clients)
            with router.connect(path()):
                wait_until(lambda: len(shard.clients) > before, "the client is handed over")
            return time.monotonic() - began

        took_less(1, hand_over)
        wait_until(lambda: router.ready()["redis"]["status"] == "away", "the outage is noticed")
    finally:
        own_redis.resume()
        router.remove()
        shards.remove()
        directory.close()


def test_a_router_that_starts_without_redis_finds_the_shards(shards: Shards, pair: tuple[str, str]) -> None:
    """With no directory at all, the hand-off sockets in the runtime directory are used."""
    shard = shards.add(pair[0], register=False)
    router = Router(redis_url="unix:///nonexistent/redis.sock", runtime_dir=shards.runtime_dir)
    try:
        with router.connect(path()):
            assert shard.client()
        assert router.ready()["status"] == "degraded"
    finally:
        router.remove()


def test_a_killed_worker_leaves_its_clients_alone(own_router: Router, shards: Shards, pair: tuple[str, str]) -> None:
    """A worker that is killed is replaced, and the clients that it gave away go on."""
    shard = shards.add(pair[0])
    own_router.knows(pair[0])
    with own_router.connect(path()) as client:
        held = shard.client()
        _, worker = own_router.pids()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in own_router.pids() and len(own_router.pids()) == 2, "it is replaced")
        held.sendall(HEAD)
        assert client.recv(4096) == HEAD
    own_router.knows(pair[0])


def test_the_demo_publishes_in_a_transaction(database_url: str, shared_redis: RedisServer, tmp_path: Path) -> None:
    """With the demo on, its page is served and what is posted is in the log of the demo's stream."""
    demo = Router(redis_url=shared_redis.url, runtime_dir=tmp_path, database_url=database_url, demo=1)
    try:
        assert demo.get("/")[1]["Content-Type"] == "text/html; charset=utf-8"
        assert set(json.loads(demo.get("/demo/config")[2])["streams"]) == {"chat", "board", "likes"}
        event = json.dumps({"stream": "chat", "data": "hello", "event": "message"}).encode()
        assert demo.get("/demo/publish", method="POST", body=event)[0] == 204
        assert demo.get("/demo/publish", method="POST", body=b"x" * 100_000)[0] == 413
        with psycopg.connect(database_url) as connection:
            assert headrace.head(connection, "demo:chat") == 1
    finally:
        demo.remove()


def test_without_the_demo_its_paths_are_unknown(router: Router) -> None:
    """Nobody can publish over HTTP unless the demo is switched on."""
    assert router.get("/")[0] == 404
    assert router.get("/demo/config")[0] == 404
    assert router.get("/demo/publish", method="POST", body=b"{}")[0] == 404
