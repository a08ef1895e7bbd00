"""Which page of history a request asks for."""

import pytest

from headrace.cursor import Pending, Position
from headrace.errors import CursorError, TokenError, TokenExpiredError
from headrace.router.auth import Terms
from headrace.router.errors import ForbiddenError, WrongPageError
from headrace.router.history_endpoint import Wanted, wanted
from headrace.tokens import sign
from tests.fixtures.requests import request

SECRET = "a-secret-of-the-tests"
TERMS = Terms((SECRET,), 3, 100)


def asked(*streams: str, query: str = "", now: float = 1001, ttl_s: float = 100) -> Wanted:
    token = sign(streams, secrets=[SECRET], user="ada", audiences=["staff"], ttl_s=ttl_s, now=1000)
    return wanted(request(f"/streams/{token}/events", query=query), TERMS, now)


def test_a_page_of_the_only_stream() -> None:
    """Without arguments it is the oldest events of the token's one stream, as its user."""
    page = asked("room:1")
    assert (page.stream, page.after, page.limit) == ("room:1", "all", 100)
    assert (page.context.user, page.context.audiences) == ("ada", {"staff"})


def test_the_arguments_choose() -> None:
    """after is an id, limit a count, stream one of several."""
    page = asked("a", "Zimmer ß", query="after=17&limit=1000&stream=Zimmer%20%C3%9F")
    assert (page.stream, page.after, page.limit) == ("Zimmer ß", Position(17), 1000)


def test_after_may_name_pending_events() -> None:
    """A page may begin where another page's snapshot ends."""
    assert asked("a", query="after=17-81-3").after == Position(17, Pending({81, 84}))


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "x", "%D9%A1", "99999"])
def test_a_limit_is_a_small_number(limit: str) -> None:
    """Anything but 1 to 1000 is the client's mistake."""
    with pytest.raises(WrongPageError):
        asked("a", query=f"limit={limit}")


@pytest.mark.parametrize("after", ["now", "x", "-1", "1.2", "9223372036854775808", "1/5", "1-0", "1-", "1-2.3"])
def test_after_is_an_id(after: str) -> None:
    """Anything but one id is the client's mistake."""
    with pytest.raises((WrongPageError, CursorError)):
        asked("a", query=f"after={after}")


def test_of_several_streams_one_must_be_named() -> None:
    """A page is of one stream, and only of one that the token is for."""
    with pytest.raises(WrongPageError):
        asked("a", "b")
    with pytest.raises(ForbiddenError):
        asked("a", "b", query="stream=c")


def test_the_token_must_be_good() -> None:
    """Changed, expired, for too many streams or for too long: the same as for the stream itself."""
    with pytest.raises(TokenError):
        wanted(request("/streams/1.x/events"), TERMS)
    with pytest.raises(TokenExpiredError):
        asked("a", now=2000)
    with pytest.raises(ForbiddenError):
        asked("a", "b", "c", "d", query="stream=a")
    with pytest.raises(ForbiddenError):
        asked("a", ttl_s=101)
