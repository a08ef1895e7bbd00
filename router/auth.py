"""What a request may read, by its token: decisions without I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace import cursor, tokens
from headrace.cursor import Start
from headrace.errors import TokenDateError
from headrace.router.errors import ForbiddenError
from headrace.router.request import Request
from headrace.stream import slot
from headrace.tokens import Context, Token

PREFIX: Final = "/streams/"
LAST_EVENT_ID: Final = ("lastEventId", "lastEventID", "Last-Event-ID")
"""What event-source-polyfill and Mercure's clients call the header in a query."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a verified request asks for: each stream with its start, as whom, and the first stream's slot."""

    streams: tuple[tuple[str, Start], ...]
    context: Context
    slot: int


@dataclass(frozen=True, slots=True)
class Terms:
    """Which tokens this server serves: signed with one of the secrets, of at most so many streams, and, unless it is 0,
    valid for at most so long."""

    secrets: Sequence[str]
    max_streams: int
    max_token_life_s: float = 0.0


def admit(request: Request, terms: Terms, now: float | None = None) -> Admission:
    """Verify the token in the path, then the cursor: Last-Event-ID wins over `since`, blank is missing.

    Some clients cannot send the header, and add it to the query when they reconnect: there it wins over `since` too,
    which is where they began.

    now is in seconds since the epoch. Raises what `verify` does, and CursorError.
    """
    token = verify(request.path.removeprefix(PREFIX), terms, now)
    arguments = request.arguments()
    # Of an argument that was added to a URL which had it already, the last one counts.
    named = [text for name in LAST_EVENT_ID for text in arguments.get(name, ())[-1:]]
    given = (request.headers.get("last-event-id", ""), *named, *arguments.get("since", ())[:1])
    since = next((text for text in given if text.strip()), "")
    starts = cursor.parse(since, len(token.streams))
    return Admission(tuple(zip(token.streams, starts, strict=True)), token.context, slot(token.streams[0]))


def verify(segment: str, terms: Terms, now: float | None = None) -> Token:
    """Verify a path's `<slot>.<token>`. now is in seconds since the epoch.

    Raises TokenError (not ours, or changed), TokenExpiredError, ForbiddenError (the terms exclude it).
    """
    try:
        token = tokens.verify(segment, secrets=terms.secrets, now=now)
    except TokenDateError as error:
        raise ForbiddenError(str(error)) from error
    if len(token.streams) > terms.max_streams:
        raise ForbiddenError(
            f"the token has {len(token.streams)} streams and HEADRACE_MAX_STREAMS is {terms.max_streams}; "
            "use fewer streams a connection"
        )
    life, context = terms.max_token_life_s, token.context
    if life and (context.expires_ms is None or context.expires_ms - context.issued_ms > life * 1000):
        raise ForbiddenError(
            f"the token is valid for longer than HEADRACE_MAX_TOKEN_LIFE_S, {life:g} seconds; "
            "sign it with a ttl_s of at most that"
        )
    return token
