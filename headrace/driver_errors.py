"""What PostgreSQL has said in an error, whichever driver or library raises it.

psycopg, psycopg2 and asyncpg raise errors of their own; Django and SQLAlchemy wrap these in theirs, and keep them as
`__cause__` and as `orig`.
"""

from collections.abc import Iterator


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of the error, such as `42501`; None if it is no error of the database's."""
    for each in _wrapped(error):
        for name in ("sqlstate", "pgcode"):
            code = getattr(each, name, None)
            if isinstance(code, str) and len(code) == 5:
                return code
    return None


def message(error: BaseException) -> str:
    """The primary message of the error, without the statement and the place; its text if the driver gives none."""
    for each in _wrapped(error):
        primary = getattr(getattr(each, "diag", None), "message_primary", None)
        if primary:
            return str(primary)
    return str(error)


def hint(error: BaseException) -> str | None:
    """The hint of the error, if it has one."""
    for each in _wrapped(error):
        found = getattr(getattr(each, "diag", None), "message_hint", None)
        if found:
            return str(found)
    return None


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it wraps, from the outermost to the driver's own."""
    seen: set[int] = set()
    each: BaseException | None = error
    while isinstance(each, BaseException) and id(each) not in seen:
        seen.add(id(each))
        yield each
        inner = getattr(each, "orig", None)
        each = inner if isinstance(inner, BaseException) else each.__cause__
