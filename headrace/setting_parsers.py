"""How the text of a variable `HEADRACE_…` becomes the value of a setting; `headrace/settings.py` has the settings.

A `SettingParser` turns text into a value, or raises ValueError whose message completes the sentence "allowed is …". Its
`allowed` says the same in general, for the documentation.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = frozenset({"at-least-16-characters-of-your-own"})
"""Secrets that stand in files which everybody can read."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")
_OWN_PORTS = {"http": ":80", "https": ":443"}
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class SettingParser:
    """What a setting may be, in words; the function that reads it; whether its values may hold a password."""

    allowed: str
    read: Callable[[str], Any]
    secret: bool = False

    def __call__(self, text: str) -> Any:
        """The value that text stands for. Raises ValueError, whose message is what is allowed instead."""
        return self.read(text)


def number(kind: Callable[[str], Any], low: float, high: float, unit: str) -> SettingParser:
    """A number of the unit ("" for a bare number) from low to high, both included; kind is int or float."""
    noun = "a whole number" if kind is int else "a number"
    # As many digits as a number needs: 1,000,000 and 0.01, never 1e+06.
    allowed = f"{noun} of {unit}" if unit else noun
    allowed += f" from {low:,.15g} to {high:,.15g}"

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= value <= high:
            raise ValueError(allowed)
        return value

    return SettingParser(allowed, read)


def seconds(low: float, high: float) -> SettingParser:
    """A number of seconds from low to high, with or without a fraction."""
    return number(float, low, high, "seconds")


def count(low: int, high: int, unit: str = "") -> SettingParser:
    """A whole number of the unit from low to high."""
    return number(int, low, high, unit)


def url(*schemes: str) -> SettingParser:
    """A URL with one of the schemes; what follows the scheme is not examined."""
    allowed = "a URL that begins with " + " or ".join(f"{scheme}://" for scheme in schemes)

    def read(text: str) -> str:
        if not text.startswith(tuple(f"{scheme}:" for scheme in schemes)):
            raise ValueError(allowed)
        return text

    return SettingParser(allowed, read)


def server_url(*schemes: str) -> SettingParser:
    """The URL of a server, with one of the schemes. It may hold a password, so no message shows it."""
    return dataclasses.replace(url(*schemes), secret=True)


def one_of(*words: str) -> SettingParser:
    """One of the words, exactly."""
    allowed = ", ".join(words[:-1]) + f" or {words[-1]}"

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(allowed)
        return text

    return SettingParser(allowed, read)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))


def _origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them: in small letters, without a path, and without the scheme's own port."""
    found = []
    for word in _words(text):
        if word in ("null", "*"):
            raise ValueError(
                "origins such as https://www.example.com; null is what any sandboxed page and any local file sends, "
                "and * would be anybody"
            )
        origin = word.lower().removesuffix("/")
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(ORIGINS.allowed)
        scheme, _, host = origin.partition("://")
        found.append(f"{scheme}://{host.removesuffix(_OWN_PORTS.get(scheme, '/'))}")
    return tuple(found)


def _proxies(text: str) -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        if word != "unix":
            try:
                ipaddress.ip_network(word)
            except ValueError:
                raise ValueError(PROXIES.allowed) from None
    return words


def _secrets(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not words or min(map(len, words)) < 16:
        raise ValueError(SECRETS.allowed)
    if EXAMPLES.intersection(words):
        raise ValueError("a secret of your own, not the example's, which everybody knows: openssl rand -hex 32")
    return words


def _password(text: str) -> str:
    if len(text) < 16:
        raise ValueError(PASSWORD.allowed)
    # Making an attacker wait would make everybody else wait too, so the token itself must be beyond guessing.
    if text in EXAMPLES or len(set(text)) < 8:
        raise ValueError("a secret that nobody can guess, such as what `openssl rand -hex 32` prints")
    return text


def _name(text: str) -> str:
    if not text or len(text) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in text):
        raise ValueError(NAME.allowed)
    return text


def _prefix(text: str) -> str:
    # In braces it is a hash tag, by which a cluster keeps all keys on one node.
    inner = text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{0,63}[A-Za-z0-9]", inner):
        raise ValueError(PREFIX.allowed)
    return text


def _switch(text: str) -> bool:
    try:
        return _SWITCH[text.lower()]
    except KeyError:
        raise ValueError(SWITCH.allowed) from None


PATH = SettingParser("a path", Path)
MODULE = SettingParser("the name of a Python module", str)
SWITCH = SettingParser("on or off", _switch)
NAME = SettingParser("1 to 64 ASCII letters, digits, dots, dashes or underscores", _name)
PREFIX = SettingParser(
    "1 to 64 ASCII letters, digits, dots, dashes, underscores or colons, with one of the first two last, "
    "and for a cluster braces around them",
    _prefix,
)
ORIGINS = SettingParser("comma-separated origins, each a scheme and a host, such as https://www.example.com", _origins)
PROXIES = SettingParser("comma-separated addresses or networks such as 10.0.0.0/8, or unix", _proxies)
SECRETS = SettingParser("one or more comma-separated secrets of at least 16 characters each", _secrets, secret=True)
REDIS = server_url(
    *("redis", "rediss", "unix"), *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
)
PASSWORD = SettingParser("a secret of at least 16 characters", _password, secret=True)
