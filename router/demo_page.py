"""The demo page and its two endpoints, served only with HEADRACE_DEMO on.

GET  /demo/config    {"streams": {"chat": "/streams/…?since=all", "board": …, "likes": …}}
POST /demo/publish   {"stream": "chat" | "board" | "likes", "data": "<text>", "event": "message"}  ->  204
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final

import psycopg

from headrace.errors import DatabaseUnavailableError, UsageError
from headrace.node.postgres_errors import meaning, said
from headrace.node.session import connect
from headrace.publish import publish
from headrace.router.errors import TooLargeError, error_response
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_error, as_json
from headrace.tokens import sign

logger = logging.getLogger(__name__)

STREAMS: Final = {"chat": "all", "board": "all", "likes": "now"}
"""Each demo stream with where its subscribers begin; `demo:<name>` in the log."""
MAX_BODY_BYTES: Final = 64 * 1024
MAX_DATA_CHARS: Final = 8 * 1024
_CONNECT_TIMEOUT_S: Final = 3


class DemoPage:
    """The demo's endpoints. Called by any request greenlet; keeps nothing between requests.

    publish_one(stream, data, event) publishes in a transaction of its own; a body comes within body_deadline_s.
    """

    def __init__(
        self, *, secrets: Sequence[str], publish_one: Callable[[str, str, str], None], body_deadline_s: float
    ) -> None:
        self._secrets = secrets
        self._body_deadline_s = body_deadline_s
        self._publish_one = publish_one

    def config(self, request: Request, headers: Headers) -> Response:
        """The signed URLs of the demo streams."""
        paths = {
            name: f"/streams/{sign(f'demo:{name}', secrets=self._secrets)}?since={since}"
            for name, since in STREAMS.items()
        }
        return as_json(200, {"streams": paths})

    def publish(self, request: Request, headers: Headers) -> Response:
        """Publish one event into a demo stream. Yields."""
        if request.headers.get("sec-fetch-site") == "cross-site":
            return as_error(403, "the demo publishes for its own page only; open it at this address")
        try:
            stream, data, event = _event(request.read_body(MAX_BODY_BYTES, self._body_deadline_s))
            self._publish_one(f"demo:{stream}", data, event)
        except UsageError as error:
            return error_response(error)
        except psycopg.Error as error:
            logger.error("the demo could not publish: %s", said(error))
            return as_error(503, DatabaseUnavailableError(meaning(error).sentence), (("Retry-After", "2"),))
        return Response(204)


def publisher(database_url: str) -> Callable[[str, str, str], None]:
    """A function that publishes over a connection of its own each time; a demo needs no pool."""

    def publish_one(stream: str, data: str, event: str) -> None:
        with closing(connect(database_url, "headrace demo", timeout_s=_CONNECT_TIMEOUT_S)) as connection:
            publish(connection, stream, data, event=event)

    return publish_one


def _event(body: bytes) -> tuple[str, str, str]:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the body is not JSON; send an object with stream, data and event") from None
    if not isinstance(value, dict) or value.get("stream") not in list(STREAMS):
        raise UsageError(f"stream must be one of {', '.join(STREAMS)}; name one")
    data, event = value.get("data"), value.get("event", "message")
    if not isinstance(data, str) or not isinstance(event, str):
        raise UsageError("data and event must be text; send both as JSON strings")
    if len(data) > MAX_DATA_CHARS:
        raise TooLargeError(f"data has {len(data)} characters; the demo allows {MAX_DATA_CHARS}")
    return value["stream"], data, event
