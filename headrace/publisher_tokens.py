"""Publisher tokens: to which streams a program without a database connection may publish over HTTP, and until when.

Applications call `headrace.sign_publisher`. Publisher tokens are signed with the secrets of stream tokens, but with
another salt, so that neither kind passes for the other:

    {"p": ["room:*", "audit"], "i": 1790000000000, "x": 1790000600000}

p are patterns, in which `*` is any text and `?` one character; i and x as in a stream token.
"""

import fnmatch
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import itsdangerous

from headrace.errors import TokenError, TokenExpiredError
from headrace.stream import PRESENCE_PREFIX, RESERVED_PREFIX, check_name, check_names
from headrace.tokens import MAX_TOKEN_CHARS, check_ttl, opened, serializer

SALT: Final = "headrace.publisher_token"
MAX_PATTERNS: Final = 64


@dataclass(frozen=True, slots=True)
class Publisher:
    """What a verified publisher token allows."""

    patterns: tuple[str, ...]

    def may_publish_to(self, stream: str) -> bool:
        """Whether one of the patterns matches the whole name of the stream; all but `*` and `?` is literal.

        No pattern matches headrace's own streams. Only a pattern that begins with `presence:` matches a companion
        stream: a publisher to `*` may not invent joins and leaves.
        """
        spelt = PRESENCE_PREFIX if stream.startswith(PRESENCE_PREFIX) else ""
        return not stream.startswith(RESERVED_PREFIX) and any(
            pattern.startswith(spelt) and re.match(_expression(pattern), stream) for pattern in self.patterns
        )


def sign_publisher(
    streams: str | Sequence[str],
    *,
    secrets: Sequence[str],
    ttl_s: float | None = None,
    now: float | None = None,
) -> str:
    """Return a token for the patterns; the first secret signs. now is the time of issue in seconds since the epoch.

    `headrace.sign_publisher` tells the rest, and what is raised.
    """
    patterns = check_names(streams)
    if not 1 <= len(patterns) <= MAX_PATTERNS:
        raise TokenError(f"a publisher token is for 1 to {MAX_PATTERNS} patterns, not {len(patterns)}")
    check_ttl(ttl_s)
    issued_ms = int((time.time() if now is None else now) * 1000)
    claims: dict[str, Any] = {"p": sorted(set(patterns)), "i": issued_ms}
    if ttl_s is not None:
        claims["x"] = issued_ms + int(ttl_s * 1000)
    signed = serializer(secrets, SALT).dumps(claims)
    return signed.decode() if isinstance(signed, bytes) else signed


def verify_publisher(token: str, *, secrets: Sequence[str], now: float | None = None) -> Publisher:
    """Check a publisher token and return what it allows; now is in seconds since the epoch.

    Raises TokenError for a text that none of the secrets has signed as a publisher token, TokenExpiredError for one
    past its expiry.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenError()
    try:
        claims = opened(token, secrets, SALT)
        publisher, expires_ms = Publisher(tuple(map(check_name, claims["p"]))), claims.get("x")
    except (itsdangerous.BadData, LookupError, TypeError, AttributeError) as error:
        raise TokenError("the publisher token is unknown or was changed; ask the application for another") from error
    if expires_ms is not None and (time.time() if now is None else now) * 1000 >= expires_ms:
        raise TokenExpiredError("the publisher token has expired; ask the application for another")
    return publisher


def _expression(pattern: str) -> str:
    # Brackets are wildcards for fnmatch, and literal here. The expressions that fnmatch makes match in bounded time.
    return fnmatch.translate(pattern.replace("[", "[[]"))
