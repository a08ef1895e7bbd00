"""Numbering: whether events that were committed get their ids."""

import time
from typing import Any, Final

import psycopg

from headrace.doctor.finding import Finding, fail, ok
from headrace.schema.ownership import require_owned

LOOKS_APART_S: Final = 2.0
"""Between two looks at the turns that wait. A round comes every few milliseconds while a shard is in office."""
MOST: Final = 1000
"""How many turns are looked at, the first of all that wait. While a backlog becomes shorter these soon wait no more."""

_WAITING: Final = """
    select w.stream, w.xid::text from headrace.waiting(array(select distinct t.stream from headrace.turn t)) w
     order by w.turn limit %s"""


def numbering(connection: psycopg.Connection[Any]) -> Finding:
    """Whether some turn waits for as long as the two looks are apart: nobody numbers, or a stream is held."""
    require_owned(connection)
    before = _waiting(connection)
    if before:
        time.sleep(LOOKS_APART_S)
    left = before and [turn for turn in _waiting(connection) if turn in set(before)]
    if not left:
        return ok("numbering", "no event waits for its id")
    return fail(
        "numbering",
        f"events of {len(left)} transactions wait for their ids, the first in stream {left[0][0]!r}",
        "start a shard, or see its log; where `open transactions` names one that holds the stream, end it",
    )


def _waiting(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """The stream and the transaction of turns that wait, in the order of turns."""
    return [(stream, xid) for stream, xid in connection.execute(_WAITING, (MOST,))]
