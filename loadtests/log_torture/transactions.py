"""One transaction of a publisher: the steps of which a transaction is made. How it ends is the publisher's business.

Each publication is written down in torture.publication, and each chain that the transaction got in torture.link, by the
transaction itself. So both exist if and only if it has committed. The note holds what was published in which step, with
savepoints that were rolled back too.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

from loadtests.log_torture import log_calls
from loadtests.log_torture.log_calls import Connection
from loadtests.log_torture.notes import AFTER_TURN, AT_COMMIT, TURN_AFTER_WORK, Notes, Published, TransactionNote
from loadtests.log_torture.streams import ROWS, own_row, queue, row

AUDIENCES: Final = (None, None, None, "staff", "user:7")
TYPES: Final = ("message", None, "changed")
BULK: Final = 600
"""The number of events in one stream of a transaction that has more of them than a watermark names."""
PADDINGS: Final = (0, 0, 0, 0, 40, 3000)
"""Bytes that make the data longer. The last is enough for PostgreSQL to store it elsewhere."""

_WRITE: Final = (
    "insert into torture.publication (token, stream, transaction, chain, version, id) values (%s, %s, %s, %s, %s, %s)"
)


class Transaction:
    """An open transaction of one publisher. Owned by the publisher's thread. Every step raises psycopg.Error."""

    def __init__(
        self, connection: Connection, notes: Notes, note: TransactionNote, publisher: int, choice: random.Random
    ) -> None:
        self.note = note
        self._connection = connection
        self._notes = notes
        self._publisher = publisher
        self._random = choice
        self._step = 0
        self._immediate = False
        self._waits = False  # headrace's constraint has work to do at the end
        self._works = False

    @property
    def has_work(self) -> bool:
        """Whether the application has left work to the end of the transaction."""
        return self._works

    def write_then_publish(self, stream: str, chain: str) -> None:
        """Get a row, then publish: the usual order."""
        version = self._move(stream, chain)
        self._write_down(self._publish(stream), chain, version)

    def publish_then_write(self, stream: str, chain: str) -> None:
        """Publish, then wait for a row: only the order of the commits is right."""
        published = self._publish(stream)
        self._write_down(published, chain, self._move(stream, chain))

    def queue_then_publish(self, stream: str) -> None:
        """Wait for an advisory lock, under whatever snapshot, then publish."""
        version = self._queue(stream)
        self._write_down(self._publish(stream), queue(stream), version)

    def publish_then_queue(self, stream: str) -> None:
        """Publish, then wait for an advisory lock: under an old snapshot no conflict of writes tells of it."""
        published = self._publish(stream)
        self._write_down(published, queue(stream), self._queue(stream))

    def publish_alone(self, stream: str) -> None:
        """Publish what conflicts with no other publisher."""
        self.write_then_publish(stream, own_row(stream, self._publisher))

    def publish_many(self, streams: Sequence[str]) -> None:
        """Several events in one call, on several streams in any order."""
        chains = [own_row(stream, self._publisher) for stream in streams]
        versions = [self._move(stream, chain) for stream, chain in zip(streams, chains, strict=True)]
        self._next_step()
        events = [self._new(stream) for stream in streams]
        self._connection.execute(log_calls.PUBLISH_MANY, _arrays(events))
        self._waits = not self._immediate
        for event, chain, version in zip(events, chains, versions, strict=True):
            self._write_down(event, chain, version)

    def publish_bulk(self, stream: str) -> None:
        """More events in one stream than a watermark names."""
        chain = own_row(stream, self._publisher)
        version = self._move(stream, chain)
        self._next_step()
        events = [self._new(stream) for _ in range(BULK)]
        self._connection.execute(log_calls.PUBLISH_MANY, _arrays(events))
        self._waits = not self._immediate
        self._write_down(events[0], chain, version)
        self._connection.execute(
            "insert into torture.publication (token, stream, transaction) select t, %s, %s from unnest(%s::bigint[]) t",
            [stream, self.note.number, [event.token for event in events[1:]]],
        )

    def commit_carelessly(self) -> None:
        """Ask for a commit that is not durable: what was published must be durable all the same.

        Does nothing where the log has done its work already, and relies on the setting.
        """
        if not self.note.firings and not self._immediate and not any(e.now for e in self.note.published.values()):
            self._connection.execute("set local synchronous_commit = off")

    def publish_now(self, stream: str) -> None:
        """Get a row, publish and be told the id; the stream stays locked until the end."""
        chain = self.any_row(stream)
        version = self._move(stream, chain)
        self._next_step()
        event = self._new(stream, now=True)
        found = self._connection.execute(
            log_calls.PUBLISH_NOW, [event.stream, event.data, event.type, event.visible_to]
        ).fetchone()
        assert found is not None
        self._write_down(event, chain, version, found[0])

    def publish_many_now(self, streams: Sequence[str]) -> None:
        """Several events in one call, on several streams, whose ids are told."""
        chains = [own_row(stream, self._publisher) for stream in streams]
        versions = [self._move(stream, chain) for stream, chain in zip(streams, chains, strict=True)]
        self._next_step()
        events = [self._new(stream, now=True) for stream in streams]
        found = self._connection.execute(log_calls.PUBLISH_MANY_NOW, _arrays(events)).fetchone()
        assert found is not None and len(found[0]) == len(events)
        for event, chain, version, id_ in zip(events, chains, versions, found[0], strict=True):
            self._write_down(event, chain, version, id_)

    def savepoints(self, stream: str) -> None:
        """Publish and write behind a savepoint that is rolled back, then behind one that is kept or released."""
        chain = own_row(stream, self._publisher)
        waits = self._waits
        self._connection.execute("savepoint gone")
        self.write_then_publish(stream, chain)
        self._connection.execute("rollback to gone")
        self._waits = waits
        self._connection.execute("savepoint kept")
        if self._random.random() < 0.5:
            self.write_then_publish(stream, chain)
        else:
            self.publish_then_write(stream, chain)
        if self._random.random() < 0.5:
            self._connection.execute("release kept")

    def leave_work(self, stream: str) -> None:
        """Leave it to a deferred constraint trigger of the application to move a chain, and to publish or not.

        At most once a transaction. Deferred constraints do their work in the order in which they got it.
        """
        self._works = True
        after = self._waits
        published = self._random.random() < 0.5
        step = AFTER_TURN if after else AT_COMMIT
        event = self._new(stream, plain=True, step=step, turn=TURN_AFTER_WORK if after else None) if published else None
        self._connection.execute(
            "insert into torture.work (transaction, step, stream, chain, token, data) values (%s, %s, %s, %s, %s, %s)",
            [
                self.note.number,
                step,
                stream,
                self.any_row(stream),
                *((event.token, event.data) if event else (None, None)),
            ],
        )

    def reset_all(self) -> None:
        """RESET ALL, which forgets what headrace remembers in a setting of the transaction."""
        self._connection.execute("reset all")
        self.note.synchronous = False  # as the database has it

    def set_constraints(self, immediate: bool) -> None:
        """SET CONSTRAINTS ALL IMMEDIATE, which has all deferred constraints do their work, or DEFERRED again."""
        step = self._next_step()
        self._connection.execute(b"set constraints all " + (b"immediate" if immediate else b"deferred"))
        self._immediate = immediate
        if immediate:
            self.note.firings.append(step)
            self._waits = False

    def flash_constraints(self) -> None:
        """Have the deferred constraints do their work now, and defer them again."""
        self.set_constraints(immediate=True)
        self.set_constraints(immediate=False)

    def any_row(self, stream: str) -> str:
        """One of the rows of the stream that all publishers contend for."""
        return row(stream, self._random.randrange(ROWS))

    def _publish(self, stream: str) -> Published:
        self._next_step()
        event = self._new(stream)
        self._connection.execute(log_calls.PUBLISH, [event.stream, event.data, event.type, event.visible_to])
        self._waits = not self._immediate
        return event

    def _new(
        self, stream: str, *, now: bool = False, plain: bool = False, step: int | None = None, turn: int | None = None
    ) -> Published:
        """A new publication, in the notes. With immediate constraints its turn comes with the statement itself."""
        token, choose = self._notes.token(), self._random.choice
        padding = choose(PADDINGS)
        at = self._step if step is None else step
        event = Published(
            token=token,
            stream=stream,
            data=f"{token}:{'x' * padding}" if padding else str(token),
            type=None if plain else choose(TYPES),
            visible_to=None if plain else choose(AUDIENCES),
            step=at,
            turn=at if now or (self._immediate and step is None) else turn,
            now=now,
        )
        self.note.published[token] = event
        return event

    def _move(self, stream: str, chain: str) -> int:
        return self._number("select torture.move(%s, %s, %s, %s)", stream, chain, self.note.number, self._next_step())

    def _queue(self, stream: str) -> int:
        return self._number("select torture.queue(%s, %s, %s)", queue(stream), self.note.number, self._next_step())

    def _number(self, question: str, *parameters: Any) -> int:
        found = self._connection.execute(question.encode(), parameters).fetchone()
        assert found is not None
        return int(found[0])

    def _write_down(self, event: Published, chain: str, version: int, id_: int | None = None) -> None:
        self._connection.execute(_WRITE, [event.token, event.stream, self.note.number, chain, version, id_])

    def _next_step(self) -> int:
        self._step += 1
        return self._step


def _arrays(events: Sequence[Published]) -> list[list[str] | list[str | None]]:
    return [
        [event.stream for event in events],
        [event.data for event in events],
        [event.type for event in events],
        [event.visible_to for event in events],
    ]
