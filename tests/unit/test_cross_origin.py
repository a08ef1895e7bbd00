"""router/cross_origin.py: which pages may read an answer, and which refused origins the log names."""

import logging

import pytest

from headrace.router.cross_origin import AGAIN_S, MOST_A_MINUTE, MOST_ORIGINS, RefusedOrigins, cors
from headrace.router.metrics import RouterMetrics
from tests.fixtures.requests import request

ORIGIN = "https://www.example.com"


def counted(metrics: RouterMetrics) -> float:
    return next(s.value for family in metrics.collect() for s in family.samples if s.name.endswith("origins_total"))


def test_an_origin_is_said_once_and_each_request_counts(caplog: pytest.LogCaptureFixture) -> None:
    """The first request of an origin is logged with what to do, every one is counted."""
    metrics = RouterMetrics()
    refused = RefusedOrigins(metrics)
    for _ in range(3):
        refused.note(request("/streams/x", origin=ORIGIN), ORIGIN)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.origin == ORIGIN  # type: ignore[attr-defined]
    assert "HEADRACE_ALLOWED_ORIGINS" in record.getMessage()
    assert counted(metrics) == 3


def test_the_servers_own_pages_are_not_refused() -> None:
    """Browsers send Origin from a page of this very server too."""
    metrics = RouterMetrics()
    refused = RefusedOrigins(metrics)
    refused.note(request("/streams/x", origin=ORIGIN, host="www.example.com"), ORIGIN)
    refused.note(request("/streams/x", origin=ORIGIN, host="inside", sec_fetch_site="same-origin"), ORIGIN)
    assert counted(metrics) == 0


def test_strangers_cannot_fill_the_log() -> None:
    """Few origins a minute are news, each once an hour, and what is remembered is bounded."""
    refused = RefusedOrigins(RouterMetrics())
    news = [refused.is_news(f"https://{number}.example", 1000.0) for number in range(1000)]
    assert news.count(True) == MOST_A_MINUTE
    assert not refused.is_news("https://0.example", 1000.0 + AGAIN_S - 1)
    assert refused.is_news("https://0.example", 1000.0 + AGAIN_S)
    for number in range(10 * MOST_ORIGINS):
        refused.is_news(f"https://{number}.example" + "x" * 10_000, 10_000.0 + 60 * number)
    assert len(refused._told) <= MOST_ORIGINS
    assert max(map(len, refused._told)) <= 200


def test_only_allowed_origins_may_read_the_answer() -> None:
    """The exact origin is repeated with credentials; others, also similar ones, get nothing to use."""
    allowed = ("https://app.example", "http://localhost:3000")
    headers = dict(cors("https://app.example", allowed))
    assert headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Vary"] == "Origin"
    for other in ("", "null", "*", "https://app.example.evil", "http://app.example", "https://APP.example"):
        assert cors(other, allowed) == (("Vary", "Origin"),)
    assert cors("https://app.example", ()) == ()
