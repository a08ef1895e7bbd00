"""Which requests are an operator's: the token of the operations page, the session that it opens, and what else a
request must show.

    POST /ops/session {"token": …}    ->  Set-Cookie: headrace_ops=<signed with the token itself>, for this site only
    Authorization: Bearer <token>     ->  the same rights without a session, for scripts

A page of another site, or of another origin of this one, can neither read nor do anything here: what it sends carries
Sec-Fetch-Site, a request that changes something needs a header that such a page is not allowed to send, and no origin
is granted anything. An address that sends wrong tokens is told to wait, which keeps the log short; the right token
is never refused.
"""

import hmac
import math
import secrets
from collections import OrderedDict
from typing import Final

import itsdangerous

from headrace.node.limit_keys import network
from headrace.router.operator_sessions import OperatorSessions
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_error
from headrace.tokens import serializer

SESSION_S: Final = 12 * 3600
COOKIE: Final = "headrace_ops"
MARK: Final = "x-headrace-ops"
"""The header that requests of the page's own script carry."""
MOST_GUESSES: Final = 5
FORGET_S: Final = 60.0
MOST_ADDRESSES: Final = 1000
_SALT: Final = "headrace.ops"


class WrongGuesses:
    """The wrong tokens that came lately, by address. Owned by Operators; bounded, the oldest address goes first."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, host: str, now: float) -> float:
        """For how many seconds an address may not try again; 0 if it may."""
        wrong = self._wrong.get(host, [])
        return max(0.0, wrong[-MOST_GUESSES] + FORGET_S - now) if len(wrong) >= MOST_GUESSES else 0.0

    def wrong(self, host: str, now: float) -> None:
        """Note that an address has sent a wrong token."""
        times = self._wrong.pop(host, [])
        self._wrong[host] = [*times, now][-MOST_GUESSES:]
        while len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)


class OperatorAuth:
    """Tells the requests of operators from all others. Called by any request greenlet.

    now is in seconds since the epoch, host the client's address.
    """

    def __init__(self, token: str, ended: OperatorSessions) -> None:
        self._token = token
        self._ended = ended
        self._guesses = WrongGuesses()
        # With another token all sessions end.
        self._sessions = serializer([token], _SALT)

    def refusal(self, request: Request, host: str, now: float) -> Response | None:
        """Why a request is not an operator's, as the answer; None if it is. Yields."""
        if stranger := _stranger(request):
            return stranger
        if (given := request.bearer) is not None:
            return self.try_token(given, host, now)
        if not self._in_session(_cookie(request), now):
            return as_error(401, "sign in with the token of HEADRACE_OPS_TOKEN")
        return None

    def try_token(self, token: str, host: str, now: float) -> Response | None:
        """Why a token does not open the page, as the answer; None if it does.

        The right token always opens the page: many people come from one address, that of a proxy, and a guesser among
        them must not keep operators out. The token itself keeps guessers out: the settings refuse a token that can be
        guessed.
        """
        if self.is_token(token):
            return None
        host = network(host)
        wait_s = self._guesses.wait_s(host, now)
        if wait_s:
            retry = (("Retry-After", str(math.ceil(wait_s))),)
            return as_error(429, "too many wrong tokens came from this address; correct it, or wait", retry)
        self._guesses.wrong(host, now)
        return as_error(401, "the token is not that of HEADRACE_OPS_TOKEN; correct it")

    def is_token(self, token: str) -> bool:
        """Whether it is the token of the operations page. It takes the same time for all of one length."""
        # As bytes: compare_digest refuses text that is not ASCII.
        return hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode())

    def sign_in(self, request: Request, token: str, host: str, now: float) -> Response:
        """Open a session for a client that has the token, or tell why not."""
        if refusal := _stranger(request) or self.try_token(token, host, now):
            return refusal
        session = self._sessions.dumps({"x": int(now) + SESSION_S, "j": secrets.token_hex(8)})
        return Response(204, headers=_set_cookie(request, str(session), SESSION_S))

    def sign_out(self, request: Request, now: float) -> Response:
        """End the session, for every copy of its cookie. Yields."""
        if refusal := _stranger(request):
            return refusal
        id_, life_s = self._session(_cookie(request), now)
        if life_s > 0:
            self._ended.end(id_, life_s)
        return Response(204, headers=_set_cookie(request, "", 0))

    def _in_session(self, cookie: str, now: float) -> bool:
        id_, life_s = self._session(cookie, now)
        return life_s > 0 and not self._ended.has_ended(id_)

    def _session(self, cookie: str, now: float) -> tuple[str, float]:
        """The id of the session that a cookie is for, and how long it lives yet: not at all if it is for none."""
        try:
            claims = self._sessions.loads(cookie)
            return str(claims["j"]), float(claims["x"]) - now
        except (itsdangerous.BadData, LookupError, TypeError, ValueError):
            return "", 0.0


def _stranger(request: Request) -> Response | None:
    """The answer to a request that a page of another site or origin has made; None for other requests."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return as_error(403, "this is for the operations page only; open /ops at this address")
    changes = request.method not in ("GET", "HEAD")
    if changes and request.bearer is None and request.headers.get(MARK) != "1":
        return as_error(403, f"a request without a token needs the header {MARK}: 1")
    return None


def _cookie(request: Request) -> str:
    for pair in request.headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _set_cookie(request: Request, value: str, life_s: int) -> Headers:
    # Browsers send Origin with what is no GET, and the scheme in it is the one that they use, whatever proxies do.
    secure = "; Secure" if request.headers.get("origin", "").startswith("https:") else ""
    attributes = f"Path=/ops; Max-Age={life_s}; HttpOnly; SameSite=Strict{secure}"
    return (("Set-Cookie", f"{COOKIE}={value}; {attributes}"), ("Cache-Control", "no-store"))
