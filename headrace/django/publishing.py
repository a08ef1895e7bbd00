"""Publishing over Django's connections, by alias: with the current atomic block, or at once outside of any."""

from collections.abc import Sequence

from django.db import DEFAULT_DB_ALIAS, connections

import headrace
from headrace.event_data import Data


def publish(
    stream: str,
    data: Data,
    *,
    event: str = "message",
    visible_to: str | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Publish data to the stream when, and only if, the current atomic block of the database `using` commits.

    The events of an inner block, a savepoint, vanish with it when it is rolled back. Outside of atomic blocks this call
    is a transaction of its own. The other arguments, and what is raised, are those of `headrace.publish`.
    """
    headrace.publish(connections[using], stream, data, event=event, visible_to=visible_to)


def publish_many(
    streams: Sequence[str],
    data: Sequence[Data],
    *,
    events: Sequence[str | None] | None = None,
    visible_to: Sequence[str | None] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Publish one event for each position of the sequences, as `headrace.publish_many`; otherwise like `publish`."""
    headrace.publish_many(connections[using], streams, data, events=events, visible_to=visible_to)
