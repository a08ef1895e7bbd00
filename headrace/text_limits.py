"""How long labels, users, event types, patterns and reasons may be, and that PostgreSQL can store them.

Tokens, calls and SQL have the same limits. So a user that a token can carry can also be disconnected, and a label that
an event can have can also be an audience of a token and the label of a predicate.
"""

from headrace.errors import UsageError

MAX_WORD_BYTES = 512
"""Of a label, an event type, a pattern or a reason, in bytes of UTF-8."""
MAX_USER_BYTES = 16384


def check_text(name: str, value: object, most: int | None, error: type[UsageError]) -> str:
    """Return value, if it is text that PostgreSQL can store and that has 1 to most bytes of UTF-8 (None: any number).

    Otherwise raises the error, whose message begins with the name.
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
    """Return the name of a user: text, or the str() of another object, such as a number or a UUID.

    A name has up to 16,384 bytes of UTF-8; it may be empty. Raises the error for a name that PostgreSQL cannot store or
    that is longer, and for bytes, whose str() is no name.
    """
    if isinstance(user, bytes | bytearray | memoryview):
        raise error("user must be text or something that has one, not bytes; decode it")
    name = str(user)
    return check_text("user", name, MAX_USER_BYTES, error) if name else name
