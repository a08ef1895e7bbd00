"""History: one page of a stream's past events as a JSON response, written beside the dispatcher.

A shard answers these requests, although routers answer everything else that is no stream, because predicates and
revocations decide which events a client may see, and both are in shards. So a request for a page is handed over like a
subscription, with the same refusals, and no router reads the log.

    intake ── submit ──► queue ──► a reader, one query ──► a greenlet of the request's own: filter, write, close

The readers have database connections of their own, so that pages delay neither live clients nor clients that are being
caught up. At most MAX_REQUESTS requests wait or are written at a time, each has a deadline, and a page has at most
MAX_PAGE_BYTES. When there are that many requests, the user (or without a user, the address) that has most of them loses
the oldest one that is being written; a client that has that many itself is refused, and the router tries another shard.

    {"stream": "room:1", "events": [{"id": 4, "type": "message", "data": "…"}], "next": 4, "head": 9, "more": true,
     "gap": {"missed_from": 1, "missed_to": 3}, "reset": {"head": 9}}

next is where the following page begins: an id, past events that are hidden from the client; or a cursor as text, such
as "4-81", while events are pending that the client has already. These are left out of the page that they come in. gap
and reset are there only if the client must be told of one.
"""

import contextlib
import http
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import gevent
import psycopg
from gevent import socket as gsocket
from gevent.queue import SimpleQueue

from headrace.cursor import Pending, Position
from headrace.errors import one_line
from headrace.node.handoff import Handoff
from headrace.node.kept_session import KeptSession
from headrace.node.limit_keys import address_limit_key, user_limit_key
from headrace.settings import Settings
from headrace.shard.fair_places import FairPlaces, Place
from headrace.shard.messages import Page
from headrace.shard.numbers.counters import Tally
from headrace.shard.ports import RevocationCheck
from headrace.shard.postgres import sql_functions
from headrace.shard.postgres.sql_functions import Event
from headrace.shard.postgres.unsendable import Unsendable
from headrace.tokens import Context

logger = logging.getLogger(__name__)

READERS: Final = 2
MAX_REQUESTS: Final = 64
MAX_PAGE_BYTES: Final = 1 << 20
DEADLINE_S: Final = 5.0
"""How long a request may take from its hand-off until its rows are read."""
STALL_S: Final = 5.0
"""A client that takes nothing of its page for so long is given up."""
PIECE_BYTES: Final = 64 << 10

Decide = Callable[[Context, str, str], bool]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A page that a client asks for: its socket, which is closed with the request, and until when it may be read."""

    fd: int
    place: Place
    handoff: Handoff
    deadline: float


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """What the client is told: an HTTP status, and the JSON of the body."""

    status: int
    value: dict[str, Any] = field(default_factory=dict)

    def encode(self, headers: Sequence[tuple[str, str]]) -> bytes:
        """The whole response, after which the connection ends."""
        body = json.dumps(self.value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        lines = [
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}",
            "Content-Type: application/json",
            "Cache-Control: no-store",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in headers),
            *(["Retry-After: 2"] if self.status == 503 else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


REVOKED: Final = PageAnswer(403, {"error": "the token was revoked; ask the application for a fresh stream URL"})
AWAY: Final = PageAnswer(503, {"error": "the log cannot be read now; try again after Retry-After"})
_RESULTS: Final = {200: "sent", REVOKED.status: "revoked", AWAY.status: "unavailable"}


class History:
    """Reads and writes pages.

    The queue is shared; a request belongs to the greenlet that has it. decide answers whether a context may see events
    with a label on a stream, and may yield.
    """

    def __init__(
        self,
        settings: Settings,
        shard_id: str,
        decide: Decide,
        revocations: RevocationCheck,
        unsendable: Unsendable | None = None,
    ) -> None:
        self.results = Tally((*_RESULTS.values(), "not taken", "failed"))
        self._settings = settings
        self._shard_id = shard_id
        self._decide = decide
        self._revocations = revocations
        self._unsendable = unsendable or Unsendable()
        self._queue: SimpleQueue[PageRequest] = SimpleQueue()
        self._readers: list[gevent.Greenlet[..., None]] = []
        self._answering: set[gevent.Greenlet[..., None]] = set()
        self._places = FairPlaces(MAX_REQUESTS)

    def has_room(self, handoff: Handoff) -> bool:
        """Whether there is a place for one more request of this client."""
        return self._places.has_room(_holder(handoff))

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start the readers; returns their greenlets, which end only by `stop`."""
        self._readers = [
            gevent.spawn(self._run, f"headrace {self._shard_id} history {number}") for number in range(READERS)
        ]
        return self._readers

    def stop(self) -> None:
        """End at once; clients that have not got their whole page see the connection end. Yields."""
        gevent.killall([*self._readers, *self._answering])
        while not self._queue.empty():
            request = self._queue.get()
            self._close(request.place, _socket(request.fd))

    def submit(self, fd: int, handoff: Handoff) -> None:
        """Answer a client, whose socket belongs to this part from now on. Never switches greenlets."""
        self._queue.put(PageRequest(fd, self._places.take(_holder(handoff)), handoff, time.monotonic() + DEADLINE_S))

    def _run(self, name: str) -> None:
        kept = KeptSession(self._settings.database_url, name, timeout_s=DEADLINE_S, limit_s=DEADLINE_S)
        try:
            while True:
                request = self._queue.get()
                found: tuple[Page, list[Event]] | PageAnswer = AWAY
                try:
                    with gevent.Timeout(max(0.0, request.deadline - time.monotonic())):
                        if self._revocations.current():
                            found = kept.read(partial(self._read, handoff=request.handoff))
                except (psycopg.Error, gevent.Timeout) as error:
                    logger.warning("a page for %s could not be read: %s", request.handoff.request_id, one_line(error))
                greenlet = gevent.spawn(self._answer, request, found)
                self._answering.add(greenlet)
                greenlet.link(self._answering.discard)
        finally:
            kept.close()

    def _read(self, connection: psycopg.Connection[Any], handoff: Handoff) -> tuple[Page, list[Event]]:
        ((stream, start),) = handoff.streams
        after = start.id if isinstance(start, Position) else 0
        return sql_functions.read_events(connection, stream, after, handoff.page or 1, MAX_PAGE_BYTES, self._unsendable)

    def _answer(self, request: PageRequest, found: tuple[Page, list[Event]] | PageAnswer) -> None:
        """Filter, write and close; only close when another request is given the place. Yields."""
        handoff, client = request.handoff, _socket(request.fd)
        own = gevent.getcurrent()
        assert isinstance(own, gevent.Greenlet)
        request.place.vacate = partial(own.kill, block=False)
        try:
            with gevent.Timeout(self._settings.write_deadline_s):
                answer = found if isinstance(found, PageAnswer) else self._page(handoff, *found)
                # Reading or a predicate may have taken time: revocations that came meanwhile count.
                if self._revocations.refuses(handoff.context):
                    answer = REVOKED
                elif not self._revocations.current():
                    answer = AWAY
                _write(client, answer.encode(handoff.headers))
                self.results.add(_RESULTS[answer.status])
        except (OSError, gevent.Timeout, gevent.GreenletExit) as error:
            self.results.add("not taken")
            logger.debug("the page for %s was not taken: %s", handoff.request_id, error)
        except Exception:
            self.results.add("failed")
            logger.exception("the page for %s failed", handoff.request_id)
        finally:
            self._close(request.place, client)

    def _page(self, handoff: Handoff, page: Page, events: Sequence[Event]) -> PageAnswer:
        ((stream, start),) = handoff.streams
        verdicts: dict[str, bool] = {}

        def visible(label: str | None) -> bool:
            if not label or label in handoff.context.audiences:
                return True
            if label not in verdicts:
                verdicts[label] = self._decide(handoff.context, stream, label)
            return verdicts[label]

        position = start if isinstance(start, Position) else None
        value = _standing(position, page, events, visible)
        if position is not None and position.pending is not None and "reset" not in value:
            dropped = "gap" in value or page.jumped(position.id)
            at = Position(max(position.id, page.trimmed_to), None if dropped else position.pending)
            events, pending = _without_pending(at, events)
            if pending is not None:
                value["next"] = str(Position(value["next"], pending))
        seen = [
            {"id": event.id, "type": event.type, "data": event.data} for event in events if visible(event.visible_to)
        ]
        return PageAnswer(200, {"stream": stream, "events": seen, **value})

    def _close(self, place: Place, client: gsocket.socket) -> None:
        self._places.free(place)
        with contextlib.suppress(OSError):
            client.shutdown(gsocket.SHUT_RDWR)
        client.close()


def _holder(handoff: Handoff) -> str:
    user = handoff.context.user
    return address_limit_key(handoff.peer) if user is None else user_limit_key(user)


def _write(client: gsocket.socket, data: bytes) -> None:
    """Write all of it. Yields. Raises gevent.Timeout when nothing of it is taken for a while."""
    left = memoryview(data)
    while left:
        with gevent.Timeout(STALL_S):
            left = left[client.send(left[:PIECE_BYTES]) :]


def _socket(fd: int) -> gsocket.socket:
    return gsocket.socket(fileno=fd)


def _standing(
    position: Position | None, page: Page, events: Sequence[Event], visible: Callable[[str], bool]
) -> dict[str, Any]:
    """Where the page leads, and the gap or reset that the client must be told of. May yield."""
    if position is not None and page.foreign(position.id):
        return {"next": page.head, "head": page.head, "more": False, "reset": {"head": page.head}}
    follows = events[-1].id if events else page.head
    value: dict[str, Any] = {"next": follows, "head": page.head, "more": follows < page.head}
    if position is None or position.id >= page.trimmed_to:
        return value
    if any(map(visible, page.missed_by(position.id))):
        value["gap"] = {"missed_from": position.id + 1, "missed_to": page.trimmed_to}
    return value


def _without_pending(position: Position, events: Sequence[Event]) -> tuple[list[Event], Pending | None]:
    """The events that the client does not have yet, and what is pending behind them; as in `shard/delivery.py`."""
    new = []
    before, pending = position.id, position.pending
    for event in events:
        if pending is not None and event.id != before + 1:
            pending = None  # ids jump
        before = event.id
        if pending is not None and event.seq is not None and event.seq in pending:
            pending = pending.without(event.seq)
        else:
            new.append(event)
    return new, pending
