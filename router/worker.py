"""The gunicorn worker class: gevent's, which lets go of a socket that the application has given away.

Rules that rest on gunicorn's code and are kept by tests: after a hand-off the worker neither reads, writes nor
calls shutdown() on the client's socket, and only closes its own descriptor. Imported by gunicorn's master before
gevent has patched anything, so nothing but gunicorn, gevent and what imports no more than these may be imported here.
"""

import socket
import sys
from contextlib import suppress
from typing import Any, Final

import gevent
import gunicorn.http.message
from gunicorn.http.parser import RequestParser
from gunicorn.workers.ggevent import GeventWorker

from headrace.router.bounded_request import BoundedRequest

# gunicorn caps `limit_request_line` at this constant, and 8190 bytes do not hold a token of many streams.
gunicorn.http.message.MAX_REQUEST_LINE = 56 * 1024
# gunicorn has no setting for the class of requests.
RequestParser.mesg_class = BoundedRequest

LINGER_S: Final = 1.0
MOST_LINGERED: Final = 4 << 20


class HeadraceWorker(GeventWorker):  # type: ignore[misc]
    """One router process. Its application MUST be what `headrace.router.app.create_application()` returns."""

    running = False
    """Whether this process is one of these, past the point where gevent has patched everything."""
    _failed = False

    def init_process(self) -> None:
        """Refuse TLS, then patch, load the application and serve until told to stop."""
        if self.cfg.is_ssl:
            # The cipher's state is in this process; the descriptor alone would be of no use to a shard.
            raise RuntimeError("the router cannot end TLS, since it gives sockets away; put a proxy in front")
        HeadraceWorker.running = True
        super().init_process()

    def run(self) -> None:
        """Start the application's background greenlet, then serve; exit non-zero if that greenlet died."""
        self.wsgi.start(self._part_failed)
        super().run()
        self.wsgi.stop()
        if self._failed:
            sys.exit(1)

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


def _linger(client: Any) -> None:
    """Read and drop what comes for a moment, so that the client can read the answer. Yields."""
    left = MOST_LINGERED
    with suppress(OSError, gevent.Timeout), gevent.Timeout(LINGER_S):
        client.shutdown(socket.SHUT_WR)
        while left > 0 and (data := client.recv(1 << 16)):
            left -= len(data)
