"""The gunicorn worker class: gevent's, which lets go of a socket that the application has given away.

Rules that rest on gunicorn's code and are kept by tests: after a hand-off the worker neither reads, writes nor
calls shutdown() on the client's socket, and only closes its own descriptor. Imported by gunicorn's master before
gevent has patched anything, so nothing but gunicorn and gevent may be imported here.
"""

import sys

import gunicorn.http.message
from gunicorn.workers.ggevent import GeventWorker

# gunicorn caps `limit_request_line` at this constant, and 8190 bytes do not hold a token of many streams.
gunicorn.http.message.MAX_REQUEST_LINE = 56 * 1024


class HeadraceWorker(GeventWorker):  # type: ignore[misc]
    """One router process. Its application MUST be what `router.app.create_application()` returns."""

    _failed = False

    def init_process(self) -> None:
        """Refuse TLS, then patch, load the application and serve until told to stop."""
        if self.cfg.is_ssl:
            # The cipher's state is in this process; the descriptor alone would be of no use to a shard.
            raise RuntimeError("the router cannot end TLS, since it gives sockets away; put a proxy in front")
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

    def _part_failed(self) -> None:
        self._failed = True
        self.alive = False
