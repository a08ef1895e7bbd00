"""What each error of PostgreSQL means, whose fault it is, and what an operator does about it.

The router's answers, the commands, the doctor and the migration all use this table of SQLSTATEs (PostgreSQL, appendix
A, "PostgreSQL Error Codes"). An entry for a whole code, of five characters, goes before the entry for its class, of
two.
"""

from dataclasses import dataclass
from typing import Final

import psycopg

from headrace.errors import one_line


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of an error.

    status is the HTTP status for a request that met the error: 400 or 413 if the same request would be refused again,
    else 503. sentence says what is the matter, without the server's own words, which may be secret. advice says what an
    operator does about it.
    """

    status: int
    sentence: str
    advice: str


_LOG: Final = "see the server's log"
_RIGHTS: Final = (
    "connect as the role that owns the schema headrace; an application's role needs headrace_publisher: "
    "GRANT headrace_publisher TO …"
)
_MIGRATE: Final = "run `headrace migrate`, or correct HEADRACE_DATABASE_URL"

_AWAY: Final = Meaning(503, "PostgreSQL cannot be reached", "start it, or correct the URL")
_NO_URL: Final = Meaning(400, "the URL is no PostgreSQL URL", "correct it")

_MEANINGS: Final = {
    "08": _AWAY,
    "0A": Meaning(503, "PostgreSQL cannot do this here", _LOG),
    "22": Meaning(400, "the data was refused", "correct the data"),
    "23": Meaning(503, "a constraint that is not headrace's refused a row", "remove it from headrace's tables"),
    "25": Meaning(503, "the session was in the middle of another transaction", _LOG),
    "25006": Meaning(
        503,
        "the database is read-only",
        "let the URL lead to the primary, not to a standby; or end default_transaction_read_only of database or role",
    ),
    "25P03": _AWAY,
    "28": Meaning(503, "PostgreSQL refuses the user or the password", "correct the URL, or pg_hba.conf"),
    "3D": Meaning(503, "the database does not exist", "create it, or correct the URL"),
    "3F": Meaning(503, "the schema headrace is missing or of another version", _MIGRATE),
    "40": Meaning(503, "another transaction was in the way", "try again at once"),
    "42": Meaning(503, "the schema headrace is missing or of another version", _MIGRATE),
    "42501": Meaning(503, "the database user has not the rights for this", _RIGHTS),
    "53": Meaning(503, "the server has not enough resources", _LOG),
    "53100": Meaning(503, "the server's disk is full", "make room on the server's disk"),
    "53200": Meaning(503, "the server has not enough memory", "give the server more memory, or fewer connections"),
    "53300": Meaning(503, "the server has no more connections", "raise max_connections, or put a pooler in front"),
    "54": Meaning(413, "this is too large for PostgreSQL", "send less at once"),
    "55": Meaning(503, "what is needed is in use", "see who holds it: pg_locks"),
    "57": _AWAY,
    "57014": Meaning(503, "the server did not do it in time", "see who holds it up: `headrace doctor`, pg_locks"),
    "57P03": Meaning(503, "PostgreSQL is starting, or shutting down", "wait for it"),
    "58": Meaning(503, "the server met an error of its system", _LOG),
    "F0": Meaning(503, "the server's configuration is broken", _LOG),
    "P0": Meaning(503, "a function or trigger that is not headrace's refused it", "see what it says"),
    "XX": Meaning(503, "the server met an error of its own", _LOG),
    "XX001": Meaning(503, "the server's data are damaged", "restore them from a backup; " + _LOG),
    "XX002": Meaning(503, "an index of the server is damaged", "REINDEX it; " + _LOG),
}
_OTHER: Final = Meaning(503, "PostgreSQL refused it", _LOG)


def meaning(error: psycopg.Error) -> Meaning:
    """The meaning of an error. An error without SQLSTATE is libpq's: no server has answered, or the URL names none."""
    state = error.sqlstate
    if state is None:
        return _NO_URL if isinstance(error, psycopg.ProgrammingError) else _AWAY
    return _MEANINGS.get(state) or _MEANINGS.get(state[:2]) or _OTHER


def said(error: psycopg.Error) -> str:
    """One line for an operator: what is the matter, and in brackets what the server said."""
    return f"{meaning(error).sentence} ({one_line(error.diag.message_primary or error)})"
