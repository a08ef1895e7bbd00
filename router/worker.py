"""The gunicorn worker class: gevent's, which lets go of a socket that the application has given away.

Rules that rest on gunicorn's code and are kept by tests: after a hand-off the worker neither reads, writes nor
calls shutdown() on the client's socket, and only closes its own descriptor. Imported by gunicorn's master before
gevent has patched anything, so nothing but gunicorn, gevent and what imports no more than these may be imported here.
"""

import gc
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

import gevent
import gunicorn.http.message
from gevent.server import StreamServer
from gunicorn import config
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import Response
from gunicorn.workers.ggevent import GeventWorker

from headrace.router.bounded_request import BoundedRequest

# gunicorn caps `limit_request_line` at this constant, and 8190 bytes do not hold a token of many streams.
gunicorn.http.message.MAX_REQUEST_LINE = 56 * 1024
# gunicorn has no setting for the class of requests.
RequestParser.mesg_class = BoundedRequest

USUAL_BYTES: Final = 8192
"""The longest head that is read without gunicorn's parser."""
MOST_ACCEPTED: Final = 16
"""The most connections that a worker accepts before it goes on with those that it has."""
LINGER_S: Final = 1.0
MOST_LINGERED: Final = 4 << 20


class HeadraceWorker(GeventWorker):  # type: ignore[misc]
    """One router process. Its application MUST be what `headrace.router.app.create_application()` returns."""

    running = False
    """Whether this process is one of these, past the point where gevent has patched everything."""
    alive = True
    _failed = False
    _usual_bytes = 0
    _left_s: float | None = None

    def init_process(self) -> None:
        """Refuse TLS, then patch, load the application and serve until told to stop."""
        if self.cfg.is_ssl:
            # The cipher's state is in this process; the descriptor alone would be of no use to a shard.
            raise RuntimeError("the router cannot end TLS, since it gives sockets away; put a proxy in front")
        HeadraceWorker.running = True
        super().init_process()

    def run(self) -> None:
        """Start the application's background greenlet, then serve; exit non-zero if that greenlet died."""
        self._usual_bytes = _usual_bytes(self.cfg)
        self._most_headers = int(self.cfg.limit_request_fields)
        self._deadline_s = float(self.cfg.keepalive)
        self.server_class = self._server
        self.wsgi.start(self._part_failed)
        # The objects of now live as long as the process: the garbage collector need not look at them again.
        gc.freeze()
        super().run()
        self.wsgi.stop()
        if self._failed:
            sys.exit(1)

    def _server(self, listener: Any, *, spawn: Any, **_: Any) -> StreamServer:
        """What accepts connections, in place of gunicorn's, which wakes up for each of them in turn.

        Of a few connections that come at once one worker may so take more than another, for the moment that a hand-off
        takes. gunicorn gives further arguments to servers that know WSGI by themselves.
        """
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=spawn)
        server.max_accept = MOST_ACCEPTED
        return server

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection. A first request that is a usual one costs neither gunicorn's parser nor WSGI. Yields.

        The bytes are only looked at until the whole head is known to be usual, so that gunicorn finds any other head
        untouched.
        """
        if self._usual_bytes:
            began = time.monotonic()
            client.settimeout(self._deadline_s)
            try:
                head = client.recv(self._usual_bytes + 1, socket.MSG_PEEK)
            except TimeoutError:
                return
            except OSError:
                head = b""
            request = (
                self.wsgi.usual(head, addr, client, self._most_headers) if len(head) <= self._usual_bytes else None
            )
            if request is None:
                self._left_s = self._deadline_s - (time.monotonic() - began)
            elif self._serve_usual(request, head, client, addr):
                return
        super().handle(listener, client, addr)

    def timeout_ctx(self) -> gevent.Timeout:
        """The bound on the time for a head. Of a first head some may be gone, since `handle` has waited for bytes."""
        # `handle` sets it, and gunicorn asks for it before anything yields.
        left_s, self._left_s = self._left_s, None
        return gevent.Timeout(self._deadline_s if left_s is None else max(0.001, left_s), False)  # type: ignore[arg-type]

    def _serve_usual(self, request: Any, head: bytes, client: Any, addr: Any) -> bool:
        """Serve a usual request. True if gunicorn has nothing more to do here: it was the last one, or the client was
        given away. Yields."""
        client.recv(len(head))
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        response = self.wsgi.serve(request)
        if response is None:
            return True
        client.settimeout(None)
        answer = Response(next(RequestParser(self.cfg, [head], addr)), client, self.cfg)
        if not self.alive:
            answer.force_close()
        try:
            answer.start_response(response.status_line, list(response.headers))
            answer.write(response.body)
            answer.close()
        except OSError as error:
            self.log.debug("a client has not taken its answer: %s", error)
            return True
        return bool(answer.should_close())

    def is_already_handled(self, respiter: object) -> bool:
        """End the connection's loop here after a hand-off: it would read a socket that is another's."""
        if super().is_already_handled(respiter):
            raise StopIteration
        return False

    def handle_request(self, listener_name: Any, req: BoundedRequest, sock: Any, addr: Any) -> None:
        """Serve a request. One whose body was not read is the connection's last, and its client still gets the answer:
        a socket that is closed with unread bytes would take it back. Yields."""
        try:
            super().handle_request(listener_name, req, sock, addr)
        except StopIteration:
            if req.body_left:
                _linger(sock)
            raise

    def _part_failed(self) -> None:
        self._failed = True
        self.alive = False


def _usual_bytes(cfg: config.Config) -> int:
    """The longest head that may be read as a usual one, below each limit of a part; 0 for none at all."""
    ours = (
        cfg.proxy_protocol == "off"
        and cfg.keepalive
        and cfg.pre_request is config.PreRequest.default
        and cfg.post_request is config.PostRequest.default
    )
    return min(USUAL_BYTES, cfg.limit_request_line, cfg.limit_request_field_size) if ours else 0


def _linger(client: Any) -> None:
    """Read and drop what comes for a moment, so that the client can read the answer. Yields."""
    left = MOST_LINGERED
    with suppress(OSError, gevent.Timeout), gevent.Timeout(LINGER_S):
        client.shutdown(socket.SHUT_WR)
        while left > 0 and (data := client.recv(1 << 16)):
            left -= len(data)
