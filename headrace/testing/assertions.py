"""`published` and `assert_published`: what a test has published, from Python, SQL and triggers."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from headrace.event_data import Data, as_text
from headrace.testing.published_event import PublishedEvent
from headrace.testing.recording import innermost, recorded, so_far
from headrace.testing.watched_connection import connection_of

ANY: Final[Any] = object()
"""Stands for an argument that an event may have of any value."""


@contextmanager
def published(connection: Any = None, *, using: str | None = None) -> Iterator[list[PublishedEvent]]:
    """Collect what the block publishes over the connection; the list is filled when the block ends.

        with published(connection) as events:
            ship(order)
        assert [event.stream for event in events] == ["order:42"]

    In a transaction the list has what the block has published and not rolled back, whether the transaction commits or
    not; in autocommit, or where the block commits, what it has committed. Events of other connections are not in it,
    except for those of `publish_now` while the connection is in autocommit. Where the block raises, the list stays
    empty.

    connection is one of psycopg or psycopg2, or a session or connection of SQLAlchemy over these; psycopg's and
    SQLAlchemy's may be asynchronous, and an AsyncSession MUST be in a transaction when the block begins. using is the
    alias of one of Django's instead; without both it is Django's default one. Of psycopg2 only cursors that the block
    opens are watched. The connection's role MUST own the schema, else UsageError is raised; without a schema
    SchemaError is.
    """
    events: list[PublishedEvent] = []
    with recorded(connection_of(connection, using)) as recording:
        yield events
        events[:] = recording.read()


def assert_published(
    stream: str,
    *,
    count: int | None = None,
    data: Data | None = None,
    type: str | None = None,
    visible_to: Any = ANY,
    events: Sequence[PublishedEvent] | None = None,
    connection: Any = None,
    using: str | None = None,
) -> list[PublishedEvent]:
    """Check that events were published to the stream, and return them in order.

    count is how many there must be; None means one or more. An event counts if it has the type, the data and the label
    that are given; a dict or a list is compared with the JSON of the data. events is a list of `published`. Without it
    the events are those of the innermost block `published` that is open, for the connection if one is given, else of
    the connection's open transaction (in Django's TestCase, what the test has published), else all that the database
    keeps. connection and using are those of `published`.

    Raises AssertionError, with what was published instead.
    """
    if events is None and connection is None and using is None:
        events = innermost()
    if events is None:
        events = so_far(connection_of(connection, using))
    found = [
        event
        for event in events
        if event.stream == stream
        and type in (None, event.type)
        and (visible_to is ANY or event.visible_to == visible_to)
        and (data is None or _same(event.data, data))
    ]
    if len(found) != count if count is not None else not found:
        wanted = "an event" if count is None else f"{count} event{'' if count == 1 else 's'}"
        others = "".join(f"\n  {event}" for event in events) or " nothing"
        raise AssertionError(
            f"expected {wanted} of that kind in the stream {stream!r}, not {len(found)}; published:{others}"
        )
    return found


def _same(text: str, data: Data) -> bool:
    if isinstance(data, str):
        return text == data
    try:
        return bool(json.loads(text) == json.loads(as_text(data)))
    except ValueError:
        return False
