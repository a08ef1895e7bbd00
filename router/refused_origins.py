"""Which origins' pages have asked in vain: said once each, so that a forgotten HEADRACE_ALLOWED_ORIGINS is found."""

import logging
import time
from collections import OrderedDict
from typing import Final
from urllib.parse import urlsplit

from headrace.router.metrics import RouterMetrics
from headrace.router.request import Request

logger = logging.getLogger(__name__)

AGAIN_S: Final = 3600.0
MOST_A_MINUTE: Final = 10
MOST_ORIGINS: Final = 100


class RefusedOrigins:
    """Counts requests of pages whose origin is not allowed, and logs each origin. Called by any request greenlet.

    A page may send any origin, and anybody may send many: the log has an origin once an hour, and few a minute.
    """

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._told: OrderedDict[str, float] = OrderedDict()

    def note(self, request: Request, origin: str) -> None:
        """A page of an origin that is not allowed has asked; nothing if it is this server's own."""
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
        """Whether this origin is to be logged; now is in seconds, of a clock that never goes back."""
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
