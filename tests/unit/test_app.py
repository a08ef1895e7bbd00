"""The router's routes, method rules and last resort, without a server."""

import json
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

import gevent
import pytest
from gunicorn.workers.base_async import ALREADY_HANDLED

from headrace.errors import SettingsError
from headrace.router.app import Application, Endpoint, Route, create_application
from headrace.router.metrics import RouterMetrics
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_json
from tests.fixtures.requests import environ


def ok(request: Request, headers: Headers) -> Response:
    return as_json(200, {"path": request.path})


def gives_away(request: Request, headers: Headers) -> None:
    return None


def fails(request: Request, headers: Headers) -> Response:
    raise RuntimeError("a secret that no client may see")


def application(
    follow: Callable[[], None] = lambda: None, stream: Endpoint = gives_away, below_a_path: bool = False
) -> Application:
    routes = {"/page": Route(ok), "/fails": Route(fails), "/post": Route(ok, ("POST",))}
    return Application(
        stream=Route(stream, ("GET",)),
        history=Route(ok, ("GET",)),
        routes=routes,
        allowed_origins=("https://app.example",),
        metrics=RouterMetrics(),
        follow=[follow],
        close=lambda: None,
        below_a_path=below_a_path,
    )


def call(path: str, **parts: Any) -> tuple[str, dict[str, str], Iterable[bytes]]:
    started: list[Any] = []
    raw = {name: parts.pop(name) for name in list(parts) if name == "RAW_URI"}
    body = application()(environ(path, **parts) | raw, lambda status, headers: started.extend((status, headers)))
    status, headers = started or ("", [])
    return status, dict(headers), body


def test_a_client_that_was_given_away_is_gunicorns_no_more() -> None:
    """When an endpoint gave the client away, gunicorn is told so and nothing is started."""
    status, headers, body = call("/streams/1.x")
    assert body is ALREADY_HANDLED
    assert (status, headers) == ("", {})


def test_a_response_has_its_length_and_request_id() -> None:
    """What the router answers itself is complete and carries the request's id."""
    status, headers, body = call("/page", x_request_id="r1")
    assert status == "200 OK"
    assert headers["X-Request-Id"] == "r1"
    assert headers["Content-Length"] == str(len(b"".join(body)))


def test_an_unexpected_error_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An error nobody foresaw is a 500 without its text, and a log line with it under the request id."""
    with caplog.at_level(logging.ERROR):
        status, _, body = call("/fails", x_request_id="r2")
    assert status == "500 Internal Server Error"
    assert b"secret" not in b"".join(body)
    assert "r2" in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/page", "GET", 200),
        ("/page", "HEAD", 200),
        ("/page", "POST", 405),
        ("/post", "GET", 405),
        ("/post", "POST", 200),
        ("/page/", "GET", 404),
        ("/streams", "GET", 404),
        ("/streams/1.x", "POST", 405),
        ("/streams/1.x", "OPTIONS", 204),
        ("/nowhere", "OPTIONS", 404),
    ],
)
def test_routes_and_methods(path: str, method: str, status: int) -> None:
    """A path is exact, and a method that it does not answer is told which it does."""
    got, headers, body = call(path, method=method)
    assert int(got.partition(" ")[0]) == status
    if status == 405:
        assert "OPTIONS" in headers["Allow"]
        assert method not in headers["Allow"].split(", ")
        assert method == "HEAD" or json.loads(b"".join(body))["error"]
    if method == "HEAD":
        assert b"".join(body) == b""
        assert int(headers["Content-Length"]) > 0


def test_a_path_has_one_spelling() -> None:
    """What a proxy's rule for a path does not see in a request, the router does not see in it either."""
    for raw in ("/%70age", "/p%61ge?x=1", "/page#x", "http://h/%70age"):
        assert call("/page", RAW_URI=raw)[0] == "404 Not Found"
    for raw in ("/page", "/page?x=%20", "http://h/page"):
        assert call("/page", RAW_URI=raw)[0] == "200 OK"
    assert call("/streams/1.x", RAW_URI="/streams/1%2Ex")[2] is ALREADY_HANDLED


def test_answers_are_what_they_say() -> None:
    """No answer is taken for something else than its type says, and a shard's neither."""
    given: list[Headers] = []

    def gives(request: Request, headers: Headers) -> None:
        given.append(headers)

    assert call("/page")[1]["X-Content-Type-Options"] == "nosniff"
    assert call("/nowhere")[1]["X-Content-Type-Options"] == "nosniff"
    made = application(stream=gives)
    made(environ("/streams/1.x", origin="https://app.example"), lambda *_: None)
    (headers,) = given
    assert dict(headers)["X-Content-Type-Options"] == "nosniff"
    assert dict(headers)["Access-Control-Allow-Origin"] == "https://app.example"


def test_no_other_kind_of_worker_is_served() -> None:
    """Where the worker class is another, the application is not made, since two processes would write to one client."""
    with pytest.raises(SettingsError, match=r"HeadraceWorker.*GUNICORN_CMD_ARGS"):
        create_application()


def test_a_preflight_is_for_allowed_origins() -> None:
    """An allowed origin is told which request headers it may send; another is told nothing of use."""
    _, headers, _ = call("/streams/1.x", method="OPTIONS", origin="https://app.example")
    assert headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Last-Event-ID" in headers["Access-Control-Allow-Headers"]
    _, headers, _ = call("/streams/1.x", method="OPTIONS", origin="https://evil.example")
    assert not [name for name in headers if name.startswith("Access-Control")]


def test_the_death_of_the_follower_is_loud(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the greenlet that follows the directory dies, it is logged and the worker is told to stop."""
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    failed: list[bool] = []

    def die() -> None:
        raise RuntimeError("no longer following")

    made = application(die)
    made.start(lambda: failed.append(True))
    gevent.wait(timeout=5)
    assert failed == [True]
    assert "no longer following" in caplog.text


def test_stopping_ends_the_follower_quietly() -> None:
    """A worker that stops in order does not report its follower as dead."""
    failed: list[bool] = []
    made = application(lambda: gevent.sleep(60))
    made.start(lambda: failed.append(True))
    gevent.sleep(0)
    made.stop()
    gevent.wait(timeout=5)
    assert failed == []


@pytest.mark.parametrize("origin", ["https://app.example", "https://other.example", ""])
@pytest.mark.parametrize("query", [b"", b"?since=1"])
def test_a_usual_request_is_answered_as_by_wsgi(origin: str, query: bytes) -> None:
    """Whoever reads a request, its answer has the same status, headers and body."""
    made = application(stream=lambda request, headers: as_json(200, [request.path, request.query, headers]))
    lines = [
        b"GET /streams/1.x%s HTTP/1.1" % query,
        b"X-Request-Id: r1",
        *([f"Origin: {origin}".encode()] * bool(origin)),
    ]
    usual = made.usual(b"\r\n".join([*lines, b"", b""]), ("192.0.2.7", 4711), cast(socket.socket, None), 64)
    assert usual is not None
    response = made.serve(usual)
    assert response is not None
    started: list[Any] = []
    named = {"x_request_id": "r1", **({"origin": origin} if origin else {})}
    body = made(environ("/streams/1.x", query=query[1:].decode(), **named), lambda *head: started.extend(head))
    assert started == [response.status_line, list(response.headers)]
    assert list(body) == [response.body]


def test_below_a_path_every_request_is_gunicorns() -> None:
    """Where gunicorn takes a part off each path, no request is read without it."""
    made = application(below_a_path=True)
    assert made.usual(b"GET /streams/1.x HTTP/1.1\r\n\r\n", "", cast(socket.socket, None), 64) is None
    assert application().usual(b"GET /streams/1.x HTTP/1.1\r\n\r\n", "", cast(socket.socket, None), 64) is not None
