"""Tests of applications: what they publish, a reset between tests, and the streams themselves.

    with published(connection) as events:       what the block publishes, whether it commits or not
        ship(order)
    assert_published("order:42", count=1)       what the test has published so far, in Django's TestCase
    reset(connection)                           no event of the test before, where tests commit
    with serve(using="default"), follow(url) as client:
        client.next()                           an event, as a browser gets it

Nothing here imports a framework, unless it is asked for one of Django's aliases.
"""

from headrace.testing.assertions import ANY, assert_published, published
from headrace.testing.published_event import PublishedEvent
from headrace.testing.stream_client import StreamClient, follow
from headrace.testing.stream_server import serve
from headrace.testing.streams_reset import ResetStreams, reset

__all__ = [
    "ANY",
    "PublishedEvent",
    "ResetStreams",
    "StreamClient",
    "assert_published",
    "follow",
    "published",
    "reset",
    "serve",
]
