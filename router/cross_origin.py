"""Requests of pages that come from another origin: which headers let such a page read an answer.

A refused origin is logged, so that an operator who has forgotten it in HEADRACE_ALLOWED_ORIGINS finds out.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from headrace.router.metrics import RouterMetrics
from headrace.router.request import Request
from headrace.router.response import Headers

logger = logging.getLogger(__name__)

AGAIN_S: Final = 3600.0
MOST_A_MINUTE: Final = 10
MOST_ORIGINS: Final = 100
PREFLIGHT: Final[Headers] = (
    ("Access-Control-Allow-Methods", "GET, POST"),
    (
        "Access-Control-Allow-Headers",
        "Last-Event-ID, Cache-Control, X-Request-Id, Authorization, Content-Type, Idempotency-Key",
    ),
    ("Access-Control-Max-Age", "600"),
)
"""The headers of the answer to OPTIONS for a page of an allowed origin, besides those of `cors`."""


def cors(origin: str, allowed: Sequence[str]) -> Headers:
    """The headers that let a page of an allowed origin read the answer; a page of another origin gets none of them.

    Browsers require the exact origin, not `*`, where cookies are sent along (WHATWG Fetch, 3.3.5). Every answer has
    Vary, so that a cache does not give it to a page of another origin.
    """
    if not allowed:
        return ()
    if origin not in allowed:
        return (("Vary", "Origin"),)
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Expose-Headers", "Retry-After, X-Request-Id"),
        ("Vary", "Origin"),
    )


class RefusedOrigins:
    """Counts the requests of pages whose origin is not allowed, and logs each origin. Called by any request greenlet.

    Anybody can send any number of origins. So the log names an origin once an hour, and a few origins a minute.
    """

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._told: OrderedDict[str, float] = OrderedDict()

    def note(self, request: Request, origin: str) -> None:
        """Note the request of a page whose origin is not allowed, unless it is this server's own origin."""
        if request.headers.get("sec-fetch-site") in ("same-origin", "none"):
            return
        if _host(origin) == request.headers.get("host", "").lower():
            return
        self._metrics.refused_origin()
        if self.is_news(origin, time.monotonic()):
            about = {"request_id": request.id, "origin": origin[:200]}
            logger.warning(
                "origin refused: it is not in HEADRACE_ALLOWED_ORIGINS; add it if its pages may read", extra=about
            )

    def is_news(self, origin: str, now: float) -> bool:
        """Whether this origin is to be logged; now is in seconds of a clock that never goes back."""
        origin = origin[:200]
        if now - self._told.get(origin, -AGAIN_S) < AGAIN_S:
            return False
        if sum(now - told < 60 for told in self._told.values()) >= MOST_A_MINUTE:
            return False
        self._told[origin] = now
        self._told.move_to_end(origin)
        if len(self._told) > MOST_ORIGINS:
            self._told.popitem(last=False)
        return True


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
