"""Logging of every process: one event a line on standard error, as JSON or for people, and never with a secret in it.

    {"event": "hand-off", "request_id": "51b1d976", "outcome": "accepted", "shard": "web1-0", "duration_ms": 1.0, …,
     "timestamp": "…Z", "level": "info", "logger": "headrace.router.stream_endpoint", "process": "router", "pid": 17}

`event` says what happened; what it happened to has keys of its own, which the caller gives as `extra`. What libraries
say, gunicorn among them, takes the same form. Redaction works on the whole line, so that no way into a line is missed;
and since clients choose a part of what is logged, every value has a greatest length, and no line costs more than that.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog
from structlog.typing import EventDict, Processor

from headrace.settings import Settings

SHORTEST_SECRET: Final = 4
"""A shorter password cannot be told from words of the text."""
MOST_CHARS: Final = 16 << 10
"""Of a message, or another value of a line: of a longer one, its beginning and its end are kept."""
_HIDDEN: Final = "…"
_SIGNATURE_CHARS: Final = 43
_PAYLOAD_CHARS: Final = 8
_SHORT: Final = (int, float, type(None), logging.LogRecord)
_DECODINGS: Final = 3
"""A proxy may have encoded what was encoded already."""
_TOKEN_RUN: Final = re.compile(r"(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]{52,}")
_WORD: Final = re.compile(r"[^\s'\"\\]+")
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")


def _without_tokens(run: re.Match[str]) -> str:
    """A run of a token's characters without the tokens in it.

    A token is `<slot>.` and `.`, which may be missing, its claims, a dot and a signature of 256 bits.
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
    # What tells at little cost that the pattern may be in a text of small letters, the pattern, and what replaces it. A
    # client may choose the text: no pattern may look at the same character again and again for many of its beginnings.
    # What follows in the path is a token: whoever reads it could read the streams.
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
    """Removes tokens and passwords from text, and every one of the secrets that it was made with. Immutable.

    Percent-encoding hides none of them. It takes time in proportion to the text's length, whatever the text.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        # As they are, and as they stand in JSON and in repr().
        known |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in known} | {repr(s)[1:-1] for s in known}
        self._known = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else None
        # Nothing that a cut has left a part of is longer, a percent-encoded one neither.
        self._margin = 3 * max(map(len, known | {"x" * (_SIGNATURE_CHARS + _PAYLOAD_CHARS)}))

    @classmethod
    def of(cls, settings: Settings) -> "Redaction":
        """One that knows the settings' secrets: those of tokens, and the passwords of their URLs."""
        found: list[str] = []
        for field in fields(settings):
            value = getattr(settings, field.name)
            if field.metadata.get("secret"):
                for text in (value,) if isinstance(value, str) else value:
                    found += _passwords(text) if "://" in text else [text]
        return cls(found)

    def __call__(self, text: str) -> str:
        """The text without what must not be in a log."""
        text = self._plain(text)
        decoded = text
        for _ in range(_DECODINGS):
            if not _ENCODED.search(decoded):
                break
            decoded = unquote(decoded)
            if self._plain(decoded) != decoded:
                # Whose letters are encoded is not looked for: it would take long for a text of many words.
                return _WORD.sub(lambda word: _HIDDEN if "%" in word[0] else word[0], text)
        return text

    def shortened(self, text: str) -> str:
        """The text if it is short, else its beginning and its end, without the secrets that the cut has halved."""
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


def formatter(settings: Settings, process: str) -> logging.Formatter:
    """What turns a record into a line: JSON, or text where a person reads along."""
    readable = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    redaction = Redaction.of(settings)
    render: Any
    if readable:
        render = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            pad_level=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    else:
        render = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)

    def name(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["process"], event["pid"] = process, os.getpid()
        return event

    def short(_logger: Any, _method: str, event: EventDict) -> EventDict:
        for key, value in event.items():
            if not isinstance(value, _SHORT):
                text = value if isinstance(value, str) else repr(value)
                if len(text) > MOST_CHARS:
                    event[key] = redaction.shortened(text)
        return event

    def line(logger: Any, method: str, event: EventDict) -> str:
        return redaction(render(logger, method, event))

    chain: list[Processor] = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper("iso", utc=True),
        name,
        structlog.processors.format_exc_info,
        short,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=chain,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, line],
    )


def set_up(settings: Settings, process: str) -> None:
    """Send what this process logs, at the settings' level and above, to standard error; replaces what was set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings, process))
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


def gunicorn_config(settings: Settings, process: str) -> dict[str, Any]:
    """The same as a value of gunicorn's `logconfig_dict`, for its master, which sets up logging by itself."""
    return {
        "disable_existing_loggers": False,
        "formatters": {"headrace": {"()": lambda: formatter(settings, process)}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "headrace", "stream": "ext://sys.stderr"}
        },
        "root": {"level": settings.log_level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            # Given a logging configuration gunicorn writes an access log, whatever `accesslog` says.
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }
