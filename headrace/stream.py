"""Stream names and their slots. A name is exact: any Unicode text of 1 to 512 bytes, never folded or normalised."""

import hashlib
from collections.abc import Iterable

from headrace.errors import StreamNameError

SLOTS = 1024
MAX_NAME_BYTES = 512
PRESENCE_PREFIX = "presence:"
RESERVED_PREFIX = "headrace:"
"""Of headrace's own streams. Applications sign no tokens for them and publish nothing to them over HTTP."""
CANARY_PREFIX = "headrace:canary:"
"""Of the streams on which shards try delivery from end to end; a shard's id and a number follow."""
OPS_STREAM = "headrace:ops"
"""What the operations page shows: an overview of the deployment every few seconds, while somebody watches."""
OPS_AUDIENCE = "headrace:ops"
"""The label of its events, so that a token for the stream alone shows nothing."""


def check_name(name: object) -> str:
    """Return name if it can name a stream; raise StreamNameError, saying what is wrong, if not."""
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
    """The names that `streams` gives: one name, or a list of names. Raises StreamNameError for anything else."""
    if isinstance(streams, str):
        return [check_name(streams)]
    if not isinstance(streams, Iterable) or isinstance(streams, bytes):
        raise StreamNameError(f"streams must be a name or a list of names, not {streams!r:.80}")
    return [check_name(name) for name in streams]


def slot(name: str) -> int:
    """The slot of a stream: the first two bytes of sha256 of its UTF-8 name, big-endian, modulo 1024.

    The SQL function `headrace.slot` gives the same number; notification channels and placement rest on it.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:2]) % SLOTS


def presence_stream(name: str) -> str:
    """The companion stream of a stream: `presence:` and its name, where who joins and leaves it is published.

    Raises StreamNameError for a name that is itself a companion's, or with which the companion's would be too long.
    """
    if check_name(name).startswith(PRESENCE_PREFIX):
        raise StreamNameError(f"{name!r} is where presence is published; nobody can be present on it")
    return check_name(PRESENCE_PREFIX + name)
