"""Disconnecting from Python: the SQL function `headrace.disconnect`, over the application's own connection.

As with publishing, the connections are closed when the transaction commits, and not at all when it rolls back.
"""

from typing import Any, Final

from headrace import sql_calls
from headrace.sql_execution import execute

DEFAULT_REASON: Final = "disconnected"


def disconnect(
    connection: Any,
    *,
    user: object = None,
    stream: str | None = None,
    reason: str = DEFAULT_REASON,
    skew_s: float = 0.0,
) -> None:
    """Close connections on every node within a second of the commit, with `headrace:goodbye` {"reason"}.

    Give either user or stream. user, as given to `sign`, closes all connections of that user; from then on, tokens that
    were issued to the user before the commit are refused until they expire. stream closes all connections that follow
    the stream now; their clients may come back. reason is what the clients are told, 1 to 512 bytes of UTF-8.

    The time when a token was issued, by the clock of the host that signed it, is compared with PostgreSQL's clock, in
    whole milliseconds. Tokens issued up to skew_s seconds (0 to 86,400) after the commit are refused as well. It should
    be at least as long as the clock of a signing host may be ahead, plus the duration of a request that may have seen
    the user as allowed before the commit. A new token for the same user must be signed later than that.

    Raises UsageError for arguments that are not allowed, for an object that is no connection and for an asynchronous
    one; StreamNameError for a name that cannot be a stream.
    """
    execute(connection, sql_calls.disconnect(user, stream, reason, skew_s))
