"""Disconnecting from Python: the SQL function `headrace.disconnect`, over the application's own connection.

As with publishing, it happens when the connection's transaction commits, and not at all if it does not.
"""

from typing import Any, Final

from headrace import calls
from headrace.statement import execute

DEFAULT_REASON: Final = "disconnected"


def disconnect(
    connection: Any,
    *,
    user: object = None,
    stream: str | None = None,
    reason: str = DEFAULT_REASON,
    skew_s: float = 0.0,
) -> None:
    """Close connections on every node within a second of the commit, saying `headrace:goodbye` {"reason"}.

    user: all connections of that user (as given to `sign`); tokens issued to it before the commit are refused from
    then on, until they expire. stream: all connections that are subscribed to it, now; they may come back. Give one.

    "Before" compares the application's clocks with PostgreSQL's, in whole milliseconds. Tokens issued up to skew_s
    seconds (0 to 86400) after the commit are refused as well: give at least what a host's clock may be ahead and what
    a request may take that has still seen the user as allowed. A token for the same user must then be signed later
    than that.

    Raises UsageError for arguments that are not allowed and for an asynchronous connection, StreamNameError for a
    name that cannot be a stream.
    """
    execute(connection, calls.disconnect(user, stream, reason, skew_s))
