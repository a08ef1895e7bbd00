"""Streams: about how many the log has."""

from typing import Any

import psycopg

from headrace.doctor.finding import Finding, ok
from headrace.schema.ownership import require_owned


def streams(connection: psycopg.Connection[Any]) -> Finding:
    """About how many streams there are, by what the last VACUUM or ANALYZE of their table has found."""
    require_owned(connection)
    row = connection.execute("select headrace.estimate_streams()").fetchone()
    assert row is not None
    return ok("streams", f"about {row[0]:,}")
