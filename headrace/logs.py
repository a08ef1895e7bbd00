"""Logging of every process: one event a line on standard error, as JSON or for people, and never with a secret in it.

    {"event": "hand-off", "request_id": "51b1d976", "outcome": "accepted", "shard": "web1-0", "duration_ms": 1.0, …,
     "timestamp": "…Z", "level": "info", "logger": "router.streams", "process": "router", "pid": 17}

`event` says what happened; what it happened to has keys of its own, which the caller gives as `extra`. What libraries
say, gunicorn among them, takes the same form. Redaction works on the whole line, so that no way into a line is missed.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog
from structlog.typing import EventDict, Processor

from headrace.settings import Settings

SHORTEST_SECRET: Final = 4
"""A shorter password cannot be told from words of the text."""
_HIDDEN: Final = "…"
_RULES: Final = (
    # What tells at little cost that the pattern may be in a text of small letters, the pattern, and what replaces it.
    # What follows in the path is a token: whoever reads it could read the streams.
    (re.compile("/streams/"), re.compile(r"(/streams/)[^\s'\"?\\]+"), rf"\1{_HIDDEN}"),
    # A token by itself: its claims, and a signature of 256 bits.
    (
        re.compile(r"\.[\w-]{43}"),
        re.compile(r"(?:\b\d{1,4}\.)?\.?\b[\w-]{8,}\.[\w-]{43}(?![\w-])"),
        _HIDDEN,
    ),
    (re.compile("@"), re.compile(r"(\w:///?[^\s:/@'\"]*):[^\s@'\"]+@"), rf"\1:{_HIDDEN}@"),
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
    """Removes tokens and passwords from text, and every one of the secrets that it was made with. Immutable."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        # As they are, and as they stand in JSON and in repr().
        known |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in known} | {repr(s)[1:-1] for s in known}
        self._known = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else None

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

    def line(logger: Any, method: str, event: EventDict) -> str:
        return redaction(render(logger, method, event))

    chain: list[Processor] = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper("iso", utc=True),
        name,
        structlog.processors.format_exc_info,
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
