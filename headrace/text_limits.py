"""Text that PostgreSQL can keep: labels, users and patterns, with the same bounds in tokens, in calls and in SQL.

What one side takes, the other can name: a user that a token may carry can be disconnected, a label that an event may
have can be an audience of a token and have a predicate.
"""

from headrace.errors import UsageError

MAX_WORD_BYTES = 512
"""Of a label, an event type, a pattern or a reason."""
MAX_USER_BYTES = 16384


def check_text(name: str, value: object, most: int | None, error: type[UsageError]) -> str:
    """Return value if it is text that PostgreSQL can keep, and, unless most is None, has 1 to so many bytes.

    Otherwise raises the error, which calls it by the name.
    """
    if not isinstance(value, str):
        raise error(f"{name} must be text, not {value!r:.80}")
    if "\0" in value:
        raise error(f"{name} has a NUL; PostgreSQL cannot store it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise error(f"{name} has a lone surrogate; it must be valid Unicode") from None
    if most is not None and not 1 <= size <= most:
        raise error(f"{name} has {size} bytes; 1 to {most} are allowed")
    return value


def check_user(user: object, error: type[UsageError]) -> str:
    """The name of a user: its text, as of a number or a UUID. Of up to 16,384 bytes; the empty name is one, too.

    Raises the error for what no token carries and no revocation names. Bytes are refused, whose text is no name.
    """
    if isinstance(user, bytes | bytearray | memoryview):
        raise error("user must be text or something that has one, not bytes; decode it")
    name = str(user)
    return check_text("user", name, MAX_USER_BYTES, error) if name else name
