"""Runs audience predicates beside the dispatcher, each under a deadline, and answers with Verdict messages.

    ask ─► a queue for each user: [question, question …] ─► WORKERS, over the queues in turn ─► a Verdict for each
                                                                                                 waiting connection

A question is asked once for all connections with equal contexts that wait for it. Users take turns, and each has at
most MOST_OF_ONE questions under way, so that a predicate that is slow for one user delays no other.
"""

import logging
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import gevent
from gevent.event import Event

from headrace.node.limit_keys import address_limit_key, user_limit_key
from headrace.predicates import Predicate
from headrace.shard.connection import Connection
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, Verdict
from headrace.shard.numbers.counters import Tally
from headrace.tokens import Context

logger = logging.getLogger(__name__)

WORKERS: Final = 16
MOST_OF_ONE: Final = 4


class Question(NamedTuple):
    """What a predicate is asked."""

    context: Context
    stream: str
    label: str


class Filters:
    """Asks predicates; any outcome but True within the deadline hides the event.

    The queues are shared: read and written between two yields. A question under way is owned by the greenlet that took
    it. A connection waits for one answer a stream, so that there are no more questions than subscriptions. The deadline
    can end a predicate only where it waits: a predicate that computes without a pause holds up the whole shard, which
    is why predicates must be pure and short.
    """

    def __init__(self, predicates: Mapping[str, Predicate], deadline_s: float, inbox: Inbox[Message]) -> None:
        self.failures = Tally(("raised", "late"))
        self._predicates = predicates
        self._deadline_s = deadline_s
        self._inbox = inbox
        self._waiting: dict[Question, list[Connection]] = {}
        self._queues: dict[str, deque[Question]] = {}  # in the order of their turns
        self._under_way: Counter[str] = Counter()
        self._news = Event()
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
        question = Question(connection.context, stream, label)
        waiting = self._waiting.setdefault(question, [])
        waiting.append(connection)
        if len(waiting) == 1:
            self._queues.setdefault(_user_or_address(connection), deque()).append(question)
            self._news.set()
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
            taken = self._take()
            if taken is None:
                self._news.wait()
                self._news.clear()
                continue
            user, question = taken
            self._under_way[user] += 1
            try:
                visible = self._wanted(question) and self.decide(*question)
            finally:
                self._under_way -= Counter((user,))
            for connection in self._waiting.pop(question):
                self._inbox.put(Verdict(connection, question.stream, question.label, visible))

    def _take(self) -> tuple[str, Question] | None:
        """The next question of the first user that may have one more under way; that user is the last from now on."""
        for user, questions in self._queues.items():
            if self._under_way[user] < MOST_OF_ONE:
                question = questions.popleft()
                del self._queues[user]
                if questions:
                    self._queues[user] = questions
                return user, question
        return None

    def _wanted(self, question: Question) -> bool:
        """Whether a connection that waits for the answer is still there."""
        return not all(connection.dead for connection in self._waiting[question])

    def _known(self, label: str) -> bool:
        if label in self._predicates:
            return True
        if label not in self._unknown and len(self._unknown) < 1000:
            self._unknown.add(label)
            logger.warning("no predicate is registered for the label %r: its events are hidden", label)
        return False


def _user_or_address(connection: Connection) -> str:
    """The user, or without a user the address, that takes turns with others."""
    user = connection.context.user
    return address_limit_key(connection.peer) if user is None else user_limit_key(user)
