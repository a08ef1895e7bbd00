"""The endpoints of the operations page, served only with HEADRACE_OPS_TOKEN.

    GET    /ops  /ops.js  /ops.css                                       the page, which has nothing secret in it
    POST   /ops/session {"token": …}   DELETE /ops/session               sign in and out
    GET    /ops/stream   {"src": "/streams/…"}                           the page's feed, for a few minutes each time
    GET    /ops/status   as `headrace status --json`, with "at"      what this router knows, for when the feed is silent
    POST   /ops/plan {"action": …, "shard": …}                           what would happen, as of which epoch
    POST   /ops/act  {"action": …, "shard": …, "epoch": …}               have it happen, if that is still so; when done

An action is "drain", "undrain" or "rebalance", the last without a shard. All but the first line is for operators.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import psycopg

from headrace.errors import DatabaseUnavailableError, DirectoryUnavailableError, UsageError
from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.overview import overview
from headrace.node.shard_operations import Plan, ShardOperations
from headrace.router.client_addresses import ClientAddresses
from headrace.router.client_placement import ClientPlacement
from headrace.router.database_pool import DatabasePool
from headrace.router.errors import ANSWERED, StalePlanError, error_response
from headrace.router.operator_auth import OperatorAuth
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_json
from headrace.settings import Settings
from headrace.stream import OPS_AUDIENCE, OPS_STREAM
from headrace.tokens import sign

logger = logging.getLogger(__name__)

STREAM_LIFE_S: Final = 600.0
HISTORY: Final = 150
"""Overviews that a page begins with, as long as they are kept: five minutes of them."""
DEADLINE_S: Final = 45.0
"""For an operation: less than proxies wait for an answer."""
MAX_BODY_BYTES: Final = 4096
_HEAD: Final = "select headrace.head(%s)"


class OperationsPage:
    """The endpoints. Called by any request greenlet; keeps the last overview, and wrong guesses, between requests."""

    def __init__(
        self,
        settings: Settings,
        operators: OperatorAuth,
        placement: ClientPlacement,
        directory: Directory,
        peers: ClientAddresses,
        database: DatabasePool | None,
    ) -> None:
        self._settings = settings
        self._placement = placement
        self._directory = directory
        self._last: DirectorySnapshot | None = None
        self._peers = peers
        self._database = database
        self._operators = operators

    def session(self, request: Request, headers: Headers) -> Response:
        """Sign in, or out. Yields."""
        if request.method == "DELETE":
            return self._operators.sign_out(request, time.time())

        def sign_in(body: Mapping[str, Any]) -> Response:
            token = body.get("token")
            if not isinstance(token, str):
                raise UsageError('the body has no token; send {"token": …}')
            response = self._operators.sign_in(request, token, self._host(request), time.time())
            if response.status != 429:
                logger.log(
                    logging.INFO if response.status == 204 else logging.WARNING,
                    "operator signs in",
                    extra={"request_id": request.id, "peer": self._host(request), "status": response.status},
                )
            return response

        return self._with_body(request, sign_in)

    def stream(self, request: Request, headers: Headers) -> Response:
        """The signed URL of the feed. Yields."""
        if refusal := self._refusal(request):
            return refusal
        life_s = min(STREAM_LIFE_S, self._settings.max_token_life_s or STREAM_LIFE_S)
        token = sign(OPS_STREAM, secrets=self._settings.secret, audiences=[OPS_AUDIENCE], ttl_s=life_s)
        return as_json(200, {"src": f"/streams/{token}?since={self._since()}"})

    def status(self, request: Request, headers: Headers) -> Response:
        """What is known here of the deployment; while Redis is away, what was last asked for, or this node. Yields."""
        if refusal := self._refusal(request):
            return refusal
        away = self._placement.directory_away
        if not away:
            try:
                self._last = self._directory.read(self._last)
            except DirectoryUnavailableError:
                away = True
        known = {"at": time.time_ns() // 1_000_000, **overview(self._last or self._placement.known)}
        return as_json(200, known | {"redis": "away"} if away else known)

    def plan(self, request: Request, headers: Headers) -> Response:
        """What an action would do. Yields."""
        return self._refusal(request) or self._with_body(request, lambda body: as_json(200, _shown(self._plans(body))))

    def act(self, request: Request, headers: Headers) -> Response:
        """Carry an action out, as its plan was shown. Yields until it is done."""

        def act(body: Mapping[str, Any]) -> Response:
            plans = self._plans(body)
            if _shown(plans)["epoch"] != body.get("epoch"):
                raise StalePlanError()
            action, shard = body["action"], str(body.get("shard", ""))
            about = {"request_id": request.id, "peer": self._host(request), "action": action, "shard": shard}
            logger.warning("operator acts", extra=about)
            operations = self._operations()
            done: Mapping[str, Callable[[], object]] = {
                "drain": lambda: operations.drain(shard),
                "undrain": lambda: operations.undrain(shard),
                "rebalance": lambda: operations.rebalance(plans),
            }
            done[action]()
            logger.warning("operator's action is done", extra=about)
            return as_json(200, {"done": action, "shard": shard})

        return self._refusal(request) or self._with_body(request, act)

    def _with_body(self, request: Request, answer: Callable[[Mapping[str, Any]], Response]) -> Response:
        """The answer to a body that is a JSON object, or why there is none. Yields."""
        try:
            try:
                body = json.loads(request.read_body(MAX_BODY_BYTES, self._settings.request_deadline_s))
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict):
                raise UsageError("the body is not a JSON object; send one")
            return answer(body)
        except ANSWERED as error:
            return error_response(error)

    def _plans(self, body: Mapping[str, Any]) -> list[Plan]:
        action, shard, operations = body.get("action"), body.get("shard", ""), self._operations()
        if not isinstance(shard, str):
            raise UsageError("shard must be the id of one; send it as text")
        if action == "drain":
            return [operations.drain_plan(shard)]
        if action == "undrain":
            return [operations.undrain_plan(shard)]
        if action != "rebalance":
            raise UsageError("action must be drain, undrain or rebalance; name one")
        plans = operations.plans()
        if not plans:
            raise UsageError("no shard is up; start one first")
        return plans

    def _operations(self) -> ShardOperations:
        return ShardOperations(self._directory, logger.info, deadline_s=DEADLINE_S)

    def _refusal(self, request: Request) -> Response | None:
        return self._operators.refusal(request, self._host(request), time.time())

    def _host(self, request: Request) -> str:
        return self._peers.client(request.peer, request.headers.get("x-forwarded-for", "")).rpartition(":")[0]

    def _since(self) -> str:
        """Where a page begins: with some history, of which a log that is kept long would have too much."""
        if self._database is None:
            return "all"

        try:
            (newest,) = self._database.fetch(_HEAD, (OPS_STREAM,))
        except (DatabaseUnavailableError, psycopg.Error):
            return "now"
        return str(newest - HISTORY) if newest > HISTORY else "all"


def _shown(plans: list[Plan]) -> dict[str, Any]:
    """Plans as the page shows them."""
    rows = [
        {
            "node": plan.node,
            "shard": shard,
            "slots": slots,
            "slots_then": plan.after[shard],
            "connections": plan.connections[shard],
        }
        for plan in plans
        for shard, slots in plan.before.items()
    ]
    return {"epoch": "{} {}".format(*plans[0].epoch), "moves": sum(plan.moves for plan in plans), "rows": rows}
