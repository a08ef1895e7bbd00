"""A shard's entry in the directory: what it says of itself each second, as a value and as the fields of a Redis hash.

The fields of `ShardEntry` are the one declaration of an entry. The Redis hash has them under the same names, as text;
`headrace status` and the operations page show those that are marked `Shown`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

ShardState = Literal["up", "draining", "drained", "stopping"]
"""What a shard does with new clients: one that is `up` accepts them, the others refuse; `stopping` soon ends."""

MAX_TEXT_CHARS: Final = 300
"""The greatest length of a field; what is longer is cut."""

T = TypeVar("T")
Shown = Annotated[T, "shown"]
"""The type of a field that `headrace status --json` and the operations page show as it is."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What one shard says of itself each second.

    Processes of different versions read each other's entries: a further field MUST have a default, which stands for
    the field in an entry of an older version.
    """

    id: Shown[str]
    node: Shown[str]
    pid: Shown[int]
    path: str
    """Its hand-off socket on its node."""
    state: Shown[ShardState]
    capacity: Shown[int]
    """The most clients that it accepts."""
    connections: Shown[int]
    """How many clients it has."""
    streams: Shown[int]
    """How many streams have a subscriber here."""
    version: Shown[str]
    lag_s: float = 0.0
    """How far its delivery is behind the log."""
    last_error: Shown[str] = ""
    """A sentence about the last thing that went wrong; empty when nothing has."""
    database_error: Shown[str] = ""
    """What is wrong with PostgreSQL now; empty when nothing is."""
    canary: Shown[str] = ""
    """What came of its last canary; empty without one."""
    moving: int = 0
    """How many connections it has yet to move to other shards."""
    settled: str = ""
    """The epoch, "<generation> <count>", that it has carried out. The generation tells a directory that was emptied
    since."""
    born: str = ""
    """"<pid> <boot> <ms>": the machine's boot, by its random id, and its age when the process started, which unlike
    wall time never goes back. The pid tells this from what another process of the id has left in the same hash."""
    started_ms: int = 0
    """When the process started, in wall time: for processes of version 0.1, which do not know `born`."""
    events_s: Shown[float] = 0.0
    """Events that it reads, a second."""
    deliveries_s: Shown[float] = 0.0
    """Events that it writes to clients, a second."""
    targets: str = ""
    """Where connections are on their way to: "<id>:<count>", with blanks between."""
    wish: str = ""
    """Why it is to be without clients: "shard" when an operator drains it alone; when its whole node is drained, the
    seconds that this may take; empty when it is not drained."""
    latency_p50_ms: Shown[float] = 0.0
    """From publishing to the client's socket, in the last seconds; 0 without a delivery."""
    latency_p99_ms: Shown[float] = 0.0
    blocked: Shown[int] = 0
    """How many clients have a full socket."""
    slowest: str = ""
    """The clients whose sockets have been full for the longest time, a line each: address, seconds and user."""
    deployment: str = ""
    """The identity of its deployment; empty before version 0.3."""

    def fields(self) -> list[str]:
        """The fields of the entry's Redis hash: name, value, name, value … The id is in the hash's key."""
        return [text for name in _FIELDS for text in (name, str(getattr(self, name))[:MAX_TEXT_CHARS])]

    def shown(self) -> dict[str, Any]:
        """The fields that operators see, by their names."""
        return {name: getattr(self, name) for name in _SHOWN}

    def has_carried_out(self, epoch: tuple[str, int]) -> bool:
        """Whether the shard has no connection left to move as of this epoch of the directory, or a later one."""
        generation, _, count = self.settled.partition(" ")
        return not self.moving and generation == epoch[0] and count.isdigit() and int(count) >= epoch[1]

    def moves(self) -> Iterator[tuple[str, int]]:
        """The shards that connections of this shard are on their way to, each with how many. One is a successor's if it
        has the id of this shard."""
        for target in self.targets.split():
            id_, _, count = target.rpartition(":")
            # The last of many is cut where the field's text ends.
            if id_ and count.isdecimal():
                yield id_, int(count)

    def slow_clients(self) -> Iterator[tuple[str, int, str]]:
        """The clients whose sockets have been full for the longest time: address, seconds and user of each."""
        for line in self.slowest.splitlines():
            peer, _, rest = line.partition(" ")
            seconds, _, user = rest.partition(" ")
            if seconds.isdecimal():
                yield peer, int(seconds), user


def read_entry(id_: str, values: Mapping[str, str]) -> ShardEntry | None:
    """The entry in the fields of a Redis hash.

    None where a later version, or a stranger, has written them in a form that is unknown here.
    """
    try:
        there = [name for name in _FIELDS if name in values or name not in _OPTIONAL]
        return ShardEntry(id=id_, **{name: _READERS[name](values[name]) for name in there})
    except (KeyError, ValueError):
        return None


def finite(text: str) -> float:
    """The number in a text of the directory. Raises ValueError, also for an infinite one."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _one_of(words: tuple[str, ...], text: str) -> str:
    if text not in words:
        raise ValueError(f"{text!r} is none of {words}")
    return text


def _reader(kind: Any) -> Callable[[str], Any]:
    """What makes a value of a field's type out of its text."""
    if get_origin(kind) is Literal:
        return partial(_one_of, get_args(kind))
    reader: Callable[[str], Any] = finite if kind is float else kind
    return reader


_HINTS: Final = get_type_hints(ShardEntry, include_extras=True)
_FIELDS: Final = tuple(f.name for f in fields(ShardEntry) if f.name != "id")
_OPTIONAL: Final = frozenset(f.name for f in fields(ShardEntry) if f.default is not MISSING)
_READERS: Final = {name: _reader(kind) for name, kind in get_type_hints(ShardEntry).items()}
_SHOWN: Final = tuple(name for name, hint in _HINTS.items() if "shown" in getattr(hint, "__metadata__", ()))
