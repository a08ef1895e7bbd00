"""What a request may read, and who may see the answer."""

from typing import Any

import pytest

from headrace.cursor import Pending, Position
from headrace.errors import CursorError, TokenError, TokenExpiredError
from headrace.router.auth import Admission, Terms, admit
from headrace.router.errors import ForbiddenError
from headrace.stream import slot
from headrace.tokens import sign
from tests.fixtures.requests import request

SECRETS = ("a-secret-of-the-tests", "an-older-secret-of-theirs")


def path(*streams: str, secrets: tuple[str, ...] = SECRETS, **options: Any) -> str:
    return "/streams/" + sign(streams or ("room:1",), secrets=secrets, now=1000, **options)


def admitted(path_: str, *, now: float = 1001, max_streams: int = 64, life_s: float = 0, **parts: Any) -> Admission:
    return admit(request(path_, **parts), Terms(SECRETS, max_streams, life_s), now)


def test_a_token_admits_to_its_streams() -> None:
    """Streams come in the token's order with their starts, and the slot is the first stream's."""
    admission = admitted(path("room:1", "Zimmer ß", user="ada", audiences=["staff"]), query="since=4.0")
    assert admission.streams == (("room:1", Position(4)), ("Zimmer ß", Position(0)))
    assert admission.slot == slot("room:1")
    assert admission.context.user == "ada"
    assert admission.context.audiences == {"staff"}


@pytest.mark.parametrize(
    ("header", "query", "start"),
    [
        (None, "", "now"),
        (None, "since=all", "all"),
        (None, "since=7", Position(7)),
        (None, "since=", "now"),
        (None, "since=%20", "now"),
        ("9", "since=7", Position(9)),
        (" 9 ", "since=7", Position(9)),
        ("", "since=7", Position(7)),
        ("  ", "since=7", Position(7)),
        ("9/0", "since=7", Position(9)),
        (None, "since=9223372036854775807", Position(2**63 - 1)),
        # Clients that cannot send the header add it to the query at each reconnect.
        (None, "since=7&lastEventId=9", Position(9)),
        (None, "lastEventId=9&since=7", Position(9)),
        (None, "since=all&lastEventID=9", Position(9)),
        (None, "Last-Event-ID=9", Position(9)),
        (None, "since=7&lastEventId=9&lastEventId=11", Position(11)),
        (None, "since=7&lastEventId=", Position(7)),
        (None, "since=7&lastEventId=9%2F0", Position(9)),
        ("12", "since=7&lastEventId=9", Position(12)),
        (" ", "since=7&lastEventId=9", Position(9)),
        # Pending events, as a page's watermark and an `id:` line name them.
        (None, "since=7-81-3", Position(7, Pending({81, 84}))),
        ("9-84", "since=7-81-3", Position(9, Pending({84}))),
        ("9-84/0", "since=7-81-3", Position(9, Pending({84}))),
        (None, "since=7-81-3&lastEventId=9-84", Position(9, Pending({84}))),
    ],
)
def test_where_a_client_begins(header: str | None, query: str, start: object) -> None:
    """Last-Event-ID wins over since, blank counts as missing, and with neither it is now."""
    headers: dict[str, Any] = {} if header is None else {"last_event_id": header}
    assert admitted(path(), query=query, **headers).streams == (("room:1", start),)


@pytest.mark.parametrize("since", ["-1", "1.5", "x", "+1", "1 2", "9223372036854775808", "٣", "1/1", "1/", "1.2"])
def test_a_malformed_cursor_is_refused(since: str) -> None:
    """A cursor that is not one id per stream is the client's error, from header and query alike."""
    with pytest.raises(CursorError):
        admitted(path(), last_event_id=since)
    with pytest.raises(CursorError):
        admitted(path(), last_event_id=since, query="since=1")


def test_the_header_is_not_rescued_by_the_query() -> None:
    """A malformed Last-Event-ID is refused though since is fine: it would repeat events."""
    with pytest.raises(CursorError):
        admitted(path(), last_event_id="x", query="since=1")
    with pytest.raises(CursorError):
        admitted(path(), query="since=1&lastEventId=x")


def test_an_older_secret_still_admits() -> None:
    """A token signed before the secrets were rotated is good as long as its secret is listed."""
    assert admitted(path(secrets=SECRETS[1:])).slot == slot("room:1")


def test_what_is_not_ours_is_unknown() -> None:
    """A token of another secret, a changed one, a wrong slot and no token are all unknown."""
    good = path()
    head, _, token = good.removeprefix("/streams/").partition(".")
    bad = [
        path(secrets=("another-secret-altogether",)),
        f"{good}x",
        f"/streams/{(int(head) + 1) % 1024}.{token}",
        f"/streams/0{head}.{token}",
        f"/streams/{token}",
        "/streams/",
        f"{good}/more",
    ]
    for path_ in bad:
        with pytest.raises(TokenError):
            admitted(path_)


def test_an_expired_token_is_told_apart() -> None:
    """A genuine token past its time is refused as expired, and a moment before it is not."""
    assert admitted(path(ttl_s=10), now=1009.9)
    with pytest.raises(TokenExpiredError):
        admitted(path(ttl_s=10), now=1010)


def test_a_token_that_is_dated_ahead_is_forbidden() -> None:
    """A genuine token of a clock that is far ahead is refused, with what to do about it."""
    with pytest.raises(ForbiddenError, match="correct the clock of the host that signs"):
        admitted(path(), now=900)


def test_too_many_streams_are_forbidden() -> None:
    """A genuine token with more streams than this server allows names the setting."""
    assert admitted(path("a", "b"), max_streams=2)
    with pytest.raises(ForbiddenError, match="HEADRACE_MAX_STREAMS"):
        admitted(path("a", "b", "c"), max_streams=2)
