"""Runs audience predicates beside the dispatcher, each under a deadline, and answers with Verdict messages."""

import logging
from collections.abc import Mapping
from typing import Final

import gevent
from gevent.queue import SimpleQueue

from headrace.predicates import Predicate
from headrace.tokens import Context
from shard.connection import Connection
from shard.counters import Tally
from shard.inbox import Inbox
from shard.messages import Message, Verdict

logger = logging.getLogger(__name__)

WORKERS: Final = 16


class Filters:
    """Asks predicates; whatever is not a clear and timely True hides the event.

    The queue is shared; each question is owned by the greenlet that took it. The deadline can end a predicate
    only where it waits: one that computes without a pause holds the whole shard, which is why predicates
    are pure and short.
    """

    def __init__(self, predicates: Mapping[str, Predicate], deadline_s: float, inbox: Inbox[Message]) -> None:
        self.failures = Tally(("raised", "late"))
        self._predicates = predicates
        self._deadline_s = deadline_s
        self._inbox = inbox
        self._questions: SimpleQueue[tuple[Connection, str, str]] = SimpleQueue()
        self._unknown: set[str] = set()
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start the workers, if there is a predicate; returns their greenlets, which end only by `stop`."""
        count = WORKERS if self._predicates else 0
        self._greenlets = [gevent.spawn(self._run) for _ in range(count)]
        return self._greenlets

    def stop(self) -> None:
        """End the workers. Yields."""
        gevent.killall(self._greenlets)

    def ask(self, connection: Connection, stream: str, label: str) -> bool | None:
        """False for a label that nobody registered; else None, and a Verdict follows. Never switches greenlets."""
        if not self._known(label):
            return False
        self._questions.put((connection, stream, label))
        return None

    def decide(self, context: Context, stream: str, label: str) -> bool:
        """Whether a context may see events with the label on the stream. Yields, for the deadline at most."""
        if not self._known(label):
            return False
        try:
            with gevent.Timeout(self._deadline_s):
                return self._predicates[label](context, stream) is True
        except gevent.Timeout:
            self.failures.add("late")
            logger.error("predicate %r took over %g s for %r: hidden", label, self._deadline_s, stream)
        except Exception:
            self.failures.add("raised")
            logger.exception("predicate %r failed for %r: hidden", label, stream)
        return False

    def _run(self) -> None:
        while True:
            connection, stream, label = self._questions.get()
            visible = self.decide(connection.context, stream, label)
            self._inbox.put(Verdict(connection, stream, label, visible))

    def _known(self, label: str) -> bool:
        if label in self._predicates:
            return True
        if label not in self._unknown and len(self._unknown) < 1000:
            self._unknown.add(label)
            logger.warning("no predicate is registered for the label %r: its events are hidden", label)
        return False
