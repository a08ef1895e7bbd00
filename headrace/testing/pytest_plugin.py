"""A fixture for pytest: `pytest_plugins = ["headrace.testing.pytest_plugin"]` in the `conftest.py` at the top.

@pytest.fixture
def headrace_connection(connection):        # of the application's tests; with pytest-django: (db), and the alias
    return connection

def test_shipping(published_events):
    ship(order)
    assert published_events()[0].stream == "order:42"
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.testing.published_event import PublishedEvent
from headrace.testing.recording import recorded
from headrace.testing.watched_connection import connection_of


@pytest.fixture
def published_events(headrace_connection: Any) -> Iterator[Callable[[], list[PublishedEvent]]]:
    """A function that returns what the test has published so far over `headrace_connection`.

    That is a fixture of the application's own: it returns a connection, a session, or the alias of one of Django's.
    """
    alias = headrace_connection if isinstance(headrace_connection, str) else None
    connection = None if alias else headrace_connection
    with recorded(connection_of(connection, alias)) as recording:
        yield recording.read
