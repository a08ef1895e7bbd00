"""Who is on a stream now, as applications ask it; `shard/postgres/presence.py` tells how it is known.

Both answers are of the snapshot of their statement, like `headrace.head`: members read in one REPEATABLE READ
transaction with the head of the companion stream, or after it, and the events that follow that head, make one whole.
"""

import json
from typing import Any

from headrace import calls
from headrace.statement import fetch


def members(connection: Any, stream: str) -> list[str]:
    """The users who are present on the stream, in the order in which they joined.

    connection is any that `headrace.publish` takes. Raises StreamNameError for a name that cannot be a stream.
    """
    users: list[str] = json.loads(fetch(connection, calls.members(stream)))
    return users


def member_count(connection: Any, stream: str) -> int:
    """How many users are present on the stream: one row is read, however many they are. Raises like `members`."""
    return int(fetch(connection, calls.member_count(stream)))
