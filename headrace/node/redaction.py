"""Redaction: tokens, passwords and secrets are taken out of a text before it is logged.

Clients choose a part of what is logged, so no text may make redaction slow, and none may be logged at any length.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Final
from urllib.parse import unquote, urlsplit

from headrace.settings import Settings

SHORTEST_SECRET: Final = 4
"""A shorter password is not looked for: it cannot be told from words of the text."""
MOST_CHARS: Final = 16 << 10
"""The greatest length of a message, or of another value of a line; of a longer one the two ends are kept."""
_HIDDEN: Final = "…"
_SIGNATURE_CHARS: Final = 43
_PAYLOAD_CHARS: Final = 8
_DECODINGS: Final = 3
"""How often a text is percent-decoded: a proxy may have encoded text that was encoded already."""
_TOKEN_RUN: Final = re.compile(r"(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]{52,}")
_WORD: Final = re.compile(r"[^\s'\"\\]+")
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")


def _without_tokens(run: re.Match[str]) -> str:
    """The text, which has only characters that occur in a token, without the tokens in it.

    A token is `<slot>.<claims>.<signature>` or `.<claims>.<signature>`, or lacks all that stands before the claims. A
    signature has 256 bits.
    """
    pieces = run[0].split(".")
    kept: list[str] = []
    for piece in pieces:
        if len(piece) < _SIGNATURE_CHARS or not kept or len(kept[-1]) < _PAYLOAD_CHARS:
            kept.append(piece)
            continue
        kept.pop()
        if kept and not kept[-1]:
            kept.pop()
        if kept and 1 <= len(kept[-1]) <= 4 and kept[-1].isdigit():
            kept.pop()
        kept.append(_HIDDEN)
    return ".".join(kept)


_RULES: Final[tuple[tuple[re.Pattern[str], re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    # Of each rule: a pattern that tells at little cost whether the second pattern may match, the text being in small
    # letters; the second pattern; and what replaces its matches. A client may choose the text, so no pattern may look
    # at one character again and again because a match might begin in many places. The rest of the path is a token, with
    # which one could read the streams.
    (re.compile("/streams/"), re.compile(r"(/streams/)[^\s'\"?\\]+"), rf"\1{_HIDDEN}"),
    # A token by itself.
    (re.compile(r"\.[a-z0-9_-]{43}"), _TOKEN_RUN, _without_tokens),
    (
        re.compile("@"),
        re.compile(r"(\w:///?[^\s:/@'\"]{0,128}):[^\s@'\"]{1,256}@"),
        rf"\1:{_HIDDEN}@",
    ),
    (
        re.compile("password|secret"),
        re.compile(r"\b(password|secret)(\s*=\s*\\?)('[^']*'|[^\s&'\"\\]+)", re.IGNORECASE),
        rf"\1\2{_HIDDEN}",
    ),
    (
        re.compile("authorization|cookie"),
        re.compile(r"\b(authorization|cookie)(['\"\\]*\s*[:=]\s*['\"\\]*)[^\r\n'\"\\]+", re.IGNORECASE),
        rf"\1\2{_HIDDEN}",
    ),
)


class Redaction:
    """Removes tokens, passwords and the given secrets from texts, percent-encoded ones too. Immutable.

    It takes time in proportion to a text's length, whatever the text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        # The secrets as they are, and as JSON and repr() write them.
        known |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in known} | {repr(s)[1:-1] for s in known}
        self._known = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else None
        # No secret or token, percent-encoded or not, is longer than this: a part that a cut has left is no longer
        # either.
        self._margin = 3 * max(map(len, known | {"x" * (_SIGNATURE_CHARS + _PAYLOAD_CHARS)}))

    @classmethod
    def of(cls, settings: Settings) -> "Redaction":
        """The redaction that knows the settings' secrets: those that sign tokens, and the passwords in URLs."""
        found: list[str] = []
        for field in fields(settings):
            value = getattr(settings, field.name)
            if field.metadata.get("secret"):
                for text in (value,) if isinstance(value, str) else value:
                    found += _passwords(text) if "://" in text else [text]
        return cls(found)

    def __call__(self, text: str) -> str:
        """The text, in which each secret is replaced by "…"."""
        text = self._plain(text)
        decoded = text
        for _ in range(_DECODINGS):
            if not _ENCODED.search(decoded):
                break
            decoded = unquote(decoded)
            if self._plain(decoded) != decoded:
                # Each word with an encoded letter goes: to find the one with the secret could take long in a long text.
                return _WORD.sub(lambda word: _HIDDEN if "%" in word[0] else word[0], text)
        return text

    def shortened(self, text: str) -> str:
        """The text if it is short, else its beginning and its end, without secrets that the cut has halved."""
        if len(text) <= MOST_CHARS:
            return text
        half = MOST_CHARS // 2
        begin, end = self(text[:half])[: -self._margin], self(text[-half:])[self._margin :]
        return f"{begin} … {len(text) - MOST_CHARS} characters are left out … {end}"

    def _plain(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(_HIDDEN, text)
        small = text.lower()
        for likely, pattern, replacement in _RULES:
            if likely.search(small):
                text = pattern.sub(replacement, text)
        return text


def _passwords(url: str) -> list[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return []
    return [password, unquote(password)]
