"""Publishers: transactions of every kind, one after the other, and how each has ended."""

import time
from typing import Final

import psycopg
from psycopg import errors

from loadtests.log_torture.log_calls import REFUSES_NOW, SAFE_COMMITS, Connection
from loadtests.log_torture.notes import TransactionNote
from loadtests.log_torture.session_loop import SessionLoop
from loadtests.log_torture.streams import NEW_STREAMS, STREAMS, new_stream, own_row
from loadtests.log_torture.transactions import Transaction

KINDS: Final = ("usual",) * 8 + (
    "now",
    "many now",
    "new stream",
    "early",
    "snapshot",
    "snapshot",
    "serializable",
    "prepared",
    "work",
)
LONG_S: Final = 3.0
"""The longest time that a long transaction stays open after it has published: the office changes hands meanwhile."""
LEVELS: Final = {"snapshot": "repeatable read", "serializable": "serializable"}
_BLIND: Final = ("queue, publish", "publish, queue")
_WAYS: Final = ("row, publish",) * 4 + ("publish, row",) * 4 + (*_BLIND, "alone", "savepoints", "many")


class Publisher(SessionLoop):
    """Does transactions. With `long`, those stay open for seconds after they have published.

    positions: whether to note the position of the write-ahead log behind each commit, for a fail-over.
    """

    role = "publisher"
    long = False
    positions = False

    def serve(self, connection: Connection) -> None:
        """Do transactions until the end; a transaction that is prepared already is committed first."""
        self._era = self.cluster.era
        while not self.ending.is_set():
            self._finish_prepared(connection)
            self._transact(connection)

    @property
    def undecided(self) -> int | None:
        """The number of the transaction that this publisher has prepared, or is about to prepare."""
        return self._prepared.number if self._prepared is not None else None

    def conclude(self, connection: Connection) -> None:
        """Commit what is prepared still: others may wait for its rows."""
        self._era = self.cluster.era
        self._finish_prepared(connection)

    _prepared: TransactionNote | None = None
    _era = 0

    def _transact(self, connection: Connection) -> None:
        kind = "long" if self.long else "bulk" if self.random.random() < 0.002 else self.random.choice(KINDS)
        if (before_kill := self.cluster.before_kill) is not None:
            kind = self.random.choice(
                ("now", "many now") if before_kill == "numbers" else ("usual", "snapshot", "early")
            )
        level = LEVELS.get(kind, "read committed")
        synchronous = self.random.random() < 0.7 and before_kill is None
        connection.execute(b"set synchronous_commit = " + (b"on" if synchronous else b"off"))
        note = self.notes.begin(level)
        note.synchronous = synchronous
        transaction = Transaction(connection, self.notes, note, self.number, self.random)
        where = "statement"
        try:
            connection.execute(f"begin isolation level {level}".encode())
            blind = self._steps(transaction, kind, connection)
            if not note.synchronous and self.random.random() < 0.5:
                transaction.commit_carelessly()
            where = "commit"
            self._end(connection, note, kind)
        except psycopg.Error as error:
            if connection.closed:
                self.notes.count("transactions of unknown outcome" if note.commit_began else "transactions cut off")
                raise
            connection.execute("rollback")
            self._failed(error, note, kind, where, where == "commit" and blind and not transaction.has_work)
        if self.long:
            self.rest(LONG_S)  # so that there are times without a long transaction

    def _steps(self, transaction: Transaction, kind: str, connection: Connection) -> bool:
        """Do the steps of one transaction.

        Returns whether nothing but the log can have made its commit fail: it has read or updated no row that another
        transaction updates.
        """
        choose, chance = self.random.choice, self.random.random
        streams = self.random.sample(STREAMS, choose((1, 1, 2, 3)))
        match kind:
            case "now":
                for stream in sorted(streams) if chance() < 0.9 else streams:
                    transaction.publish_now(stream)
                    self.rest(choose((0.02, 0.5)), 0.3)
            case "many now":
                transaction.publish_many_now(streams + self.random.sample(STREAMS, 1))
            case "new stream":
                fresh = new_stream(int(time.monotonic()) % NEW_STREAMS)  # the same for all publishers, for a second
                if chance() < 0.5:
                    transaction.write_then_publish(fresh, own_row(fresh, self.number))
                else:
                    transaction.queue_then_publish(fresh)
            case "bulk":
                transaction.publish_bulk(streams[0])
            case "early":
                for stream in streams:
                    transaction.publish_alone(stream)
                transaction.flash_constraints()
                self._publish_all(transaction, streams, kind)
            case "long":
                transaction.publish_alone(streams[0])
                if chance() < 0.4:  # its turn comes now, its other events when the office has changed hands
                    transaction.flash_constraints()
                self.ending.wait(chance() * LONG_S)
                self._publish_all(transaction, streams, kind)
            case "snapshot" | "serializable":
                # From here on the snapshot is older than every lock that the transaction waits for.
                reads = kind == "serializable" and chance() < 0.2
                connection.execute("select count(*) from torture.chain" if reads else "select 1")
                self.rest(0.05, 0.5)
                blind = self._publish_all(transaction, streams, kind)
                if chance() < 0.03:
                    transaction.publish_now(choose(streams))
                return blind and not reads
            case "work":
                before = chance() < 0.5
                if before:
                    transaction.leave_work(streams[0])
                self._publish_all(transaction, streams, kind)
                if not before:
                    transaction.leave_work(streams[0])
            case _:
                if chance() < 0.05:
                    transaction.set_constraints(immediate=True)
                self._publish_all(transaction, streams, kind)
                if kind == "usual" and chance() < 0.05:
                    transaction.publish_now(choose(streams))
        return True

    def _publish_all(self, transaction: Transaction, streams: list[str], kind: str) -> bool:
        """Publish to each of the streams, in this order. Returns as `_steps` does."""
        blind, chance = True, self.random.random
        for stream in streams:
            blind = self._publish(transaction, stream, kind) and blind
            self.rest(0.01, 0.2)
            if kind in ("usual", "prepared") and chance() < 0.05:
                transaction.flash_constraints()
            if chance() < 0.05:
                transaction.reset_all()
        return blind

    def _publish(self, transaction: Transaction, stream: str, kind: str) -> bool:
        """Publish to a stream in one of the ways. Returns as `_steps` does."""
        way = self.random.choice(_WAYS)
        if kind in LEVELS and self.random.random() < 0.8:
            way = self.random.choice(_BLIND if kind == "serializable" else (*_BLIND, "alone", "savepoints"))
        match way:
            case "row, publish":
                transaction.write_then_publish(stream, transaction.any_row(stream))
            case "publish, row":
                transaction.publish_then_write(stream, transaction.any_row(stream))
            case "queue, publish":
                transaction.queue_then_publish(stream)
            case "publish, queue":
                transaction.publish_then_queue(stream)
            case "alone":
                transaction.publish_alone(stream)
            case "savepoints":
                transaction.savepoints(stream)
            case _:
                transaction.publish_many([stream, *self.random.sample(STREAMS, 2), stream])
        # An update reads the whole table, in the eyes of SERIALIZABLE, and so meets updates of other rows.
        return way in _BLIND or (kind == "snapshot" and "row" not in way)

    def _end(self, connection: Connection, note: TransactionNote, kind: str) -> None:
        if self.random.random() < 0.08:
            connection.execute("rollback")
            self.notes.count("rolled back")
            return
        if kind == "prepared":
            self._prepared = note
            try:
                connection.execute(f"prepare transaction 'torture {note.number}'".encode())
            except psycopg.Error:
                if not connection.closed:
                    self._prepared = None
                raise
            self.rest(0.3, 0.5)
            self._finish_prepared(connection)
            return
        note.commit_began = time.monotonic()
        connection.execute("commit")
        self._ended(connection, note)
        self.notes.count(f"{kind} committed")

    def _finish_prepared(self, connection: Connection) -> None:
        """Commit the prepared transaction of this publisher, or roll it back, if it exists."""
        if (note := self._prepared) is None:
            return
        keep = self.random.random() < 0.8 or note.commit_began is not None
        if keep:
            note.commit_began = note.commit_began or time.monotonic()
        verb = "commit" if keep else "rollback"
        try:
            connection.execute(f"{verb} prepared 'torture {note.number}'".encode())
        except errors.UndefinedObject:  # the session was lost before it was prepared, or after it was committed
            self.notes.count("prepared of unknown outcome")
        else:
            if keep:
                self._ended(connection, note)
            self.notes.count("prepared committed" if keep else "prepared rolled back")
        self._prepared = None

    def _ended(self, connection: Connection, note: TransactionNote) -> None:
        note.ended, note.era = time.monotonic(), self._era
        if self.positions:
            found = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
            note.position = int(found[0]) if found else None

    def _failed(self, error: psycopg.Error, note: TransactionNote, kind: str, where: str, safe: bool) -> None:
        """Count a transaction that PostgreSQL has refused; a refusal that may not be is a violation."""
        level = note.isolation
        match error:
            case errors.SerializationFailure():
                self.notes.count(f"40001 at {where}, {level}")
                if safe and level in SAFE_COMMITS:
                    self.notes.violation("commit failed", f"transaction {note.number}, {level}: {error!r}")
            case errors.DeadlockDetected():
                self.notes.count(f"deadlocks at {where}")
            case errors.QueryCanceled():
                self.notes.count(f"cancelled at {where}")
            case errors.FeatureNotSupported() if "PREPARE" in str(error) and kind == "prepared":
                self.notes.count("prepared refused")
            case errors.ActiveSqlTransaction() if level in REFUSES_NOW:
                self.notes.count("numbering at once refused")
            case _:
                self.notes.violation("error", f"transaction {note.number}, {kind}, {level}, at {where}: {error!r}")
