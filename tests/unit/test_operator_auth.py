"""Who is let onto the operations page: decisions over requests, without a server."""

import json
from http.cookies import SimpleCookie

import pytest

from headrace.node.directory import Directory
from headrace.router.client_placement import ClientPlacement
from headrace.router.operator_auth import (
    FORGET_S,
    MOST_ADDRESSES,
    MOST_GUESSES,
    SESSION_S,
    OperatorAuth,
    WrongGuesses,
)
from headrace.router.operator_sessions import MOST_ENDED, OperatorSessions
from headrace.router.request import Request
from tests.fixtures.requests import request

TOKEN = "a-token-of-the-tests"
HOST = "192.0.2.7"
NOW = 1_800_000_000.0


def worker(token: str = TOKEN) -> OperatorAuth:
    """One that knows nothing of others, since Redis is away."""
    directory = Directory("redis://127.0.0.1:1/0", expiry_s=3)
    return OperatorAuth(token, OperatorSessions(directory, ClientPlacement("n", hold_s=3, found=list)))


def status(operators: OperatorAuth, asked: Request, now: float = NOW, host: str = HOST) -> int:
    refusal = operators.refusal(asked, host, now)
    return refusal.status if refusal else 200


def bearer(token: str = TOKEN) -> Request:
    return request("/ops/status", authorization=f"Bearer {token}")


def session(operators: OperatorAuth, **headers: str) -> str:
    """What the browser sends along after signing in, as far as its attributes allow."""
    response = operators.sign_in(request(method="POST", x_headrace_ops="1", **headers), TOKEN, HOST, NOW)
    assert response.status == 204
    cookie = dict(response.headers)["Set-Cookie"]
    (morsel,) = SimpleCookie(cookie).values()
    assert morsel["httponly"]
    assert (morsel["samesite"], morsel["path"]) == ("Strict", "/ops")
    assert bool(morsel["secure"]) == headers.get("origin", "").startswith("https:")
    assert TOKEN not in cookie
    return f"other=1; {morsel.key}={morsel.value}"


def test_nobody_gets_in_without_the_token() -> None:
    """Without a session or a token, with a wrong one, or with a cookie that somebody else has signed, it is 401."""
    operators = worker()
    assert status(operators, request("/ops/status")) == 401
    assert status(operators, bearer("x")) == 401
    assert status(operators, bearer("\u00e9" * 20)) == 401
    assert status(operators, request("/ops/status", cookie="headrace_ops=x.y")) == 401
    foreign = session(worker()).replace("=", "=x", 2)
    assert status(operators, request("/ops/status", cookie=foreign)) == 401


def test_a_session_lasts_for_its_time_and_for_its_token() -> None:
    """Whoever signed in may read until the session's end; with another token all sessions have ended."""
    operators = worker()
    asked = request("/ops/status", cookie=session(operators))
    assert status(operators, asked, NOW + SESSION_S - 1) == 200
    assert status(operators, asked, NOW + SESSION_S) == 401
    assert status(worker(), asked) == 200  # another worker
    assert status(worker(f"{TOKEN}2"), asked) == 401


def test_the_cookie_is_kept_to_https_where_the_browser_uses_it() -> None:
    """Signed in over https, the browser never sends the session without."""
    session(worker(), origin="https://events.example.com")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_others_are_refused(site: str) -> None:
    """What another site's page, or another origin of this site, sends is refused, whatever it carries."""
    operators = worker()
    cookie = session(operators)
    assert status(operators, request("/ops/status", cookie=cookie, sec_fetch_site=site)) == 403
    assert status(operators, request("/ops/status", authorization=f"Bearer {TOKEN}", sec_fetch_site=site)) == 403
    asked = request("/ops/act", method="POST", cookie=cookie, x_headrace_ops="1", sec_fetch_site=site)
    assert status(operators, asked) == 403
    assert operators.sign_in(asked, TOKEN, HOST, NOW).status == 403
    assert operators.sign_out(asked, NOW).status == 403


def test_what_changes_something_needs_the_header_that_forms_cannot_send() -> None:
    """With a session alone nothing is done: a browser that tells no Sec-Fetch-Site is protected too."""
    operators = worker()
    cookie = session(operators)
    assert status(operators, request("/ops/act", method="POST", cookie=cookie)) == 403
    assert status(operators, request("/ops/act", method="POST", cookie=cookie, authorization="Basic eA==")) == 403
    assert status(operators, request("/ops/act", method="POST", cookie=cookie, x_headrace_ops="1")) == 200
    assert status(operators, request("/ops/act", method="POST", authorization=f"Bearer {TOKEN}")) == 200
    assert operators.sign_in(request(method="POST"), TOKEN, HOST, NOW).status == 403


def test_who_signs_out_is_out() -> None:
    """The cookie of a session that was ended opens nothing any more, whoever has a copy; another session goes on."""
    operators = worker()
    first, second = session(operators), session(operators)
    leaving = request("/ops/session", method="DELETE", cookie=first)
    assert operators.sign_out(leaving, NOW).status == 403
    assert status(operators, request("/ops/status", cookie=first)) == 200
    leaving = request("/ops/session", method="DELETE", cookie=first, x_headrace_ops="1")
    response = operators.sign_out(leaving, NOW)
    assert (response.status, "Max-Age=0" in dict(response.headers)["Set-Cookie"]) == (204, True)
    assert status(operators, request("/ops/status", cookie=first)) == 401
    assert status(operators, request("/ops/status", cookie=second)) == 200
    for cookie in (first, "", "headrace_ops=x.y"):
        leaving = request("/ops/session", method="DELETE", cookie=cookie, x_headrace_ops="1")
        assert operators.sign_out(leaving, NOW).status == 204


def test_the_memory_of_sessions_is_bounded() -> None:
    """A worker remembers the last sessions that it was told of."""
    ended = OperatorSessions(Directory("redis://127.0.0.1:1/0", expiry_s=3), ClientPlacement("n", hold_s=3, found=list))
    for number in range(MOST_ENDED + 1):
        ended.end(str(number), 60)
    assert not ended.has_ended("0")
    assert ended.has_ended("1")


def test_who_guesses_has_to_wait() -> None:
    """After so many wrong tokens an address is told to wait, with its whole IPv6 network; others are not."""
    operators = worker()
    for host in (HOST, "[2001:db8::1]"):
        for _ in range(MOST_GUESSES):
            assert status(operators, bearer("wrong"), host=host) == 401
    for host in (HOST, "[2001:db8::2]"):
        refusal = operators.try_token("another", host, NOW + 1)
        assert refusal is not None
        assert (refusal.status, dict(refusal.headers)["Retry-After"]) == (429, str(int(FORGET_S) - 1))
        assert "wrong" in json.loads(refusal.body)["error"]
        assert status(operators, bearer("another"), NOW + FORGET_S, host=host) == 401
    assert status(operators, bearer("another"), host="192.0.2.8") == 401
    assert status(operators, bearer("another"), host="[2001:db8:1::2]") == 401


def test_who_guesses_keeps_nobody_out() -> None:
    """Operators come from the same address as those who guess, a proxy's: the right token is let in all the same."""
    operators = worker()
    for _ in range(MOST_GUESSES + 1):
        status(operators, bearer("wrong"))
    assert status(operators, bearer("wrong")) == 429
    assert status(operators, bearer()) == 200
    assert status(operators, request("/ops/status", cookie=session(operators))) == 200


def test_the_memory_of_guesses_is_bounded() -> None:
    """However many addresses guess, only the last ones are remembered."""
    guesses = WrongGuesses()
    for number in range(MOST_ADDRESSES + 1):
        for _ in range(MOST_GUESSES):
            guesses.wrong(str(number), NOW)
    assert guesses.wait_s("0", NOW) == 0
    assert guesses.wait_s("1", NOW) > 0
