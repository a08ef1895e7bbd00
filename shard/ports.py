"""The ports: what the dispatcher needs of the world, and nothing of how it is done.

None of these calls switches greenlets. What takes time is answered later, with a message.
"""

from collections.abc import Iterable
from typing import Protocol

from headrace.shard.connection import Connection
from headrace.shard.messages import Parcel, Read
from headrace.tokens import Context


class WatchedSockets(Protocol):
    """Which descriptors are watched for being readable or writable, and how they are closed."""

    def register(self, fd: int) -> None:
        """Watch a client's socket."""

    def unregister(self, fd: int) -> None:
        """Stop watching; the socket lives on."""

    def close(self, fd: int) -> None:
        """Stop watching, end the connection for real and close the descriptor."""


class PredicateQuestions(Protocol):
    """Who answers whether a label that is not among a connection's audiences is visible to it."""

    def ask(self, connection: Connection, stream: str, label: str) -> bool | None:
        """False where the label is unknown; None when a Verdict message will follow."""


class ReadQueue(Protocol):
    """Runs reads beside the dispatcher and answers each with a Rows or a ReadFailed message."""

    def submit(self, read: Read) -> None:
        """Queue a read. Never switches greenlets."""


class SlotListening(Protocol):
    """The owner of the LISTEN connection, as the dispatcher sees it."""

    def ensure_listening(self, slot: int) -> bool:
        """True if LISTEN on the slot is committed; else a Listening message follows when it is."""

    def stop_listening(self, slots: Iterable[int]) -> None:
        """These slots have had no subscriber for long."""


class ParcelQueue(Protocol):
    """Gives connections to other shards, and answers each parcel with a MoveEnded message."""

    def submit(self, parcel: Parcel, path: str) -> None:
        """Queue a parcel for the shard whose hand-off socket is at path. Never switches greenlets."""


class PresenceRecord(Protocol):
    """Who is here, by user and stream, as others are told of it."""

    def appear(self, connection: Connection) -> None:
        """A connection has come, or come back from a move that failed."""

    def disappear(self, connection: Connection) -> None:
        """It is closed, or has left for another shard. MUST be called once for each `appear`."""


class RevocationCheck(Protocol):
    """Whose connections are closed, and whether that is known well enough for events to be read."""

    def current(self) -> bool:
        """Whether what is known is young enough."""

    def refuses(self, context: Context) -> str:
        """The reason that a connection of this context is told, "" if it may stay."""

    def missed(self, streams: Iterable[str]) -> str:
        """The reason to close a connection to these streams that was between shards; "" if there is none."""


class PolledSockets(WatchedSockets, Protocol):
    """The sockets that are watched, and which of them have something."""

    def outstanding(self, fd: int) -> int:
        """Bytes that were written to a client and that it has not acknowledged."""

    def silent_s(self, fd: int) -> float:
        """For how long a client has acknowledged nothing of what it was sent; 0 while nothing is outstanding."""

    def poll(self) -> Iterable[tuple[int, bool, bool]]:
        """Descriptors with whether each can be read and written; only such as are registered now."""

    def receive(self, fd: int) -> int:
        """Read and drop what the client sent: its bytes, or -1 if it is gone."""
