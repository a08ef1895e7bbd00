"""Logging of every process: one event a line on standard error, as JSON or for people, and never with a secret in it.

    {"event": "hand-off", "request_id": "51b1d976", "outcome": "accepted", "shard": "web1-0", "duration_ms": 1.0, …,
     "level": "info", "logger": "headrace.router.stream_endpoint", "timestamp": "…Z", "process": "router", "pid": 17}

    2026-11-30T07:00:00.000000Z [info] hand-off [headrace.router.stream_endpoint] duration_ms=1.0 outcome=accepted …

`event` says what happened; what it happened to has keys of its own, which the caller gives as `extra`. What libraries
say, gunicorn among them, takes the same form. Redaction works on the whole line, so that no way into a line is missed;
and since clients choose a part of what is logged, every value has a greatest length.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from headrace.node.redaction import MOST_CHARS, Redaction
from headrace.settings import Settings

_OWN_KEYS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Attributes that every record has, or that other formatters add: not from `extra`."""
_SHORT: Final = (int, float, type(None))
_QUOTED: Final = re.compile(r"""[\s='"]""")
"""Text with one of these is shown as Python writes it, so that one can tell where a value ends."""
_BOLD, _DIM, _RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN = "1", "2", "31", "32", "33", "34", "35", "36"

Event = dict[str, Any]
"""What a line tells, by its keys; `event` is the message."""


class LineFormatter(logging.Formatter):
    """Turns a log record into a line. render makes the line of an event; redaction then takes the secrets out."""

    def __init__(self, process: str, redaction: Redaction, render: Callable[[Event], str]) -> None:
        super().__init__()
        self._process = process
        self._redaction = redaction
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        """The line. With an exception, a line for people is followed by its traceback."""
        event: Event = {"event": record.getMessage()}
        event |= {key: value for key, value in vars(record).items() if key not in _OWN_KEYS}
        if record.stack_info:
            event["stack_info"] = record.stack_info
        event["level"], event["logger"] = record.levelname.lower(), record.name
        moment = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
        event["timestamp"] = f"{moment.isoformat(timespec='microseconds')}Z"
        event["process"], event["pid"] = self._process, os.getpid()
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return self._redaction(self._render({key: self._short(value) for key, value in event.items()}))

    def _short(self, value: Any) -> Any:
        if isinstance(value, _SHORT):
            return value
        text = value if isinstance(value, str) else repr(value)
        return value if len(text) <= MOST_CHARS else self._redaction.shortened(text)


def formatter(settings: Settings, process: str) -> LineFormatter:
    """The formatter of a process's lines, which has the name `process` in them.

    It makes text if settings.log_format is `text`, or is `auto` and standard error is a terminal; else JSON.
    """
    terminal = sys.stderr.isatty()
    readable = settings.log_format == "text" or (settings.log_format == "auto" and terminal)
    render = _Text(coloured=terminal) if readable else _json
    return LineFormatter(process, Redaction.of(settings), render)


def _json(event: Event) -> str:
    return json.dumps(event, ensure_ascii=False, default=str)


class _Text:
    """An event as a line for people: time, level, message and logger, then the other keys by name."""

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured

    def __call__(self, event: Event) -> str:
        others = {**event}
        traceback = others.pop("exception", None)
        level = others.pop("level")
        words = [
            self._in(_DIM, others.pop("timestamp")),
            f"[{self._in(_level_colour(level), level)}]",
            self._in(_BOLD, others.pop("event")),
            f"[{self._in(_BLUE, others.pop('logger'))}]",
            *(f"{self._in(_CYAN, key)}={self._in(_MAGENTA, _value(others[key]))}" for key in sorted(others)),
        ]
        line = " ".join(word for word in words if word)
        return line if traceback is None else f"{line}\n{traceback}"

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured and text else text


def _level_colour(level: str) -> str:
    return {"warning": _YELLOW, "error": _RED, "critical": _RED}.get(level, _GREEN)


def _value(value: Any) -> str:
    return value if isinstance(value, str) and not _QUOTED.search(value) else repr(value)


def set_up(settings: Settings, process: str) -> None:
    """Have this process log to standard error, at the settings' level and above. Replaces an earlier configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings, process))
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


def gunicorn_config(settings: Settings, process: str) -> dict[str, Any]:
    """The same configuration for gunicorn's `logconfig_dict`: gunicorn's master sets up logging by itself."""
    return {
        "disable_existing_loggers": False,
        "formatters": {"headrace": {"()": lambda: formatter(settings, process)}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "headrace",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": settings.log_level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            # With a logging configuration gunicorn writes an access log, even if `accesslog` is not set.
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }
