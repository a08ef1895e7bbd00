"""The ports: what the dispatcher needs of the other parts of a shard, without how they do it.

None of these calls switches greenlets. An answer that takes time comes later, as a message.
"""

from collections.abc import Iterable
from typing import Protocol

from headrace.shard.connection import Connection
from headrace.shard.messages import Parcel, Read
from headrace.tokens import Context


class WatchedSockets(Protocol):
    """The client sockets that are watched for being readable or writable."""

    def register(self, fd: int) -> None:
        """Watch a client's socket."""

    def unregister(self, fd: int) -> None:
        """Stop watching; the socket lives on."""

    def close(self, fd: int) -> None:
        """Stop watching, end the connection for real and close the descriptor."""


class PredicateQuestions(Protocol):
    """Asks predicates whether a connection may see events with a label that is not among its audiences."""

    def ask(self, connection: Connection, stream: str, label: str) -> bool | None:
        """False where the label is unknown; None when a Verdict message will follow."""


class ReadQueue(Protocol):
    """Runs reads in greenlets of its own, and answers each with a Rows or a ReadFailed message."""

    def submit(self, read: Read) -> None:
        """Queue a read. Never switches greenlets."""


class SlotListening(Protocol):
    """Listens to slots on the LISTEN connection."""

    def ensure_listening(self, slot: int) -> bool:
        """True if LISTEN on the slot is committed; else a Listening message follows when it is."""

    def stop_listening(self, slots: Iterable[int]) -> None:
        """End listening to these slots, which have had no subscriber for long."""


class ParcelQueue(Protocol):
    """Gives connections to other shards, and answers each parcel with a MoveEnded message."""

    def submit(self, parcel: Parcel, path: str) -> None:
        """Queue a parcel for the shard whose hand-off socket is at path. Never switches greenlets."""


class PresenceRecord(Protocol):
    """Keeps which users are present in which streams, for the companion streams."""

    def appear(self, connection: Connection) -> None:
        """A connection has come, or come back from a move that failed."""

    def disappear(self, connection: Connection) -> None:
        """A connection is closed, or leaves for another shard. MUST be called once for each `appear`."""


class RevocationCheck(Protocol):
    """The revocations: which contexts are refused, and whether that is known well enough for events to be read."""

    def current(self) -> bool:
        """Whether the revocations were read lately. Events MUST NOT be sent while they were not."""

    def refuses(self, context: Context) -> str:
        """The reason to close a connection with this context, which it is told; "" if it may stay."""

    def missed(self, streams: Iterable[str]) -> str:
        """The reason to close a connection whose revocation came while it was between shards; "" if there is none."""


class PolledSockets(WatchedSockets, Protocol):
    """The watched sockets, and which of them can be read or written."""

    def outstanding(self, fd: int) -> int:
        """Bytes that were written to a client and that it has not acknowledged."""

    def silent_s(self, fd: int) -> float:
        """For how long a client has acknowledged nothing of what it was sent; 0 while nothing is outstanding."""

    def poll(self) -> Iterable[tuple[int, bool, bool]]:
        """(descriptor, readable, writable) for each registered socket of which that is news."""

    def receive(self, fd: int) -> int:
        """Read and drop what the client sent: its bytes, or -1 if it is gone."""
