"""headrace/tokens.py"""

import hashlib
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from headrace import sql_calls
from headrace.errors import StreamNameError, TokenDateError, TokenError, TokenExpiredError, UsageError
from headrace.predicates import predicate
from headrace.publisher_tokens import sign_publisher, verify_publisher
from headrace.stream import slot
from headrace.tokens import Context, serializer, sign, verify

OLD, NEW = "an old secret of length", "a new secret of length"


def test_round_trip() -> None:
    """A token carries its streams in order and the connection's context."""
    segment = sign(["room:1", "ж"], secrets=[NEW], user="ada", audiences=["staff", "eu"], ttl_s=60, now=1000.5)
    token = verify(segment, secrets=[NEW], now=1001)
    assert token.streams == ("room:1", "ж")
    assert token.context == Context("ada", frozenset({"staff", "eu"}), 1_000_500, 1_060_500)
    assert segment.startswith(f"{slot('room:1')}.")


def test_no_expiry() -> None:
    """Without a life given, a token never expires."""
    assert verify(sign("a", secrets=[NEW], now=0), secrets=[NEW], now=1e10).context.expires_ms is None


def test_expiry() -> None:
    """A token is refused from its expiry on, with an error of its own."""
    segment = sign("a", secrets=[NEW], ttl_s=10, now=1000)
    assert verify(segment, secrets=[NEW], now=1009.9)
    with pytest.raises(TokenExpiredError):
        verify(segment, secrets=[NEW], now=1010)


def test_rotation() -> None:
    """The first secret signs and all verify."""
    old = sign("a", secrets=[OLD])
    assert verify(old, secrets=[NEW, OLD]).streams == ("a",)
    assert verify(sign("a", secrets=[NEW, OLD]), secrets=[NEW]).streams == ("a",)
    with pytest.raises(TokenError):
        verify(old, secrets=[NEW])


def test_tampered() -> None:
    """Changing any character of a token, or the slot, makes it unknown."""
    segment = sign("room:1", secrets=[NEW])
    for index in range(len(segment)):
        other = "A" if segment[index] != "A" else "B"
        # The last character of base64 without padding has bits that mean nothing.
        if index < len(segment) - 1:
            with pytest.raises(TokenError):
                verify(segment[:index] + other + segment[index + 1 :], secrets=[NEW])


@pytest.mark.parametrize("segment", ["", ".", "1", "1.", "1.x", "1.a.b", "1." + "x" * 100_000, "ж.ж"])
def test_garbage(segment: str) -> None:
    """Garbage is an unknown token."""
    with pytest.raises(TokenError):
        verify(segment, secrets=[NEW])


def test_a_token_has_one_spelling() -> None:
    """Nothing but the very text that was signed is a token, though other texts have the same bytes in base64."""
    segment = sign("a", secrets=[NEW])
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = letters.index(segment[-1])
    assert last % 4 == 0
    for other in (
        *(segment[:-1] + letters[last + unused] for unused in (1, 2, 3)),
        *(f"{segment}{padding}" for padding in ("=", "!", " ", "\n", "é")),
        *(f"{segment[:-20]}{ignored}{segment[-20:]}" for ignored in ("!", " ", "%", "=", "\n")),
    ):
        with pytest.raises(TokenError):
            verify(other, secrets=[NEW])
        with pytest.raises(TokenError):
            verify_publisher(other, secrets=[NEW])
    publisher = sign_publisher("*", secrets=[NEW])
    assert verify_publisher(publisher, secrets=[NEW]).may_publish_to("a")
    with pytest.raises(TokenError):
        verify_publisher(f"{publisher[:-20]}!{publisher[-20:]}", secrets=[NEW])


def test_wrong_slot() -> None:
    """The slot in front must be that of the first stream, or balancers would spread one stream."""
    _, _, signed = sign("room:1", secrets=[NEW]).partition(".")
    with pytest.raises(TokenError, match="slot"):
        verify(f"{(slot('room:1') + 1) % 1024}.{signed}", secrets=[NEW])


@pytest.mark.parametrize("streams", [[], ["a", "a"], [f"s{i}" for i in range(65)], [""], ["x" * 513]])
def test_refused_streams(streams: list[str]) -> None:
    """A token is for 1 to 64 different streams with proper names."""
    with pytest.raises(StreamNameError):
        sign(streams, secrets=[NEW])


def test_refused_arguments() -> None:
    """No secret, a life of nothing and a text for audiences are errors that say so."""
    with pytest.raises(TokenError, match="HEADRACE_SECRET"):
        sign("a", secrets=[])
    with pytest.raises(TokenError, match="above 0"):
        sign("a", secrets=[NEW], ttl_s=0)
    with pytest.raises(TokenError, match="list"):
        sign("a", secrets=[NEW], audiences="staff")


def test_64_long_names_fit() -> None:
    """The most streams with the longest names make a token that verifies."""
    names = [f"{i:03}{'é' * 254}x" for i in range(64)]
    assert verify(sign(names, secrets=[NEW]), secrets=[NEW]).streams == tuple(names)


@pytest.mark.parametrize(
    ("presence", "present"),
    [(False, ()), (True, ("a", "b")), ("b", ("b",)), (["b", "a"], ("a", "b")), ([], ())],
)
def test_presence(presence: bool | str | list[str], present: tuple[str, ...]) -> None:
    """A token says on which of its streams the user is present; True means all that can have members."""
    segment = sign(["a", "b", "presence:a"], secrets=[NEW], user="ada", presence=presence)
    assert verify(segment, secrets=[NEW]).context.presence == frozenset(present)


@pytest.mark.parametrize("user", [None, "", "a\0b", "\ud800", "x" * 513])
def test_nobody_cannot_be_present(user: str | None) -> None:
    """A presence takes a user, whose name PostgreSQL can keep."""
    with pytest.raises(TokenError):
        sign("a", secrets=[NEW], user=user, presence=True)


@pytest.mark.parametrize("stream", ["b", "presence:a", "x" * 510])
def test_presence_is_on_a_stream_of_the_token(stream: str) -> None:
    """One cannot be present on a stream that the token does not open, that is a companion, or cannot have one."""
    streams = ["a", "presence:a", "x" * 510]
    with pytest.raises((TokenError, StreamNameError)):
        sign(streams, secrets=[NEW], user="ada", presence=[stream])


def test_a_token_that_is_dated_ahead_is_refused() -> None:
    """It would outlive a revocation made before its date; a clock that is a little ahead does no harm."""
    ahead = sign("a", secrets=[NEW], user="ada", now=1060, ttl_s=5)
    assert verify(ahead, secrets=[NEW], now=1000).context.issued_ms == 1_060_000
    with pytest.raises(TokenDateError, match=r"dated 61 seconds ahead .* correct the clock"):
        verify(ahead, secrets=[NEW], now=999)
    assert verify(ahead, secrets=[NEW], now=1001)


@pytest.mark.parametrize("claim", [{"i": "soon"}, {"i": None}, {"x": "late"}, {"s": 5}, {"p": [9]}, [], "text"])
def test_signed_nonsense_is_unknown(claim: object) -> None:
    """What is signed with the secret, but is no token, is refused as one that is not ours."""
    claims: object = {"s": ["a"], "i": 0} | claim if isinstance(claim, dict) else claim
    segment = f"{slot('a')}.{serializer([NEW]).dumps(claims)}"
    with pytest.raises(TokenError):
        verify(segment, secrets=[NEW])


@pytest.mark.parametrize(
    "user", ["a\0b", "\ud800", "é" * 8193, b"ada", "", "é" * 8192, 17, UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")]
)
def test_whom_a_token_carries_a_revocation_can_name(user: object) -> None:
    """Signing and disconnecting take the same users, by the same name."""
    try:
        name = verify(sign("a", secrets=[NEW], user=user), secrets=[NEW]).context.user
    except TokenError:
        with pytest.raises(UsageError):
            sql_calls.disconnect(user, None, "gone", 0)
    else:
        assert sql_calls.disconnect(user, None, "gone", 0).parameters[0] == name


@pytest.mark.parametrize("label", ["", "a\0b", "\ud800", "é" * 257, 7, None, b"x", "é" * 256])
def test_an_audience_is_a_label_that_events_and_predicates_have(label: str) -> None:
    """What no event can be visible to is no audience, and has no predicate; what can be, is and has."""
    uses: list[Callable[[], object]] = [
        lambda: sign("a", secrets=[NEW], audiences=[label]),
        lambda: predicate(label),
        lambda: sql_calls.publish("a", "x", "message", label),
    ]
    if label == "é" * 256:
        assert all(use() for use in uses)
        return
    for use in uses if label is not None else uses[:2]:
        with pytest.raises(UsageError):
            use()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"streams": 5}, "streams must be a name or a list of names, not 5"),
        ({"streams": None}, "streams must be a name or a list of names"),
        ({"streams": b"a"}, "streams must be a name or a list of names"),
        ({"streams": [b"a"]}, "a stream name must be text"),
        ({"audiences": "staff"}, "audiences must be a list of labels"),
        ({"audiences": 5}, "audiences must be a list of labels"),
        ({"ttl_s": "60"}, "a token's life must be above 0"),
        ({"ttl_s": timedelta(hours=1)}, "a token's life must be above 0"),
        ({"ttl_s": True}, "a token's life must be above 0"),
        ({"ttl_s": math.inf}, "a token's life must be above 0"),
        ({"ttl_s": math.nan}, "a token's life must be above 0"),
        ({"presence": 5}, "presence must be True or a list of streams"),
        ({"secrets": NEW}, "secrets must be a list"),
        ({"secrets": [""]}, "one of the secrets is empty"),
        ({"streams": [n * 512 for n in "abcdefghij"], "user": "".join(map(chr, range(256, 5000)))}, "characters"),
    ],
)
def test_an_argument_that_is_not_understood_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    """Nothing is signed that servers would take for something else, or refuse for ever."""
    if sentence == "characters":
        arguments["audiences"] = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(800)]
    with pytest.raises(UsageError, match=sentence):
        sign(**{"streams": "a", "secrets": [NEW]} | arguments)
