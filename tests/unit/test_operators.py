"""Who is let onto the operations page: decisions over requests, without a server."""

import json
from http.cookies import SimpleCookie

import pytest

from router.operators import FORGET_S, MOST_ADDRESSES, MOST_GUESSES, SESSION_S, Guesses, Operators
from router.request import Request
from tests.fixtures.requests import request

TOKEN = "a-token-of-the-tests"
HOST = "192.0.2.7"
NOW = 1_800_000_000.0


def status(operators: Operators, asked: Request, now: float = NOW, host: str = HOST) -> int:
    refusal = operators.refusal(asked, host, now)
    return refusal.status if refusal else 200


def bearer(token: str = TOKEN) -> Request:
    return request("/ops/status", authorization=f"Bearer {token}")


def session(operators: Operators, **headers: str) -> str:
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
    operators = Operators(TOKEN)
    assert status(operators, request("/ops/status")) == 401
    assert status(operators, bearer("x")) == 401
    assert status(operators, bearer("\u00e9" * 20)) == 401
    assert status(operators, request("/ops/status", cookie="headrace_ops=x.y")) == 401
    foreign = session(Operators(TOKEN)).replace("=", "=x", 2)
    assert status(operators, request("/ops/status", cookie=foreign)) == 401


def test_a_session_lasts_for_its_time_and_for_its_token() -> None:
    """Whoever signed in may read until the session's end; with another token all sessions have ended."""
    operators = Operators(TOKEN)
    asked = request("/ops/status", cookie=session(operators))
    assert status(operators, asked, NOW + SESSION_S - 1) == 200
    assert status(operators, asked, NOW + SESSION_S) == 401
    assert status(Operators(TOKEN), asked) == 200  # another worker
    assert status(Operators(f"{TOKEN}2"), asked) == 401


def test_the_cookie_is_kept_to_https_where_the_browser_uses_it() -> None:
    """Signed in over https, the browser never sends the session without."""
    session(Operators(TOKEN), origin="https://events.example.com")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_others_are_refused(site: str) -> None:
    """What another site's page, or another origin of this site, sends is refused, whatever it carries."""
    operators = Operators(TOKEN)
    cookie = session(operators)
    assert status(operators, request("/ops/status", cookie=cookie, sec_fetch_site=site)) == 403
    assert status(operators, request("/ops/status", authorization=f"Bearer {TOKEN}", sec_fetch_site=site)) == 403
    asked = request("/ops/act", method="POST", cookie=cookie, x_headrace_ops="1", sec_fetch_site=site)
    assert status(operators, asked) == 403
    assert operators.sign_in(asked, TOKEN, HOST, NOW).status == 403
    assert operators.sign_out(asked).status == 403


def test_what_changes_something_needs_the_header_that_forms_cannot_send() -> None:
    """With a session alone nothing is done: a browser that tells no Sec-Fetch-Site is protected too."""
    operators = Operators(TOKEN)
    cookie = session(operators)
    assert status(operators, request("/ops/act", method="POST", cookie=cookie)) == 403
    assert status(operators, request("/ops/act", method="POST", cookie=cookie, authorization="Basic eA==")) == 403
    assert status(operators, request("/ops/act", method="POST", cookie=cookie, x_headrace_ops="1")) == 200
    assert status(operators, request("/ops/act", method="POST", authorization=f"Bearer {TOKEN}")) == 200
    assert operators.sign_in(request(method="POST"), TOKEN, HOST, NOW).status == 403


def test_who_guesses_has_to_wait() -> None:
    """After so many wrong tokens an address is told to wait, with its whole IPv6 network; others are not."""
    operators = Operators(TOKEN)
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
    operators = Operators(TOKEN)
    for _ in range(MOST_GUESSES + 1):
        status(operators, bearer("wrong"))
    assert status(operators, bearer("wrong")) == 429
    assert status(operators, bearer()) == 200
    assert status(operators, request("/ops/status", cookie=session(operators))) == 200


def test_the_memory_of_guesses_is_bounded() -> None:
    """However many addresses guess, only the last ones are remembered."""
    guesses = Guesses()
    for number in range(MOST_ADDRESSES + 1):
        for _ in range(MOST_GUESSES):
            guesses.wrong(str(number), NOW)
    assert guesses.wait_s("0", NOW) == 0
    assert guesses.wait_s("1", NOW) > 0
