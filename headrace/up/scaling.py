"""`headrace scale`: a node is given another number of shards, while clients stay connected.

The `headrace up` of the node starts and ends processes, the directory says what they serve. Either may have been
started anew while the other was waited for.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from headrace.errors import DirectoryUnavailableError, UnavailableError
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations

Ask = Callable[[dict[str, Any]], Sequence[str]]
"""Asks the `headrace up` for something, see `headrace/up/control.py`; returns the ids of its shards afterwards."""


def scale(count: int, directory: Directory, operations: ShardOperations, ask: Ask) -> None:
    """Have so many shards, adding some or removing the last ones.

    Raises UnavailableError where that could not be done: also where `headrace up` was started anew meanwhile, with
    other shards. A shard that is not removed then serves again.
    """
    # Nothing is begun while Redis is away.
    directory.read()
    shards = list(ask({"list": True}))
    if count > len(shards):
        added = list(ask({"add": count - len(shards)}))

        def require_them() -> None:
            if missing := set(added) - set(ask({"list": True})):
                raise UnavailableError(
                    f"`headrace up` was started anew meanwhile, without {', '.join(sorted(missing))}; "
                    f"run `headrace scale {count}` again"
                )

        operations.join(added, require_them)
        operations.rebalance()
    for shard in shards[count:]:
        try:
            operations.drain(shard)
            ask({"remove": [shard]})
        except BaseException:
            # Else it would be found drained whenever a shard of this id is started again.
            with contextlib.suppress(DirectoryUnavailableError):
                directory.undrain(shard)
            raise
        directory.undrain(shard)
