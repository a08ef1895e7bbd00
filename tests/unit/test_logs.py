"""Tokens stay out of logs."""

import logging

import pytest

from router.logs import Redaction


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("Error handling request %s", ("/streams/17.eyJz.abc?since=3",)),
        ("Invalid Request Line 'GET /streams/17.eyJz.abc HTTP/9'", ()),
        ("%s and %s", ("/streams/17.eyJz.abc", "http://h/streams/18.eyJz.abc")),
    ],
)
def test_what_follows_streams_is_removed(message: str, arguments: tuple[str, ...]) -> None:
    """Whoever reads the log cannot read the streams."""
    record = logging.LogRecord("x", logging.INFO, __file__, 1, message, arguments, None)
    assert Redaction().filter(record)
    assert "eyJz" not in record.getMessage()
    assert "/streams/…" in record.getMessage()


def test_other_records_stay_as_they_are() -> None:
    """A record without a token keeps its message and arguments."""
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "%d clients at 100 %%", (5,), None)
    assert Redaction().filter(record)
    assert record.getMessage() == "5 clients at 100 %"
