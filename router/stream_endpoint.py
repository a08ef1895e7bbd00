"""`GET /streams/<slot>.<token>`: admit, choose, hand over."""

import logging
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from headrace.event import RESPONSE_HEADERS
from headrace.node.client_lines import ClientLines
from headrace.node.handoff import REFUSED_FULL, REFUSED_GONE, REFUSED_LIMIT, REFUSED_REVOKED, Handoff, forms
from headrace.node.socket_passing import Channels, Outcome
from headrace.router.auth import Terms, admit
from headrace.router.client_addresses import ClientAddresses
from headrace.router.client_placement import ClientPlacement
from headrace.router.connection_limits import ConnectionLimits
from headrace.router.errors import ANSWERED, ClientGoneError, error_response
from headrace.router.metrics import RouterMetrics
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_error
from headrace.stream import CANARY_PREFIX

logger = logging.getLogger(__name__)

_RETRY_AFTER_S: Final = (1, 5)
_OVER_LIMIT: Final = 429
"""For a client whose user or address has enough connections. After 503 a proxy would try the other nodes, which count
the same, and would take each of them for broken."""


class StreamEndpoint:
    """The stream endpoint. Called by any request greenlet; keeps nothing between requests."""

    def __init__(
        self,
        *,
        terms: Terms,
        placement: ClientPlacement,
        limits: ConnectionLimits,
        peers: ClientAddresses,
        channels: Channels,
        metrics: RouterMetrics,
        log_clients_per_s: int,
        deployment: Callable[[], str] = lambda: "",
    ) -> None:
        """log_clients_per_s is how many lines about clients are logged a second.

        deployment returns the identity of this one, "" for unknown: no shard of another takes its clients.
        """
        self._terms = terms
        self._placement = placement
        self._limits = limits
        self._peers = peers
        self._channels = channels
        self._metrics = metrics
        self._deployment = deployment
        self._lines = ClientLines(logger, "hand-off", log_clients_per_s)

    def __call__(self, request: Request, headers: Headers) -> Response | None:
        """Answer with an error, or give the client away and return None. Yields.

        headers go on the shard's response. None means that the socket MUST NOT be touched again.
        """
        try:
            admission = admit(request, self._terms)
            peer = self.peer(request)
            handoff = Handoff(
                admission.streams,
                admission.context,
                request.id,
                peer,
                headers,
                chunked=request.understands_chunks,
                deployment=self.deployment(),
            )
            message = forms(handoff)
        except ANSWERED as error:
            return error_response(error)
        limits = self._limits.of(admission.context.user, handoff.peer)
        refusal = self._limits.refusal(request.id, limits)
        if refusal:
            self._log(logging.WARNING, handoff, admission.slot, "limited", "", refusal.sentence, 0.0)
            return _later(refusal.sentence, 503 if refusal.elsewhere else _OVER_LIMIT)
        if request.method == "HEAD":
            self._limits.release(request.id, limits)
            return self._head(admission.slot, handoff)
        try:
            response = self.hand_off(request, admission.slot, handoff, message)
        except ClientGoneError:
            self._limits.release(request.id, limits)
            return None
        if response is not None:
            self._limits.release(request.id, limits)
        return response

    def deployment(self) -> str:
        """The identity that goes with every client, "" while it is unknown."""
        return self._deployment()

    def _head(self, slot: int, handoff: Handoff) -> Response:
        """The response that a GET would get, as far as a router knows."""
        if self._placement.drained:
            return _later("this node is being drained")
        if not any(self._placement.order(slot, handoff.streams[0][0], handoff.peer)):
            return _later("no shard is known")
        return Response(200, headers=RESPONSE_HEADERS, sized=False)

    def peer(self, request: Request) -> str:
        """The client's address, from the header of a proxy that is trusted with it."""
        return self._peers.client(request.peer, request.headers.get("x-forwarded-for", ""))

    def hand_off(self, request: Request, slot: int, handoff: Handoff, message: Sequence[bytes]) -> Response | None:
        """Give the client to a shard and return None, or say why none takes it. message is the hand-off's. Yields.

        Raises ClientGoneError if the client has broken off, and no shard has it.
        """
        began = time.monotonic()
        tried: list[str] = []
        guest = gone = False
        for shard in self._placement.order(slot, handoff.streams[0][0], handoff.peer):
            if gone := _is_gone(request.client):
                break
            offered = forms(replace(handoff, guest=True)) if shard.guest or guest else message
            passed = self._channels.give(shard.path, offered, request.client)
            self._metrics.offered(REFUSED_GONE if passed.reason == REFUSED_GONE else passed.outcome.value)
            if gone := passed.reason == REFUSED_GONE:
                break
            if passed.outcome is Outcome.REFUSED and passed.reason == REFUSED_REVOKED:
                return as_error(403, "the token was revoked; ask the application for a fresh stream URL")
            if passed.outcome in (Outcome.STALLED, Outcome.SILENT):
                self._placement.suspect(shard.id)
            if passed.client_gone:
                seconds = time.monotonic() - began
                if passed.outcome is Outcome.ACCEPTED:
                    self._metrics.handed_off(seconds)
                    self._placement.gave(shard.id)
                level = logging.INFO if passed.outcome is Outcome.ACCEPTED else logging.WARNING
                self._log(level, handoff, slot, passed.outcome.value, shard.id, passed.reason, seconds)
                return None
            tried.append(f"{shard.id} {passed.outcome.value}: {passed.reason}")
            if passed.reason == REFUSED_LIMIT:
                return _later("there are as many connections of this user or address as it may have", _OVER_LIMIT)
            # As a guest, the client is not moved back to this shard before the shard has room or answers again.
            guest = guest or passed.reason == REFUSED_FULL or passed.outcome is Outcome.STALLED
        if self._placement.drained:
            return _later("this node is being drained")
        if gone or _is_gone(request.client):
            self._log(logging.INFO, handoff, slot, REFUSED_GONE, "", "; ".join(tried), time.monotonic() - began)
            raise ClientGoneError
        reason = "; ".join(tried) or "no shard is known"
        self._log(logging.WARNING, handoff, slot, "failed", "", reason, time.monotonic() - began)
        return _later("no shard accepts clients now")

    def _log(
        self, level: int, handoff: Handoff, slot: int, outcome: str, shard: str, reason: str, seconds: float
    ) -> None:
        """The access log: a line for a client that asked for a stream, with the request id that the shard logs too."""
        if level == logging.INFO and handoff.streams[0][0].startswith(CANARY_PREFIX):
            level = logging.DEBUG
        self._lines.log(
            level,
            request_id=handoff.request_id,
            peer=handoff.peer,
            slot=slot,
            outcome=outcome,
            shard=shard,
            reason=reason,
            duration_ms=round(seconds * 1000, 1),
        )


def _is_gone(client: socket.socket) -> bool:
    """Whether a connection was reset, so that nobody can be served over it."""
    try:
        client.getpeername()
    except OSError:
        return True
    return False


def _later(why: str, status: int = 503) -> Response:
    # The times differ, so that not all clients come back at once.
    retry_after = str(random.randint(*_RETRY_AFTER_S))
    return as_error(status, f"{why}; try again after Retry-After", (("Retry-After", retry_after),))
