"""Stream names and their slots. A name is exact: any Unicode text of 1 to 512 bytes, never folded or normalised."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from headrace.errors import StreamNameError

SLOTS = 1024
MAX_NAME_BYTES = 512
PRESENCE_PREFIX = "presence:"
RESERVED_PREFIX = "headrace:"
"""The beginning of the names of headrace's own streams: `sign` and POST /publish refuse them."""
CANARY_PREFIX = "headrace:canary:"
"""The beginning of the names of canaries' streams; a shard's id and a number follow."""
OPS_STREAM = "headrace:ops"
"""The stream of the operations page: an overview of the deployment every few seconds, while somebody watches."""
OPS_AUDIENCE = "headrace:ops"
"""The label of that stream's events, so that a token for the stream, without this audience, shows nothing."""


def check_name(name: object) -> str:
    """Return the name. Raises StreamNameError, with what is wrong, for a name that cannot be a stream."""
    if not isinstance(name, str):
        raise StreamNameError(f"a stream name must be text, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise StreamNameError(f"stream name {name!r} has a lone surrogate; it must be valid Unicode") from None
    if size == 0:
        raise StreamNameError("a stream name must not be empty")
    if size > MAX_NAME_BYTES:
        raise StreamNameError(f"stream name {name[:32]!r}… has {size} bytes; at most {MAX_NAME_BYTES} are allowed")
    if "\0" in name:
        raise StreamNameError(f"stream name {name!r} has a NUL; PostgreSQL cannot store it")
    return name


def check_names(streams: object) -> list[str]:
    """Return a list of the names in streams: one name, or an iterable of names. Raises StreamNameError for others."""
    if isinstance(streams, str):
        return [check_name(streams)]
    if not isinstance(streams, Iterable) or isinstance(streams, bytes):
        raise StreamNameError(f"streams must be a name or a list of names, not {streams!r:.80}")
    return [check_name(name) for name in streams]


@lru_cache(maxsize=SLOTS)
def slot(name: str) -> int:
    """Return the slot of a stream, 0 to 1023: the first two bytes of sha256(name as UTF-8), big-endian, modulo 1024.

    The SQL function `headrace.slot` returns the same number. Notification channels and placement depend on it.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:2]) % SLOTS


def presence_stream(name: str) -> str:
    """Return the name of a stream's companion stream, `presence:` and its name, where joins and leaves are published.

    Their types are `join` and `leave`, and their data is the JSON {"user", "count"}: who, and how many members then
    are. Raises StreamNameError for a name that is itself a companion stream's, and for one with which the companion
    stream's name would be longer than 512 bytes.
    """
    if check_name(name).startswith(PRESENCE_PREFIX):
        raise StreamNameError(f"{name!r} is where presence is published; nobody can be present on it")
    return check_name(PRESENCE_PREFIX + name)
