"""`POST /publish`: events of publishers that are outside of the database and hold a publisher token.

    Authorization: Bearer <token of headrace.sign_publisher>
    Idempotency-Key: <1 to 255 visible ASCII characters>          optional

    {"stream": "room:1", "data": "hi", "event": "message", "visible_to": null}   ->  200 {"id": 17}
    [{"stream": …, "data": …}, …]                                                ->  200 {"ids": [17, 4]}

A batch is one transaction: all of it is published or nothing, and the ids are in the order given. A request that is
repeated with its key, also while the first is under way, publishes nothing and answers the same ids; the key belongs
to those whose tokens have the same patterns. Without a key, an answer that did not come leaves open what happened.

A token that would make more new streams than it may gets 429, and nothing is published.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from headrace import sql_calls
from headrace.errors import DatabaseUnavailableError, TokenError, UsageError
from headrace.node.postgres_errors import meaning, said
from headrace.publisher_tokens import Publisher, verify_publisher
from headrace.router.database_pool import DatabasePool
from headrace.router.errors import ForbiddenError, TooLargeError, error_response
from headrace.router.metrics import RouterMetrics
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_error, as_json
from headrace.router.stream_limit import StreamLimit

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4 << 20
MAX_EVENTS: Final = 1000
_KEY: Final = re.compile(r"[!-~]{1,255}")
_FIELDS: Final = {"stream", "data", "event", "visible_to"}
_ONCE: Final = "select headrace.publish_once(%s, %s, %s::text[], %s::text[], %s::text[], %s::text[])"
_MISSING: Final = "select headrace.count_missing(%s::text[])"
_KEY_USED: Final = "22HR1"

Event = tuple[str, str, str, str | None]
"""Stream, data, type, label."""


class PublishEndpoint:
    """The publishing endpoint. Called by any request greenlet; between requests it keeps what the limit counts."""

    def __init__(
        self,
        secrets: Sequence[str],
        database: DatabasePool,
        body_deadline_s: float,
        metrics: RouterMetrics,
        limit: StreamLimit,
    ) -> None:
        self._secrets = secrets
        self._database = database
        self._body_deadline_s = body_deadline_s
        self._metrics = metrics
        self._limit = limit

    def __call__(self, request: Request, headers: Headers) -> Response:
        """Publish the events of the body. The body is read only for a good token. Yields."""
        try:
            token = _bearer(request)
            publisher = verify_publisher(token, secrets=self._secrets)
        except TokenError as error:
            # This token comes in a header, so that HTTP has a status of its own for it.
            return as_error(401, error, (("WWW-Authenticate", "Bearer"),))
        try:
            key = _key(request)
            _refuse_query(request)
            single, events = read_events(request.read_body(MAX_BODY_BYTES, self._body_deadline_s))
            for stream, *_ in events:
                if not publisher.may_publish_to(stream):
                    raise ForbiddenError(f"the token is not for the stream {stream!r:.80}; nothing was published")
            if wait_s := self._wait_s(token, events):
                return _too_many(wait_s)
            ids = self._publish(publisher, key, events)
        except UsageError as error:
            return error_response(error)
        except DatabaseUnavailableError as error:
            return _unwritten(error)
        except psycopg.Error as error:
            if error.sqlstate == _KEY_USED:
                return as_error(422, "the Idempotency-Key was used for other events; take another")
            found = meaning(error)
            if found.status != 503:
                return as_error(found.status, error.diag.message_primary or found.sentence)
            logger.error("PostgreSQL refused to publish: %s; %s", said(error), found.advice)
            return _unwritten(found.sentence)
        return as_json(200, {"id": ids[0]} if single else {"ids": ids})

    def _wait_s(self, token: str, events: Sequence[Event]) -> float:
        """Count the streams that the events make, unless the token may not make so many yet: then how long. Yields."""
        names = self._limit.unknown({stream for stream, *_ in events})
        if not names:
            return 0.0
        (missing,) = self._database.fetch(_MISSING, (list(names),))
        wait_s = self._limit.wait_s(token, missing)
        if not wait_s:
            self._limit.know(names)
        return wait_s

    def _publish(self, publisher: Publisher, key: str, events: Sequence[Event]) -> list[int]:
        if not events:
            return []
        columns = [list(column) for column in zip(*events, strict=True)]
        stored = _digest([publisher.patterns, key]) if key else None
        with self._metrics.publishing():
            (ids,) = self._database.fetch(_ONCE, (stored, _digest(events), *columns))
        self._metrics.published(len(ids))
        return list(ids)


def _unwritten(why: object) -> Response:
    sentence = f"the log cannot be written now: {why}; try again after Retry-After, with the same Idempotency-Key"
    return as_error(503, sentence, (("Retry-After", "2"),))


def _too_many(wait_s: float) -> Response:
    sentence = "the token has made too many new streams; nothing was published; try again after Retry-After"
    return as_error(429, sentence, (("Retry-After", str(math.ceil(wait_s))),))


def read_events(body: bytes) -> tuple[bool, list[Event]]:
    """Whether a body is a single event, and its events. Raises UsageError, saying which event is wrong, and how."""
    try:
        value = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise UsageError("the body is not JSON; send an event, or a list of them") from None
    if not isinstance(value, list):
        return True, [_event(value, "the event")]
    if len(value) > MAX_EVENTS:
        raise TooLargeError(f"the batch has {len(value)} events; at most {MAX_EVENTS} go at once")
    return False, [_event(item, f"event {number}") for number, item in enumerate(value)]


def _event(value: Any, name: str) -> Event:
    if not isinstance(value, dict) or not {"stream", "data"} <= value.keys() <= _FIELDS:
        raise UsageError(f"{name} must be an object with stream and data, and perhaps event and visible_to")
    type_ = value.get("event")
    event = value["stream"], value["data"], "message" if type_ is None else type_, value.get("visible_to")
    try:
        sql_calls.publish(*event)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    return event


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UsageError("an object of the body has a field twice; give each once")
    return found


def _refuse_query(request: Request) -> None:
    """Refuse a query. Were it ignored, an event with `visible_to` in the query would be visible to everybody."""
    if request.query:
        raise UsageError("the query is not understood; stream, data, event and visible_to are fields of the body")


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenError("publishing needs a publisher token; send it as Authorization: Bearer …")
    return token.strip()


def _key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise UsageError("an Idempotency-Key has 1 to 255 visible ASCII characters")
    return key


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).digest()
