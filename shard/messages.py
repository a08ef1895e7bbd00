"""The messages of the dispatcher: everything that can happen to a shard."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.event import Frame, Piece
from headrace.node.handoff import Handoff
from headrace.shard.connection import Connection, Stream


@dataclass(frozen=True, slots=True)
class Connect:
    """The intake has taken a client; fd is its socket, which the dispatcher owns from now on.

    unsent is the rest of a piece that another shard has begun to write, for a connection that moved here.
    """

    fd: int
    handoff: Handoff
    unsent: Piece = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """A notification: the stream has a new head. It is a hint to read, nothing more."""

    stream: str
    head: int


@dataclass(frozen=True, slots=True)
class Listening:
    """LISTEN on these slots is committed."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Missed:
    """News of events in these slots may have been lost on its way here."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Relistened:
    """The LISTEN connection was lost and is back: notifications may have been missed."""


class ReadKind(enum.Enum):
    """Which lane a read is of: following the head, catching clients up, or comparing heads."""

    LIVE = "live"
    CATCH_UP = "catch-up"
    SWEEP = "sweep"


@dataclass(frozen=True, slots=True)
class Read:
    """One query asked of the readers: for each stream, the page after an id (None: only its head)."""

    kind: ReadKind
    streams: tuple[Stream, ...]
    after: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What the log had of one stream in one snapshot.

    head is the stream's newest id, trimmed_to the newest id that retention has removed (0: none). jumps are the
    recorded ranges of ids that no event has; the stream goes on after the last id of a range. removed has, for each
    audience of which retention has removed events ("" is everybody), the id of the newest of them; it is empty where
    that is not known. frames are in order; they reach the head unless the page is full. unread tells that the read had
    no room left for this stream. Ids up to begins_after are of streams that were forgotten (0: none): this stream was
    made above them, or, with its head at begins_after, it does not exist.
    """

    head: int
    trimmed_to: int
    jumps: tuple[tuple[int, int], ...] = ()
    frames: list[Frame] = field(default_factory=list)
    removed: tuple[tuple[str, int], ...] = ()
    unread: bool = False
    begins_after: int = 0

    def missed_by(self, position: int) -> set[str]:
        """The audiences of the removed events above position, which is below trimmed_to; "" is everybody."""
        return {audience for audience, newest in self.removed if newest > position} or {""}

    def jumped(self, position: int) -> bool:
        """Whether ids jump between position and trimmed_to, which is above it."""
        return any(position < last <= self.trimmed_to for _, last in self.jumps)

    def foreign(self, position: int) -> bool:
        """Whether position, which a client gives as its own, cannot come from this log."""
        return position > self.head or any(first <= position < last for first, last in self.jumps)


@dataclass(frozen=True, slots=True)
class Rows:
    """A read has answered, with a page per stream in the order of the request.

    It was asked at asked_at (seconds of the monotonic clock). ages are, for each event, the seconds from when it got
    its id until then, by PostgreSQL's own clock. An age may be a little below 0. Only live reads have ages. timeline is
    that of the server that has answered, None if it is in recovery.
    """

    read: Read
    pages: tuple[Page, ...]
    asked_at: float = 0.0
    ages: Sequence[float] = ()
    timeline: str | None = None


@dataclass(frozen=True, slots=True)
class BusPage:
    """The log of one stream after an id, as the shard on duty has read it for all shards.

    page is what a read after the id `after` would have found. timeline is that of the server which was read. ages are
    as in Rows, counted until came_at (seconds of the monotonic clock), when the page came here.
    """

    stream: str
    after: int
    page: Page
    timeline: str | None
    came_at: float
    ages: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """PostgreSQL has refused a read, and asking again at once would not help."""

    read: Read
    error: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A predicate has answered whether a connection may see events with a label on a stream."""

    connection: Connection
    stream: str
    label: str
    visible: bool


@dataclass(frozen=True, slots=True)
class Revised:
    """The revocations have changed, or are current again. streams are to be disconnected now, each with the reason."""

    streams: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Assign:
    """Where connections belong: by the slot of their first stream, the hand-off socket of another shard of this node.

    The connections of a slot that is not in paths stay here. hot are streams whose connections are spread by the bucket
    of their peer instead, over the sockets in spread, where "" is this shard. everybody tells that this shard is to be
    empty, so that guests leave as well. epoch names the assignment, so that others can see when it is carried out.
    """

    epoch: str
    paths: Mapping[int, str]
    hot: frozenset[str] = frozenset()
    spread: tuple[str, ...] = ()
    everybody: bool = False


@dataclass(frozen=True, slots=True)
class DrainNode:
    """The whole node is to be empty: ask its clients to go elsewhere, within over_s seconds. None: let them stay."""

    over_s: float | None


@dataclass(frozen=True, slots=True)
class Parcel:
    """A connection that has left the registry, to move: its socket, which nobody writes to, and all its state."""

    fd: int
    handoff: Handoff
    unsent: Piece


@dataclass(frozen=True, slots=True)
class MoveEnded:
    """The move of a parcel to the shard at path has ended: it was taken, lost (given_back is None), or given back.

    reason says why it was not taken, "" if it was. misunderstood tells that the other shard knows none of the forms of
    the message that could give it this connection.
    """

    path: str
    given_back: Parcel | None = None
    reason: str = ""
    misunderstood: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """Some sockets can be read or written; the poller knows which."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: a share of the connections has its beat, and a deadline or an expiry may be due."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Compare all heads with the log, for notifications that were lost."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Say goodbye to every client, close, and end. reason is told to the clients."""

    reason: str


Message = (
    Connect
    | Wake
    | Listening
    | Missed
    | Relistened
    | Rows
    | BusPage
    | ReadFailed
    | Verdict
    | Revised
    | Assign
    | DrainNode
    | MoveEnded
    | Ready
    | Tick
    | Sweep
    | Stop
)
