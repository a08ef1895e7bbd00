"""`GET /streams/<slot>.<token>/events`: a page of past events as JSON. Admits and hands over; a shard answers.

    after    the last id that the client has; without it, the oldest kept event comes first
    limit    how many events to look at, 1 to 1000; 100 without it
    stream   which one of the token's streams; needed where it has several

The same rules decide as for the stream itself: its token, audiences, predicates, revocations and origins.
"""

from dataclasses import dataclass
from typing import Final

from headrace import cursor
from headrace.cursor import Start
from headrace.node.handoff import Handoff, forms
from headrace.router.auth import PREFIX, Terms, verify
from headrace.router.errors import ANSWERED, ClientGoneError, ForbiddenError, WrongPageError, error_response
from headrace.router.request import Request
from headrace.router.response import Headers, Response
from headrace.router.stream_endpoint import StreamEndpoint
from headrace.stream import slot
from headrace.tokens import Context, Token

SUFFIX: Final = "/events"
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000

_HEADERS: Final = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page that a verified request asks for."""

    stream: str
    after: Start
    limit: int
    context: Context


class HistoryEndpoint:
    """The history endpoint. Called by any request greenlet; keeps nothing between requests."""

    def __init__(self, terms: Terms, streams: StreamEndpoint) -> None:
        self._terms = terms
        self._streams = streams

    def __call__(self, request: Request, headers: Headers) -> Response | None:
        """Answer with an error, or give the client away and return None. Yields.

        headers go on the shard's response. None means that the socket MUST NOT be touched again.
        """
        try:
            page = wanted(request, self._terms)
            handoff = Handoff(
                ((page.stream, page.after),),
                page.context,
                request.id,
                self._streams.peer(request),
                headers,
                page=page.limit,
                deployment=self._streams.deployment(),
            )
            message = forms(handoff)
        except ANSWERED as error:
            return error_response(error)
        if request.method == "HEAD":
            return Response(
                200, headers=(("Content-Type", "application/json"), ("Cache-Control", "no-store")), sized=False
            )
        try:
            return self._streams.hand_off(request, slot(page.stream), handoff, message)
        except ClientGoneError:
            return None


def wanted(request: Request, terms: Terms, now: float | None = None) -> Wanted:
    """Verify the token in the path, then the query. now is in seconds since the epoch.

    Raises TokenError, TokenExpiredError, ForbiddenError, CursorError and WrongPageError.
    """
    token = verify(request.path.removeprefix(PREFIX).removesuffix(SUFFIX), terms, now)
    limit = request.argument("limit") or str(DEFAULT_LIMIT)
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise WrongPageError(f"limit must be a number from 1 to {MAX_LIMIT}, not {limit!r:.40}")
    (after,) = cursor.parse(request.argument("after") or "all", 1)
    if after == "now":
        raise WrongPageError("nothing has happened after now; give the id that the page begins after")
    return Wanted(_stream(token, request.argument("stream")), after, int(limit), token.context)


def _stream(token: Token, name: str) -> str:
    if not name:
        if len(token.streams) > 1:
            raise WrongPageError(f"the token has {len(token.streams)} streams; name one with the argument stream")
        return token.streams[0]
    if name not in token.streams:
        raise ForbiddenError(f"the token is not for the stream {name!r:.80}; ask the application for one that is")
    return name
