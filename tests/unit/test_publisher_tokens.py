"""Publisher tokens, and what the endpoint makes of a body."""

import json
from typing import Any

import pytest

from headrace import tokens
from headrace.errors import StreamNameError, TokenError, TokenExpiredError, UsageError
from headrace.publisher_tokens import Publisher, sign_publisher, verify_publisher
from headrace.router.errors import TooLargeError
from headrace.router.publish_endpoint import read_events

SECRETS = ("a-secret-of-the-tests", "an-older-secret-of-theirs")


@pytest.mark.parametrize(
    ("pattern", "matches", "not_these"),
    [
        ("room:1", ["room:1"], ["room:12", "Room:1", "xroom:1", "room:1\n"]),
        ("room:*", ["room:", "room:1", "room:a\nb", "room:*"], ["room", "aroom:1"]),
        ("a?c", ["abc", "a?c", "aжc"], ["ac", "abbc"]),
        ("[ab]", ["[ab]"], ["a", "b"]),
        ("*", ["anything", "x", "headrace", "presence"], ["presence:room:1", "headrace:canary:web1-0:1"]),
        ("presence?*", [], ["presence:room:1"]),
        ("presence:*", ["presence:room:1"], ["headrace:canary:web1-0:1"]),
        ("a.b", ["a.b"], ["axb"]),
        ("*".join("a" * 40), ["a" * 40], ["a" * 300 + "b"]),
    ],
)
def test_which_streams_a_pattern_allows(pattern: str, matches: list[str], not_these: list[str]) -> None:
    """Whole names, with two wildcards and everything else literal, in bounded time."""
    publisher = Publisher(("other", pattern))
    assert [name for name in matches if not publisher.may_publish_to(name)] == []
    assert [name for name in not_these if publisher.may_publish_to(name)] == []


def test_a_token_is_good_until_it_expires_or_the_secret_goes() -> None:
    """Every secret verifies; a changed, expired or foreign token does not."""
    token = sign_publisher(["b", "a", "b"], secrets=SECRETS[1:], ttl_s=10, now=1000)
    assert verify_publisher(token, secrets=SECRETS, now=1009).patterns == ("a", "b")
    with pytest.raises(TokenExpiredError):
        verify_publisher(token, secrets=SECRETS, now=1010)
    for wrong in ("", "x", token + "x", "x" * 100_000):
        with pytest.raises(TokenError):
            verify_publisher(wrong, secrets=SECRETS)
    with pytest.raises(TokenError):
        verify_publisher(token, secrets=SECRETS[:1], now=1009)


def test_no_token_passes_for_the_other_kind() -> None:
    """Who may read may not publish by that, nor the other way round."""
    reader = tokens.sign("room:1", secrets=SECRETS)
    with pytest.raises(TokenError):
        verify_publisher(reader.partition(".")[2], secrets=SECRETS)
    with pytest.raises(TokenError):
        tokens.verify(reader.partition(".")[0] + "." + sign_publisher("room:1", secrets=SECRETS), secrets=SECRETS)


@pytest.mark.parametrize(
    ("patterns", "options", "error"),
    [
        ([], {}, TokenError),
        (["a"] * 65, {}, TokenError),
        ([""], {}, StreamNameError),
        (["x" * 513], {}, StreamNameError),
        (["a"], {"ttl_s": 0}, TokenError),
        (["a"], {"secrets": ()}, TokenError),
    ],
)
def test_a_senseless_token_is_not_signed(patterns: list[str], options: dict[str, Any], error: type[Exception]) -> None:
    """What nobody could use, or nobody bound, is refused where it is made."""
    with pytest.raises(error):
        sign_publisher(patterns, **{"secrets": SECRETS, **options})


def test_a_body_is_an_event_or_a_list() -> None:
    """Left out, the type is message and everybody sees it; a null is the same."""
    assert read_events(b'{"stream": "a", "data": ""}') == (True, [("a", "", "message", None)])
    full = {"stream": "a", "data": "x\r\n", "event": "note", "visible_to": "staff"}
    nulls = {"stream": "b", "data": "y", "event": None, "visible_to": None}
    found = read_events(json.dumps([full, nulls]).encode())
    assert found == (False, [("a", "x\r\n", "note", "staff"), ("b", "y", "message", None)])
    assert read_events(b"[]") == (False, [])


GOOD = {"stream": "a", "data": "x"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": "x"},
        {"stream": "a"},
        {**GOOD, "visibleTo": "staff"},
        {**GOOD, "data": 5},
        {**GOOD, "stream": ["a"]},
        {**GOOD, "stream": ""},
        {**GOOD, "event": "headrace:gap"},
        {**GOOD, "event": "a\nb"},
        {**GOOD, "event": 1},
        {**GOOD, "visible_to": ""},
        {**GOOD, "visible_to": False},
        {**GOOD, "data": "a\0b"},
        {**GOOD, "data": "\ud800"},
        5,
        None,
    ],
)
def test_a_wrong_event_is_named(wrong: object) -> None:
    """Which one of a batch, and what is wrong with it; nothing of the batch is used."""
    with pytest.raises(UsageError, match=r"^event 1"):
        read_events(json.dumps([GOOD, wrong, GOOD]).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_not_json(body: bytes) -> None:
    """It is the client's mistake, whatever it is."""
    with pytest.raises(UsageError):
        read_events(body)


def test_a_batch_is_bounded() -> None:
    """More than a thousand events are to be sent in parts."""
    assert len(read_events(json.dumps([GOOD] * 1000).encode())[1]) == 1000
    with pytest.raises(TooLargeError):
        read_events(json.dumps([GOOD] * 1001).encode())


def test_a_token_of_an_older_version_is_known() -> None:
    """A token that version 0.2 has signed allows the same as before."""
    token = "eyJwIjpbInJvb206KiJdLCJpIjoxNzkwMDAwMDAwMDAwfQ.ofPhwjwNS-0o_x2XpjVe7hoe9BMo2ex58r2H5fVlB1k"
    assert verify_publisher(token, secrets=["k" * 32], now=1790000001).patterns == ("room:*",)
