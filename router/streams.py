"""`GET /streams/<slot>.<token>`: admit, choose, hand over."""

import logging
import random
import time
from collections.abc import Sequence
from typing import Final

from headrace.errors import CursorError, HandoffError, TokenError, TokenExpiredError
from headrace.handoff import Handoff, encode
from headrace.passing import Channels, Outcome
from router.auth import Admission, ForbiddenError, admit
from router.metrics import Metrics
from router.placement import Placement
from router.request import Request
from router.response import Headers, Response, as_error

logger = logging.getLogger(__name__)

_RETRY_AFTER_S: Final = (1, 5)


class Streams:
    """The stream endpoint. Called by any request greenlet; keeps nothing between requests."""

    def __init__(
        self,
        *,
        secrets: Sequence[str],
        max_streams: int,
        placement: Placement,
        channels: Channels,
        metrics: Metrics,
    ) -> None:
        self._secrets = secrets
        self._max_streams = max_streams
        self._placement = placement
        self._channels = channels
        self._metrics = metrics

    def __call__(self, request: Request, headers: Headers) -> Response | None:
        """Answer with an error, or give the client away and return None. Yields.

        headers go on the shard's response. None means that the socket MUST NOT be touched again.
        """
        try:
            admission = admit(request, secrets=self._secrets, max_streams=self._max_streams)
            message = _message(request, admission, headers)
        except (TokenExpiredError, ForbiddenError) as error:
            return as_error(403, error)
        except TokenError as error:
            return as_error(404, error)
        except (CursorError, HandoffError) as error:
            return as_error(400, error)
        return self._hand_off(request, admission.slot, message)

    def _hand_off(self, request: Request, slot: int, message: bytes) -> Response | None:
        began = time.monotonic()
        tried: list[str] = []
        for shard in self._placement.order(slot):
            passed = self._channels.give(shard.path, message, request.client)
            self._metrics.offered(passed.outcome.value)
            if passed.outcome in (Outcome.STALLED, Outcome.SILENT):
                self._placement.suspect(shard.id)
            if passed.client_gone:
                seconds = time.monotonic() - began
                if passed.outcome is Outcome.ACCEPTED:
                    self._metrics.handed_off(seconds)
                logger.log(
                    logging.INFO if passed.outcome is Outcome.ACCEPTED else logging.WARNING,
                    "hand-off %s: request %s of %s, slot %d, shard %s, %.1f ms%s",
                    *(passed.outcome.value, request.id, request.peer, slot, shard.id),
                    *(seconds * 1000, passed.reason and f": {passed.reason}"),
                )
                return None
            tried.append(f"{shard.id} {passed.outcome.value}: {passed.reason}")
        logger.warning(
            "hand-off failed: request %s of %s, slot %d: %s",
            *(request.id, request.peer, slot, "; ".join(tried) or "no shard is known"),
        )
        # Spread, or all clients would come back at once.
        retry_after = str(random.randint(*_RETRY_AFTER_S))
        return as_error(
            503, "no shard accepts clients now; try again after Retry-After", (("Retry-After", retry_after),)
        )


def _message(request: Request, admission: Admission, headers: Headers) -> bytes:
    return encode(Handoff(admission.streams, admission.context, request.id, request.peer, headers))
