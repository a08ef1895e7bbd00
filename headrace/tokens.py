"""Signed stream tokens: which streams a client may read, as which user, and until when.

A token is itsdangerous' URL-safe signed JSON (compressed when that is shorter):

    {"s": ["room:1"], "i": 1790000000000, "x": 1790000600000, "u": "ada", "a": ["staff"], "p": [0]}

s the streams in order, i the issue time and x the expiry (milliseconds since the epoch), u the user, a the audiences
and p the indexes of the streams on which the user is present; x, u, a and p are left out when there are none. A token
is signed, not encrypted: everybody who has one can read it.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import itsdangerous

from headrace.errors import StreamNameError, TokenDateError, TokenError, TokenExpiredError
from headrace.stream import PRESENCE_PREFIX, check_name, check_names, presence_stream, slot
from headrace.text_limits import MAX_WORD_BYTES, check_text, check_user

MAX_STREAMS: Final = 64
MAX_TOKEN_CHARS: Final = 48 * 1024
# Of the 258 bits of a signature's 43 characters the last two are unused, and zero.
_SIGNED: Final = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
MAX_PRESENT_USER_BYTES: Final = 512
"""Of the name of a user whom a token makes present; the name is a key in PostgreSQL's tables of presence."""
MAX_TTL_S: Final = 100 * 365.25 * 86_400
MAX_AHEAD_S: Final = 60.0
"""How many seconds the clock of the signing host may be ahead. A token with a later time of issue is refused: it would
outlive a revocation that was made before that time."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a token says of its client. Predicates are given it, and it stays with a connection that moves.

    issued_ms and expires_ms are milliseconds since the epoch; expires_ms is None for a token without expiry. presence
    has the streams on which the connection makes its user present.
    """

    user: str | None = None
    audiences: frozenset[str] = frozenset()
    issued_ms: int = 0
    expires_ms: int | None = None
    presence: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token: its streams in the order of composite cursors, and the connection's context."""

    streams: tuple[str, ...]
    context: Context


def sign(
    streams: str | Sequence[str],
    *,
    secrets: Sequence[str],
    user: object = None,
    audiences: Sequence[str] = (),
    ttl_s: float | None = None,
    presence: bool | Sequence[str] = False,
    now: float | None = None,
) -> str:
    """Return the path segment `<slot>.<token>` that allows a client to read the streams.

    Applications call `headrace.sign`. The first secret signs. ttl_s is the life of the token in seconds, None for ever.
    presence names those of the streams on which the user is present while connected; True means all but companion
    streams. now is the time of issue in seconds since the epoch, None for the clock's.

    Raises StreamNameError for a name that cannot be a stream, for no stream, for more than 64 and for the same stream
    twice; TokenError without a secret, for a user or an audience that PostgreSQL cannot store, for a presence without a
    user or on another stream, and for a token of more than MAX_TOKEN_CHARS characters.
    """
    names = check_names(streams)
    if not 1 <= len(names) <= MAX_STREAMS:
        raise StreamNameError(f"a token is for 1 to {MAX_STREAMS} streams, not {len(names)}")
    if len(set(names)) != len(names):
        raise StreamNameError("a token names each stream once")
    if isinstance(audiences, str) or not isinstance(audiences, Iterable):
        raise TokenError(f"audiences must be a list of labels, not {audiences!r:.80}")
    check_ttl(ttl_s)
    issued_ms = int((time.time() if now is None else now) * 1000)
    claims: dict[str, Any] = {"s": names, "i": issued_ms}
    if ttl_s is not None:
        claims["x"] = issued_ms + int(ttl_s * 1000)
    if user is not None:
        claims["u"] = check_user(user, TokenError)
    if labels := {check_text("an audience", label, MAX_WORD_BYTES, TokenError) for label in audiences}:
        claims["a"] = sorted(labels)
    if present := _present(names, claims.get("u"), presence):
        claims["p"] = present
    signed = str(serializer(secrets).dumps(claims))
    if len(signed) > MAX_TOKEN_CHARS:
        raise TokenError(
            f"the token has {len(signed)} characters and servers take {MAX_TOKEN_CHARS}; sign it for fewer or shorter "
            "streams, audiences and users"
        )
    return f"{slot(names[0])}.{signed}"


def verify(segment: str, *, secrets: Sequence[str], now: float | None = None) -> Token:
    """Check the path segment `<slot>.<token>` and return what the token allows; now is in seconds since the epoch.

    Raises TokenError for a text that none of the secrets has signed, or whose slot is not that of the first stream;
    TokenExpiredError for a token past its expiry; TokenDateError for a token whose time of issue is more than
    MAX_AHEAD_S ahead.
    """
    number, dot, signed = segment.partition(".")
    if not dot or len(signed) > MAX_TOKEN_CHARS:
        raise TokenError()
    try:
        claims = opened(signed, secrets)
    except itsdangerous.BadData:
        raise TokenError() from None
    now_ms = (time.time() if now is None else now) * 1000
    try:
        streams = tuple(check_name(name) for name in claims["s"])
        context = Context(
            user=claims.get("u"),
            audiences=frozenset(claims.get("a", ())),
            issued_ms=claims["i"],
            expires_ms=claims.get("x"),
            presence=frozenset(streams[index] for index in claims.get("p", ())),
        )
        expired = context.expires_ms is not None and now_ms >= context.expires_ms
        ahead_s = (context.issued_ms - now_ms) / 1000
    except (LookupError, TypeError, AttributeError, StreamNameError) as error:
        raise TokenError() from error
    if not streams or number != str(slot(streams[0])):
        raise TokenError("the slot before the token is not that of its first stream; use the URL unchanged")
    if expired:
        raise TokenExpiredError()
    if ahead_s > MAX_AHEAD_S:
        raise TokenDateError(
            f"the token is dated {ahead_s:.0f} seconds ahead of this server's clock; correct the clock of the host "
            "that signs, then sign another"
        )
    return Token(streams, context)


def _present(streams: Sequence[str], user: str | None, presence: bool | Sequence[str]) -> list[int]:
    """The indexes of the streams on which the token makes its user present."""
    if presence is True:
        chosen = [name for name in streams if not name.startswith(PRESENCE_PREFIX)]
    else:
        if presence is not False and not isinstance(presence, Iterable):
            raise TokenError(f"presence must be True or a list of streams, not {presence!r:.80}")
        chosen = [presence] if isinstance(presence, str) else list(presence or ())
    for name in chosen:
        presence_stream(name)
        if name not in streams:
            raise TokenError(f"the token is not for the stream {name!r}, on which the user would be present")
    if chosen:
        _check_user(user)
    return sorted({streams.index(name) for name in chosen})


def _check_user(user: str | None) -> None:
    """Raise TokenError for a user that PostgreSQL cannot store as a member of a stream."""
    if not user:
        raise TokenError("nobody can be present without a name; sign the token with a user")
    try:
        fits = len(user.encode()) <= MAX_PRESENT_USER_BYTES and "\0" not in user
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise TokenError(
            f"a user who is present has 1 to {MAX_PRESENT_USER_BYTES} bytes of UTF-8 without NUL, not {user!r:.80}"
        )


def check_ttl(ttl_s: object) -> None:
    """Raise TokenError unless ttl_s is a token's life: None for ever, or seconds above 0 and up to 100 years."""
    if ttl_s is None:
        return
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 < ttl_s <= MAX_TTL_S:
        raise TokenError(
            f"a token's life must be above 0 and up to {MAX_TTL_S:.0f} seconds, or None for ever, not {ttl_s!r:.80}"
        )


def opened(signed: str, secrets: Sequence[str], salt: str = "headrace.stream") -> Any:
    """Return the content of a text that one of the secrets has signed.

    Raises itsdangerous.BadData for any other text, and for another spelling of a signed text, which base64 would
    accept.
    """
    if not _SIGNED.fullmatch(signed):
        raise itsdangerous.BadData("not a signed text")
    return serializer(secrets, salt).loads(signed)


def serializer(secrets: Sequence[str], salt: str = "headrace.stream") -> itsdangerous.URLSafeSerializer:
    """Return a serializer that signs with the first secret and verifies with all.

    Each kind of token has its own salt, so that none passes for another. Raises TokenError without a secret.
    """
    if isinstance(secrets, str | bytes):
        raise TokenError("secrets must be a list, of which the first one signs; this is one text")
    if not all(secrets):
        raise TokenError("one of the secrets is empty; set all of them, or leave it out")
    if not secrets:
        raise TokenError("no secret is set; set HEADRACE_SECRET to the one that the application signs with")
    return _serializer(tuple(secrets), salt)


@lru_cache(maxsize=32)
def _serializer(secrets: tuple[str, ...], salt: str) -> itsdangerous.URLSafeSerializer:
    """Kept, since making one costs as much as verifying a token with it."""
    # itsdangerous signs with the last key of a list and verifies with all.
    return _Serializer(
        list(reversed(secrets)),
        salt=salt,
        signer=_Signer,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )


class _Signer(itsdangerous.Signer):
    """itsdangerous' signer, which derives the key of each secret once and not for each token. Keeps nothing else."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._derived: dict[object, bytes] = {}

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        key = self._derived.get(secret_key)
        if key is None:
            key = self._derived[secret_key] = super().derive_key(secret_key)
        return key


class _Serializer(itsdangerous.URLSafeSerializer):
    """itsdangerous' serializer, which makes the signer of its own salt once and not for each token."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._signer = super().make_signer()

    def make_signer(self, salt: str | bytes | None = None) -> itsdangerous.Signer:
        return self._signer if salt in (None, self.salt) else super().make_signer(salt)
