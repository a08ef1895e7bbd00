"""One event a line, with stable keys, and nothing secret in it."""

import itertools
import json
import logging
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote

import psycopg
import pytest

from headrace.node.client_lines import ClientLines
from headrace.node.logs import formatter
from headrace.node.redaction import MOST_CHARS
from headrace.settings import Settings
from headrace.tokens import sign

SECRETS = "first-secret-of-sixteen,second/secret=with\"signs'"
SETTINGS = Settings.from_environ(
    {
        "HEADRACE_SECRET": SECRETS,
        "HEADRACE_DATABASE_URL": "postgresql://app:p%40ss%2Fword@db.example:5432/app",
        "HEADRACE_REDIS_URL": "redis://:redispassword@redis.example/0",
        "HEADRACE_LOG_FORMAT": "json",
    }
)
TOKEN = sign(["room:1", "user:7"], secrets=SETTINGS.secret, user="ada", audiences=["staff"], ttl_s=60)
ENCODED = "".join(f"%{ord(character):02x}" for character in TOKEN)
LONG = sign([f"room:{number}" for number in range(64)], secrets=SETTINGS.secret)


def record(message: str, *arguments: object, exc_info: object = None, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("x").makeRecord("x", logging.INFO, __file__, 1, message, arguments, None, extra=extra)
    made.exc_info = exc_info  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Error handling request /streams/{TOKEN}?since=3", TOKEN),
        ("Error handling request /streams/17.eyJz.cut-short?since=3", "eyJz"),
        (f"Invalid Request Line 'GET /streams/{TOKEN} HTTP/9'", TOKEN),
        (f"http://h/streams/{TOKEN} and /streams/{LONG}", LONG),
        (f"the token {TOKEN.partition('.')[2]!r} was refused", TOKEN.partition(".")[2]),
        (f"the token ({LONG}) was refused", LONG.partition(".")[2]),
        ("it is signed with first-secret-of-sixteen", "first-secret-of-sixteen"),
        ("it is signed with second/secret=with\"signs'", "second/secret"),
        ('connection to "postgresql://app:p%40ss%2Fword@db.example:5432/app" failed', "p%40ss"),
        ("password authentication failed with p@ss/word", "p@ss/word"),
        ("redis://:redispassword@redis.example/0 is away", "redispassword"),
        ("another://user:of-another-service@host/", "of-another-service"),
        ("host=db user=app password=of-another-service dbname=app", "of-another-service"),
        ("host=db password='of another service' dbname=app", "of another"),
        ("GET /x?secret=of-another-service&y=1", "of-another-service"),
        ("{'Authorization': 'Bearer abcdef', 'Accept': '*/*'}", "abcdef"),
        ("Cookie: session=abcdef", "abcdef"),
        (f"Invalid Request Line 'GET /streams/{ENCODED}'", ENCODED),
        (f"Invalid Request Line 'GET /%73treams/{ENCODED}'", ENCODED),
        (f"Invalid Request Line 'GET /%73treams/{quote(quote(ENCODED, safe=''))}'", TOKEN.rpartition(".")[2]),
        (f"Invalid Request Line 'GET /streams%2f{TOKEN.replace('.', '%2E')} HTTP/9'", TOKEN.rpartition(".")[2]),
        (f"Invalid Request Line 'GET /x?y={TOKEN[:-1]}%{ord(TOKEN[-1]):x} HTTP/9'", TOKEN[:-1].rpartition(".")[2]),
        (f"Invalid Request Line 'GET /{TOKEN}\x80 HTTP/1.1'", TOKEN.rpartition(".")[2]),
        (f"Invalid Request Line 'GET /{TOKEN}é HTTP/1.1'", TOKEN.rpartition(".")[2]),
        (f"Invalid Request Line 'GET /{TOKEN}HTTP/1.1'", TOKEN.rpartition(".")[2]),
        ("it is signed with %66irst-secret-of-sixteen", "irst-secret-of-sixteen"),
    ],
    # Names of tests must not have a token, which differs in every process that pytest collects them in.
    ids=map(str, itertools.count()),
)
def test_secrets_stay_out_of_the_log(text: str, secret: str) -> None:
    """Whatever brings a token, a password or a secret, message, argument, key or error, it gets into no line."""
    try:
        raise RuntimeError(text)
    except RuntimeError:
        failed = sys.exc_info()
    for format_ in ("json", "text"):
        settings = Settings.from_environ({**_environ(), "HEADRACE_LOG_FORMAT": format_})
        lines = formatter(settings, "n-0")
        for made in (
            record(text),
            record("%s", text),
            record("it failed", exc_info=failed),
            record("it failed", reason=text, about={"what": text}),
        ):
            line = lines.format(made)
            assert secret not in line
            assert json.dumps(secret)[1:-1] not in line
            assert "…" in line


def _environ() -> dict[str, str]:
    urls = {"HEADRACE_DATABASE_URL": SETTINGS.database_url, "HEADRACE_REDIS_URL": SETTINGS.redis_url}
    return {"HEADRACE_SECRET": SECRETS, **urls}


def test_the_error_of_a_failed_connection_has_no_password() -> None:
    """What psycopg says when it cannot connect is logged without the password, in the traceback too."""
    lines = formatter(SETTINGS, "n-0")
    try:
        psycopg.connect("postgresql://app:p%40ss%2Fword@127.0.0.1:1/app?password=p%40ss%2Fword", connect_timeout=2)
    except psycopg.OperationalError as error:
        line = lines.format(record("PostgreSQL is away: %s", error, exc_info=sys.exc_info()))
    assert "OperationalError" in line
    assert "ss/word" not in line
    assert "ss%2Fword" not in line


def test_an_event_is_one_line_with_stable_keys() -> None:
    """Whatever an event holds, it is one JSON object on one line, with the same keys for what all events have."""
    lines = formatter(SETTINGS, "n-0")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = lines.format(record("a\nb %d", 5, exc_info=sys.exc_info(), request_id="r1", streams=3, ok=True))
    assert "\n" not in line
    event = json.loads(line)
    assert event.pop("exception").endswith("ValueError: two\nlines")
    assert event.pop("timestamp").endswith("Z")
    assert event.pop("pid") > 0
    assert event == {
        "event": "a\nb 5",
        "level": "info",
        "logger": "x",
        "process": "n-0",
        "request_id": "r1",
        "streams": 3,
        "ok": True,
    }


def test_people_read_text() -> None:
    """Without JSON a line is its time, level, message and logger, then its keys by name, then an error's traceback."""
    lines = formatter(replace(SETTINGS, log_format="text"), "n-0")
    line = lines.format(record("it %s", "works", streams=3, ok=True, peer="127.0.0.1:1", reason="two words", none=None))
    timestamp, _, rest = line.partition(" ")
    assert datetime.fromisoformat(timestamp).tzinfo is UTC
    keys = f"none=None ok=True peer=127.0.0.1:1 pid={os.getpid()} process=n-0 reason='two words' streams=3"
    assert rest == f"[info] it works [x] {keys}"
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = lines.format(record("failed", exc_info=sys.exc_info()))
    assert line.splitlines()[1] == "Traceback (most recent call last):"
    assert line.endswith("ValueError: two\nlines")


def test_a_line_has_an_end() -> None:
    """A value's beginning and end are kept, in a message, a key or a traceback; what the cut halves is left out."""
    lines = formatter(SETTINGS, "n-0")
    for secret in (TOKEN, "first-secret-of-sixteen", "it is password=another"):
        for before in range(MOST_CHARS // 2 - len(secret) - 3, MOST_CHARS // 2 + 3):
            text = "<" + " " * (before - 1) + secret + " " * (1 << 20) + secret + " " * (before - 1) + ">"
            line = lines.format(record(text, key=text, keys={"nested": [text]}))
            assert len(line) < 4 * MOST_CHARS
            assert secret[len(secret) // 2 :] not in line
            event = json.loads(line)
            assert event["event"].startswith("<") and event["event"].endswith(">")
            assert "characters are left out" in event["event"]
    try:
        raise ValueError("x" * (1 << 20))
    except ValueError:
        assert len(lines.format(record("failed", exc_info=sys.exc_info()))) < 2 * MOST_CHARS


def test_lines_about_clients_are_limited_by_the_second(caplog: pytest.LogCaptureFixture) -> None:
    """Some a second are written, and the next line tells how many were not; warnings are always written."""
    now = 0.0
    logger = logging.getLogger("clients")
    lines = ClientLines(logger, "hand-off", 2, lambda: now)

    def written(second: float, level: int = logging.INFO) -> int | None:
        """How many lines a line that is written says were left out before it, None for a line that is not written."""
        nonlocal now
        now = second
        caplog.clear()
        lines.log(level, peer="h:1")
        if not caplog.records:
            return None
        (made,) = caplog.records
        assert (made.getMessage(), made.name, vars(made)["peer"]) == ("hand-off", "clients", "h:1")
        return int(getattr(made, "left_out", 0))

    with caplog.at_level(logging.INFO, "clients"):
        assert [written(7.1 + number / 10) for number in range(5)] == [0, 0, None, None, None]
        assert [written(7.9, logging.WARNING), written(7.9, logging.DEBUG)] == [0, None]
        assert [written(8.0 + number / 10) for number in range(3)] == [3, 0, None]
        assert [written(3.0), written(3.0), written(3.0)] == [1, 0, None]
        caplog.clear()
        ClientLines(logger, "client closed", 0).log(logging.INFO)
        assert not caplog.records
