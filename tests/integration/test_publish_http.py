"""`POST /publish` at a real router over a real PostgreSQL."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import headrace
from headrace.publisher_tokens import sign_publisher
from headrace.shard.postgres import sql_functions
from headrace.tokens import sign
from tests.fixtures.postgres import NUMBERS
from tests.fixtures.proxy import Proxy
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET, Router
from tests.fixtures.shard import Database
from tests.fixtures.waiting import DEADLINE_S, wait_until

ORIGIN = "https://app.example"


class Outside:
    """Somebody outside the database. Owned by the test; `post` may be called by its threads."""

    def __init__(self, router: Router, database: Database) -> None:
        self.router = router
        self.database = database
        self.token = sign_publisher("*", secrets=[SECRET])

    def post(
        self, value: object, key: str = "", token: str | None = None, path: str = "/publish", **headers: str
    ) -> tuple[int, Any]:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = {"Authorization": f"Bearer {self.token if token is None else token}", **headers}
        if key:
            headers["Idempotency-Key"] = key
        status, _, answer = self.router.get(path, method="POST", body=body, **headers)
        return status, json.loads(answer)

    def insist(self, value: object, key: str) -> tuple[int, Any]:
        """The same as often as the answer is that PostgreSQL is away: the key makes it safe."""
        return wait_until(lambda: (answer := self.post(value, key))[0] != 503 and answer, "an answer") or (0, None)

    def log(self, stream: str) -> list[tuple[int, str, str, str | None]]:
        _, events = sql_functions.read_events(self.database.connection, stream, 0, 10_000, 1 << 30)
        return [(event.id, event.type, event.data, event.visible_to) for event in events]


@pytest.fixture(scope="module")
def module_outside(module_database_url: str, shared_redis: RedisServer) -> Iterator[Outside]:
    router = Router(
        database_url=module_database_url,
        redis_url=shared_redis.url,
        allowed_origins=ORIGIN,
        publish_deadline_s=DEADLINE_S,
    )
    database = Database(module_database_url)
    yield Outside(router, database)
    database.close()
    router.remove()


@pytest.fixture
def outside(module_outside: Outside) -> Outside:
    return module_outside


@pytest.fixture
def stream() -> str:
    """A stream of this test alone."""
    return f"s{next(NUMBERS)}"


def event(stream: str, data: str = "x", **more: Any) -> dict[str, Any]:
    return {"stream": stream, "data": data, **more}


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What these calls return, each in a thread of its own."""
    answers: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        answers[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return answers


def test_ids_come_in_the_order_given(outside: Outside, stream: str) -> None:
    """One event has an id, a batch its ids in its order over all streams, and the log has them exactly."""
    assert outside.post(event(stream, "line\r\nж", event="note", visible_to="staff")) == (200, {"id": 1})
    other = stream + "b"
    batch = [event(other, "1"), event(stream, "2"), event(other, "3"), event(other, "4"), event(stream, "5")]
    assert outside.post(batch) == (200, {"ids": [1, 2, 2, 3, 3]})
    assert outside.post([]) == (200, {"ids": []})
    assert outside.log(stream) == [
        (1, "note", "line\r\nж", "staff"),
        (2, "message", "2", None),
        (3, "message", "5", None),
    ]
    assert [data for _, _, data, _ in outside.log(other)] == ["1", "3", "4"]


def test_batches_in_opposite_orders(outside: Outside, stream: str) -> None:
    """Batches to the same streams in clashing orders all succeed, and each is told the ids that are its own."""
    names = [f"{stream}:{number}" for number in range(4)]

    def send(number: int) -> tuple[int, Any]:
        order = names if number % 2 else names[::-1]
        return outside.post([event(name, f"{number}") for name in order])

    answers = at_once(*(lambda n=n: send(n) for n in range(16)))  # type: ignore[misc]
    assert {status for status, _ in answers} == {200}
    for number, (_, answer) in enumerate(answers):
        for name, id_ in zip(names if number % 2 else names[::-1], answer["ids"], strict=True):
            assert (id_, "message", f"{number}", None) in outside.log(name)


def test_a_key_publishes_once(outside: Outside, stream: str) -> None:
    """The same again answers the same ids; another body is refused; another publisher's same key is another."""
    batch = [event(stream, "1"), event(stream, "2")]
    assert outside.post(batch, "k1") == outside.post(batch, "k1") == (200, {"ids": [1, 2]})
    respaced = json.dumps([dict(reversed(item.items())) for item in batch], indent=2).encode()
    assert outside.post(respaced, "k1") == (200, {"ids": [1, 2]})
    status, answer = outside.post([event(stream, "1"), event(stream, "3")], "k1")
    assert (status, "other events" in answer["error"]) == (422, True)
    assert outside.post(batch, "k2") == (200, {"ids": [3, 4]})
    assert outside.post(batch, "k1", sign_publisher(stream, secrets=[SECRET])) == (200, {"ids": [5, 6]})
    assert outside.post(batch, "k1", sign_publisher("*", secrets=[SECRET], ttl_s=60)) == (200, {"ids": [1, 2]})
    assert len(outside.log(stream)) == 6


def test_a_key_is_free_again_when_nothing_came_of_it(outside: Outside, stream: str) -> None:
    """A request that PostgreSQL refused has published nothing, and its key can be used for the corrected one."""
    status, answer = outside.post([event(stream), event(stream, "x" * (1 << 20) + "x")], f"k-{stream}")
    assert (status, "headrace.max_payload_bytes" in answer["error"]) == (400, True)
    assert outside.post(event(stream), f"k-{stream}") == (200, {"id": 1})


def test_two_requests_with_a_key_race(outside: Outside, stream: str) -> None:
    """Both are under way at once; one publishes, the other waits for it and answers the same."""
    with psycopg.connect(outside.database.url) as blocker:
        headrace.publish_now(blocker, stream, "first")
        threads = []
        answers: list[Any] = []
        for _ in range(3):
            threads.append(threading.Thread(target=lambda: answers.append(outside.post(event(stream), "race"))))
            threads[-1].start()
        wait_until(lambda: _waiting(outside.database) == 3, "all three are in PostgreSQL")
        blocker.commit()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == [(200, {"id": 2})] * 3
    assert len(outside.log(stream)) == 2


def _waiting(database: Database) -> int:
    count: int = database.one(
        "select count(*) from pg_stat_activity where application_name = 'headrace router'"
        " and datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"
    )
    return count


def test_who_may_publish(outside: Outside, stream: str) -> None:
    """A publisher token and nothing else, for streams that match, all of a batch or none."""
    good = sign_publisher(f"{stream}:*", secrets=[SECRET])
    inside, other = event(f"{stream}:1"), event(stream)
    reader = sign(f"{stream}:1", secrets=[SECRET]).partition(".")[2]
    old = sign_publisher("*", secrets=[SECRET], ttl_s=1, now=1)
    for token in ("", "x", reader, old, good + "x", sign_publisher("*", secrets=["not-the-servers-secret"])):
        assert outside.post(inside, token=token)[0] == 401
    assert outside.post(inside, Authorization=f"Basic {good}")[0] == 401
    assert outside.post([inside, other], token=good)[0] == 403
    assert outside.log(f"{stream}:1") == []
    assert outside.post(inside, token=good, Authorization=f"bearer  {good}") == (200, {"id": 1})
    assert outside.router.get(f"/streams/1.{good}")[0] == 404


def test_what_is_wrong_is_said(outside: Outside, stream: str) -> None:
    """Each mistake has its status and a sentence, and publishes nothing."""
    for value, status in (
        (b"{", 400),
        ({"stream": stream}, 400),
        ([event(stream), event(stream, event="headrace:gap")], 400),
        (event(stream, visibleTo="staff"), 400),
        (f'{{"stream": "{stream}", "data": "x", "visible_to": "staff", "visible_to": null}}'.encode(), 400),
        ([event(stream)] * 1001, 413),
        (b" " * (5 << 20), 413),
    ):
        assert (outside.post(value)[0], value if outside.post(value)[1]["error"] else "") == (status, value)
    for key in ("a b", "ж".encode().decode("latin-1"), "x" * 256):
        assert outside.post(event(stream), key)[0] == 400
    assert outside.router.get("/publish")[0] == 405
    status, answer = outside.post(event(stream), path="/publish?visible_to=staff")
    assert (status, "fields of the body" in answer["error"]) == (400, True)
    assert outside.log(stream) == []


def test_a_page_of_an_allowed_origin_may_publish(outside: Outside) -> None:
    """The preflight allows what the request needs."""
    _, headers, _ = outside.router.get("/publish", method="OPTIONS", Origin=ORIGIN)
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert {"Authorization", "Idempotency-Key"} <= set(headers["Access-Control-Allow-Headers"].split(", "))


def test_keys_are_forgotten(outside: Outside, stream: str) -> None:
    """After the time that they are kept, the key is free."""
    assert outside.post(event(stream), "k") == (200, {"id": 1})
    sql_functions.forget_publications(outside.database.connection, 86_400)
    assert outside.post(event(stream), "k") == (200, {"id": 1})
    sql_functions.forget_publications(outside.database.connection, 0)
    assert outside.post(event(stream), "k") == (200, {"id": 2})


def test_while_postgresql_is_away(
    database: Database, database_url: str, shared_redis: RedisServer, postgres_proxy: Proxy
) -> None:
    """Cut, held or blocked, the answer is 503 in bounded time, and what follows is served; a key makes it safe."""
    router = Router(database_url=postgres_proxy.url(database_url), redis_url=shared_redis.url, publish_deadline_s=1.5)
    outside = Outside(router, database)
    try:
        assert outside.insist(event("s"), "k1") == (200, {"id": 1})
        postgres_proxy.cut()
        assert outside.post(event("s"), "k2")[0] == 503
        postgres_proxy.resume()
        assert outside.insist(event("s"), "k2") == (200, {"id": 2})
        with psycopg.connect(database.url) as blocker:
            headrace.publish_now(blocker, "s", "3")
            began = time.monotonic()
            answers = at_once(*(lambda n=n: outside.post(event("s"), f"busy-{n}") for n in range(8)))  # type: ignore[misc]
            assert {status for status, _ in answers} == {503}
            assert time.monotonic() - began < 20
            blocker.commit()
        assert len(outside.log("s")) == 3
        assert outside.insist(event("s"), "k1") == (200, {"id": 1})
        assert outside.insist(event("s"), "busy-0") == (200, {"id": 4})
    finally:
        router.remove()


def test_nobody_waits_for_a_router_that_has_fallen_silent(
    database: Database, database_url: str, shared_redis: RedisServer, postgres_proxy: Proxy
) -> None:
    """Whatever of a request is lost on the way to PostgreSQL, its streams are not locked, and its key is free."""
    router = Router(database_url=postgres_proxy.url(database_url), redis_url=shared_redis.url, publish_deadline_s=1.5)
    outside = Outside(router, database)
    try:
        assert outside.insist(event("s"), "k1") == (200, {"id": 1})
        postgres_proxy.deafen_at(b"commit\0")
        assert outside.post(event("s"), "k2")[0] == 503
        with database.connection.transaction():
            database.connection.execute("set local lock_timeout = '5s'")
            assert headrace.publish_now(database.connection, "s", "2") == 2
        postgres_proxy.resume()
        assert outside.insist(event("s"), "k2") == (200, {"id": 3})
        assert outside.insist(event("s"), "k2") == (200, {"id": 3})
    finally:
        router.remove()


def test_without_a_database_url_it_is_off(shared_redis: RedisServer) -> None:
    """A router that is given no database publishes for nobody."""
    router = Router(redis_url=shared_redis.url)
    try:
        assert router.get("/publish", method="POST", body=b"{}")[0] == 404
    finally:
        router.remove()


def test_a_token_that_makes_too_many_streams(module_database_url: str, shared_redis: RedisServer) -> None:
    """It gets 429 with a Retry-After, and nothing is published; streams that exist, and other tokens, go on."""
    router = Router(
        database_url=module_database_url,
        redis_url=shared_redis.url,
        publish_deadline_s=DEADLINE_S,
        publish_streams_per_s=0.001,  # the first request is let in, and pays for hours
    )
    database = Database(module_database_url)
    prefix = f"s{next(NUMBERS)}"
    outside = Outside(router, database)
    try:
        batch = [event(f"{prefix}:{n % 30}") for n in range(60)]
        status, answer = outside.post(batch)
        assert (status, answer["ids"]) == (200, [1] * 30 + [2] * 30)
        body = json.dumps([event(f"{prefix}:0"), event(f"{prefix}:new")]).encode()
        status, headers, refusal = router.get(
            "/publish", method="POST", body=body, Authorization=f"Bearer {outside.token}"
        )
        assert (status, "too many new streams" in json.loads(refusal)["error"]) == (429, True)
        assert 29_000 < int(headers["Retry-After"]) <= 30_000
        assert len(outside.log(f"{prefix}:0")) == 2
        assert outside.post(event(f"{prefix}:0")) == (200, {"id": 3})
        other = sign_publisher([f"{prefix}:*"], secrets=[SECRET])
        assert outside.post(event(f"{prefix}:new"), token=other) == (200, {"id": 1})
    finally:
        database.close()
        router.remove()
