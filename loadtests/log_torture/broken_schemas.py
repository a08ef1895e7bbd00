"""Does the judge notice? Schemas that are broken on purpose, each by one replacement in the definition of a function.

Each break is a mistake that somebody could make. A break that no violation tells of is a hole in the torture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg


@dataclass(frozen=True, slots=True)
class Break:
    """In the definition of a function, with these arguments' types, text stands once and is replaced."""

    function: str
    text: str
    instead: str


BREAKS: Final[dict[str, Sequence[Break]]] = {
    "call-order": (
        Break(
            "headrace.number_staged()",
            "row_number() over (partition by g.stream order by g.seq)",
            "row_number() over (partition by g.stream order by g.seq desc)",
        ),
    ),
    "no-lock": (
        Break(
            "headrace.take_one(text,integer,bigint)",
            "begin\n    loop\n",
            "begin\n    if (select s.last_id % 64 = 7 from headrace.stream s where s.name = take_one.name) then\n"
            "        select s.stream_id, s.last_id into stream_id, before from headrace.stream s\n"
            "            where s.name = take_one.name;\n        return;\n    end if;\n    loop\n",
        ),
    ),
    "head-ahead": (
        Break(
            "headrace.head(text)",
            "select s.last_id from",
            "select s.last_id + (s.last_id % 7 = 0)::int from",
        ),
    ),
    "not-durable": (Break("headrace.begin_numbering()", "= 'off' then", "= 'never' then"),),
    "wrong-id": (
        Break("headrace.publish_now(text,text,text,text)", "return taken.before + 1;", "return taken.before + 2;"),
    ),
}
"""By name, what is broken."""


def apply(url: str, name: str) -> None:
    """Break the schema of a database. Raises LookupError if a text is not there exactly once."""
    with psycopg.connect(url) as connection:
        for one in BREAKS[name]:
            row = connection.execute("select pg_get_functiondef(%s::regprocedure)", [one.function]).fetchone()
            assert row is not None
            if (count := row[0].count(one.text)) != 1:
                raise LookupError(
                    f"{one.function} has {one.text!r} {count} times, not once; correct "
                    "loadtests/log_torture/broken_schemas.py"
                )
            connection.execute(row[0].replace(one.text, one.instead).encode())
