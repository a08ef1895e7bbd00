"""The members of a stream, for applications; `shard/postgres/presence.py` tells how they are known.

Both functions read the snapshot of their statement, like `headrace.watermark`. Members that are read in one REPEATABLE
READ transaction with the watermark of the companion stream, or after that watermark, and the joins and leaves that
follow the watermark add up to the members at any later time.
"""

import json
from typing import Any

from headrace import sql_calls
from headrace.sql_execution import fetch


def members(connection: Any, stream: str) -> list[str]:
    """Return the members of the stream: the users who are present on it, in the order in which they joined.

    connection is any that `headrace.publish` takes. Raises StreamNameError for a name that cannot be a stream, and
    UsageError for an object that is no connection, or an asynchronous one.
    """
    users: list[str] = json.loads(fetch(connection, sql_calls.members(stream)))
    return users


def member_count(connection: Any, stream: str) -> int:
    """Return how many members the stream has. One row is read, however many they are. Raises like `members`."""
    return int(fetch(connection, sql_calls.member_count(stream)))
