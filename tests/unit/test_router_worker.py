"""What the router's worker does beside gunicorn's, without a server."""

import gc
import socket
from typing import Any

import gevent
import gevent.pool
import gevent.socket
import pytest
from gunicorn.config import Config
from gunicorn.workers.ggevent import GeventWorker

from headrace.router.request import Request
from headrace.router.response import Response, as_error
from headrace.router.worker import HeadraceWorker

HEAD = b"GET /streams/1.x HTTP/1.1\r\nHost: h\r\n\r\n"


class Served:
    """An application that knows one request, answers it with 404, and notes what it was given."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    def usual(self, head: bytes, address: object, client: socket.socket, most_headers: int) -> object | None:
        self.heads.append(head)
        return object() if head == HEAD else None

    def serve(self, request: Request) -> Response:
        return as_error(404, "nothing")


def made(monkeypatch: pytest.MonkeyPatch, passed_on: list[tuple[float, bytes]], **settings: Any) -> HeadraceWorker:
    """A worker that is ready to serve; what it leaves to gunicorn is noted with the time that is left for the head."""
    cfg = Config()
    for name, value in {"keepalive": 600, "worker_class": "gevent", **settings}.items():
        cfg.set(name, value)

    def handle(worker: HeadraceWorker, listener: object, client: socket.socket, addr: object) -> None:
        client.setblocking(False)
        try:
            data = client.recv(1 << 16)
        except BlockingIOError:
            data = b""
        passed_on.append((worker.timeout_ctx().seconds, data))

    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(GeventWorker, "handle", handle)
    monkeypatch.setattr(GeventWorker, "run", lambda worker: None)
    worker = HeadraceWorker(1, 1, [], None, 30, cfg, None)
    worker.tmp.close()
    worker.wsgi = type("Application", (Served,), {"start": lambda self, failed: None, "stop": lambda self: None})()
    worker.run()
    return worker


@pytest.fixture
def sockets() -> Any:
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        yield ours, theirs


def test_a_head_that_is_not_usual_is_left_untouched(monkeypatch: pytest.MonkeyPatch, sockets: Any) -> None:
    """gunicorn gets every byte of it, and no more time for it than is left of the deadline."""
    passed_on: list[tuple[float, bytes]] = []
    worker = made(monkeypatch, passed_on)
    ours, theirs = sockets
    gevent.spawn_later(0.01, theirs.sendall, HEAD[:-1])
    worker.handle(None, ours, ("192.0.2.7", 1))
    ((seconds, data),) = passed_on
    assert data == HEAD[:-1]
    assert seconds < 600
    assert worker.timeout_ctx().seconds == 600


def test_an_answered_client_may_ask_again(monkeypatch: pytest.MonkeyPatch, sockets: Any) -> None:
    """A usual request is read as a whole and answered, and gunicorn goes on with the connection."""
    passed_on: list[tuple[float, bytes]] = []
    worker = made(monkeypatch, passed_on)
    ours, theirs = sockets
    theirs.sendall(HEAD)
    worker.handle(None, ours, ("192.0.2.7", 1))
    assert theirs.recv(4096).startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert passed_on == [(600, b"")]
    assert worker.nr == 1


def test_requests_are_counted_up_to_the_last(monkeypatch: pytest.MonkeyPatch, sockets: Any) -> None:
    """With gunicorn's max_requests a usual request counts like any other, and the last one ends its connection."""
    passed_on: list[tuple[float, bytes]] = []
    worker = made(monkeypatch, passed_on, max_requests=1)
    worker.log = type("Log", (), {"info": lambda *words: None})
    ours, theirs = sockets
    theirs.sendall(HEAD)
    worker.handle(None, ours, ("192.0.2.7", 1))
    assert b"\r\nConnection: close\r\n" in theirs.recv(4096)
    assert not worker.alive
    assert passed_on == []


@pytest.mark.parametrize(
    "settings",
    [
        {"proxy_protocol": "auto"},
        {"pre_request": lambda worker, request: None},
        {"post_request": lambda worker, request, environ, response: None},
    ],
)
def test_what_gunicorn_alone_knows_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, sockets: Any, settings: dict[str, Any]
) -> None:
    """Where gunicorn is to do something with each request or connection, it reads them all."""
    passed_on: list[tuple[float, bytes]] = []
    worker = made(monkeypatch, passed_on, **settings)
    ours, theirs = sockets
    theirs.sendall(HEAD)
    worker.handle(None, ours, ("192.0.2.7", 1))
    assert passed_on == [(600, HEAD)]
    assert worker.wsgi.heads == []


def test_a_head_above_a_limit_is_gunicorns(monkeypatch: pytest.MonkeyPatch, sockets: Any) -> None:
    """A head that is longer than the shortest limit of a part of it is gunicorn's to judge."""
    passed_on: list[tuple[float, bytes]] = []
    worker = made(monkeypatch, passed_on, limit_request_field_size=len(HEAD) - 1)
    ours, theirs = sockets
    theirs.sendall(HEAD)
    worker.handle(None, ours, ("192.0.2.7", 1))
    assert [data for _, data in passed_on] == [HEAD]
    assert worker.wsgi.heads == []


def test_connections_that_wait_are_accepted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the listening socket takes several connections, and each is handled with its listener."""
    worker = made(monkeypatch, [])
    handled: list[object] = []
    monkeypatch.setattr(worker, "handle", lambda listener, client, address: handled.append(listener))
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = worker.server_class(listener, spawn=gevent.pool.Pool(10), application=None)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    try:
        server._do_read()
        assert len(server.pool) == 3
        server.pool.join(20)
        assert handled == [listener] * 3
    finally:
        for client in clients:
            client.close()
        server.stop()
