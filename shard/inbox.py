"""The dispatcher's queue: where everything that happens to a shard arrives as a message."""

from collections import deque
from typing import Generic, TypeVar

from gevent.event import Event

Message = TypeVar("Message")


class Inbox(Generic[Message]):
    """An unbounded queue with one reader, which takes all waiting messages at once.

    Owned by its reader; any greenlet may put. It needs no bound because every source has one: clients the connection
    limit, reads the one that is outstanding in each lane, the clock one message of each kind, and wakes the length of
    PostgreSQL's queue of notifications.
    """

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._single: set[Message] = set()
        self._arrived = Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        """Add a message. Never switches greenlets."""
        self._messages.append(message)
        self._arrived.set()

    def put_once(self, message: Message) -> None:
        """Add a message unless an equal one that was put this way still waits. Never switches greenlets."""
        if message not in self._single:
            self._single.add(message)
            self.put(message)

    def take(self, wait: bool) -> list[Message]:
        """All messages in order of arrival; with wait at least one. Yields only while there is none."""
        while wait and not self._messages:
            self._arrived.clear()
            self._arrived.wait()
        messages = list(self._messages)
        self._messages.clear()
        self._single.clear()
        return messages
