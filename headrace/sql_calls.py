"""The calls of the SQL functions, checked: what `headrace.publish` and `headrace.asyncio` send over a connection.

Applications import `headrace` instead. Arguments that are not allowed are refused here, before anything is sent, since
an error in SQL makes the application's whole transaction fail. Nothing here uses a connection.

The statements run with the application's rights and settings. Its search path may begin with a schema in which
strangers make functions, operators and types of any name, so every name here is qualified.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from headrace.errors import EventError, UsageError
from headrace.event import check_type
from headrace.event_data import Data, as_text
from headrace.stream import check_name
from headrace.text_limits import MAX_WORD_BYTES, check_text, check_user

MAX_SKEW_S = 86_400
MAX_KEEP = timedelta(days=36_000)
"""A hundred years of twelve months of thirty days, as PostgreSQL compares intervals."""
MAX_KEEP_COUNT = 2**63 - 1


class Call(NamedTuple):
    """One statement with `%s` for each of its parameters, whose single row has the single column `id`."""

    sql: str
    parameters: tuple[Any, ...]


def publish(stream: str, data: Data, event: str, visible_to: str | None) -> Call:
    """Publish one event. Raises StreamNameError and EventError."""
    text = _checked(stream, data, event, visible_to)
    return Call("select headrace.publish(%s, %s, %s, %s) as id", (stream, text, event, visible_to))


def publish_now(stream: str, data: Data, event: str, visible_to: str | None) -> Call:
    """Publish one event and return its id. Raises StreamNameError and EventError."""
    text = _checked(stream, data, event, visible_to)
    return Call("select headrace.publish_now(%s, %s, %s, %s) as id", (stream, text, event, visible_to))


def publish_many(
    streams: Sequence[str],
    data: Sequence[Data],
    events: Sequence[str | None] | None,
    visible_to: Sequence[str | None] | None,
) -> Call | None:
    """Publish one event for each position; None for empty sequences. Raises StreamNameError and EventError."""
    for name, values in (("streams", streams), ("data", data), ("events", events), ("visible_to", visible_to)):
        if isinstance(values, str | bytes):
            raise EventError(f"{name} is one text; publish_many takes a sequence with one entry per event")
        if not isinstance(values, Sequence) and (values is not None or name in ("streams", "data")):
            raise EventError(f"{name} must be a list with one entry per event, not {values!r:.80}")
    events = [None] * len(streams) if events is None else events
    visible_to = [None] * len(streams) if visible_to is None else visible_to
    if not len(streams) == len(data) == len(events) == len(visible_to):
        raise EventError(
            f"the sequences must have the same length: {len(streams)} streams, {len(data)} data, "
            f"{len(events)} events, {len(visible_to)} visible_to"
        )
    if not streams:
        return None
    texts = [
        _checked(stream, payload, "message" if event is None else event, label)
        for stream, payload, event, label in zip(streams, data, events, visible_to, strict=True)
    ]
    return Call(
        "select headrace.publish_many(%s::pg_catalog.text[], %s::pg_catalog.text[], %s::pg_catalog.text[],"
        " %s::pg_catalog.text[]) as id",
        (list(streams), texts, list(events), list(visible_to)),
    )


def head(stream: str) -> Call:
    """Return the head of a stream. Raises StreamNameError."""
    return Call("select headrace.head(%s) as id", (check_name(stream),))


def watermark(stream: str) -> Call:
    """Return the watermark of a stream. Raises StreamNameError."""
    return Call("select headrace.watermark(%s) as id", (check_name(stream),))


def set_retention(pattern: str, keep: timedelta | None, keep_count: int | None) -> Call:
    """Set or remove the rule for a pattern. Raises UsageError."""
    check_text("pattern", pattern, MAX_WORD_BYTES, UsageError)
    if keep is not None and not isinstance(keep, timedelta):
        raise UsageError(f"keep must be a timedelta or None, not {keep!r}")
    if keep is not None and not timedelta(0) < keep <= MAX_KEEP:
        raise UsageError(f"events are kept for more than nothing and up to {MAX_KEEP.days} days, not for {keep!r}")
    if keep_count is not None and (
        keep is None or not isinstance(keep_count, int) or not 1 <= keep_count <= MAX_KEEP_COUNT
    ):
        raise UsageError(f"keep_count needs a keep and must be a whole number of at least 1 event, not {keep_count!r}")
    interval = None if keep is None else f"{keep // timedelta(microseconds=1)} microseconds"
    return Call("select headrace.set_retention(%s, %s::interval, %s::bigint) as id", (pattern, interval, keep_count))


def publish_changes(table: str, stream: str, columns: Sequence[str] | None, old: bool, visible_to: str | None) -> Call:
    """Publish the changes of a table. Raises UsageError."""
    check_text("table", table, None, UsageError)
    check_text("stream", stream, None, UsageError)
    if isinstance(columns, str | bytes) or not isinstance(columns, Sequence | None):
        raise UsageError(f"columns must be a list of names, or None for all columns, not {columns!r:.80}")
    if visible_to is not None:
        check_text("visible_to", visible_to, MAX_WORD_BYTES, UsageError)
    return Call(
        "select headrace.publish_changes(%s::pg_catalog.text::pg_catalog.regclass, %s, %s::pg_catalog.text[],"
        " %s::pg_catalog.bool, %s)::pg_catalog.text as id",
        (table, stream, None if columns is None else list(columns), bool(old), visible_to),
    )


def unpublish_changes(table: str, stream: str | None) -> Call:
    """End the publication of a table's changes. Raises UsageError."""
    check_text("table", table, None, UsageError)
    if stream is not None:
        check_text("stream", stream, None, UsageError)
    return Call(
        "select headrace.unpublish_changes(%s::pg_catalog.text::pg_catalog.regclass, %s)::pg_catalog.text as id",
        (table, stream),
    )


def members(stream: str) -> Call:
    """Return the members of a stream, in the order in which they joined, as a JSON array. Raises StreamNameError."""
    return Call(
        "select coalesce(pg_catalog.json_agg(m.member order by m.since, m.member), '[]')::pg_catalog.text as id"
        " from headrace.members(%s) m",
        (check_name(stream),),
    )


def member_count(stream: str) -> Call:
    """Return how many members a stream has. Raises StreamNameError."""
    return Call("select headrace.member_count(%s) as id", (check_name(stream),))


def disconnect(user: object, stream: str | None, reason: str, skew_s: float) -> Call:
    """Disconnect a user or a stream. Raises StreamNameError and UsageError."""
    if (user is None) == (stream is None):
        raise UsageError("disconnect a user or a stream, one of the two")
    name = None if user is None else check_user(user, UsageError)
    if stream is not None:
        check_name(stream)
    check_text("reason", reason, MAX_WORD_BYTES, UsageError)
    if not isinstance(skew_s, int | float) or not 0 <= skew_s <= MAX_SKEW_S:
        raise UsageError(f"skew_s must be from 0 to {MAX_SKEW_S} seconds, not {skew_s!r}")
    return Call(
        "select headrace.disconnect(%s, %s, %s, pg_catalog.make_interval(secs => %s)) as id",
        (name, stream, reason, float(skew_s)),
    )


def _checked(stream: str, data: Data, event: str, visible_to: str | None) -> str:
    """The data as text, if all arguments are allowed."""
    check_name(stream)
    text = check_text("data", as_text(data), None, EventError)
    check_type(event)
    check_text("event", event, MAX_WORD_BYTES, EventError)
    if visible_to is not None:
        check_text("visible_to", visible_to, MAX_WORD_BYTES, EventError)
    return text
