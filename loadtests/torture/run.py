"""One run from start to verdict: the composition root of the torture."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gevent
import psycopg

from loadtests.torture import presence, truth
from loadtests.torture.faults import FAULTS
from loadtests.torture.footprint import INTERVAL_S, Footprints, Growth
from loadtests.torture.judge import ClientHistory, Owed, Violation, delivered, judge, note_ids
from loadtests.torture.plan import Plan
from loadtests.torture.predicates import EXPECTED
from loadtests.torture.publishers import Publishing
from loadtests.torture.stream_log import StreamLog
from loadtests.torture.subscribers import Subscribing
from loadtests.torture.system import System
from loadtests.torture.visitors import STREAM, VISITORS, Visitors

SETTLE_S = 15.0
"""With all faults healed, how long no client may receive anything until the events that are missing count as lost."""
MOST_SETTLE_S = 90.0


@dataclass(slots=True)
class Injected:
    """A fault as it happened, in seconds since the run began; until is None while it lasts."""

    name: str
    target: str
    since: float
    until: float | None = None


@dataclass(slots=True)
class TortureVerdict:
    """The result of a run. accounts has the log lines around a few of the violations."""

    seed: int
    seconds: float
    events: int = 0
    transactions: int = 0
    deliveries: int = 0
    subscribers: int = 0
    connections: int = 0
    pages: int = 0
    pages_with_pending: int = 0
    gaps: int = 0
    whole_after_s: float = 0.0
    presence: dict[str, float] = field(default_factory=dict)
    worst_pause_s: float = 0.0
    began: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    endings: dict[str, int] = field(default_factory=dict)
    faults: list[Injected] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The same as a dictionary that can be written as JSON."""
        value = asdict(self)
        value["violations"] = [
            {**asdict(one), "account": str(one), "after_s": round(max(0.0, one.at - self.began), 1)}
            for one in self.violations
        ]
        return value


class TortureRun:
    """Starts everything, tortures it, and judges. Owned by the main greenlet."""

    def __init__(self, plan: Plan, say: Callable[[str], None], command: str = "", log: Path | None = None) -> None:
        self._plan = plan
        self._say = say
        self._system = System(plan, command, log)
        self._publishing = Publishing(plan, self._system)
        self._subscribing: Subscribing | None = None
        self._verdict = TortureVerdict(plan.seed, plan.seconds, settings=dict(plan.settings))
        self._stopping = threading.Event()
        self._began = time.monotonic()

    def __call__(self) -> TortureVerdict:
        """Torture for the planned time, let everything arrive, and judge."""
        try:
            self._say(f"starting everything with {self._plan.shards} shards in {self._system.directory}")
            self._system.start()
            self._publishing.prepare()
            self._torture()
            self._judge()
        finally:
            self._system.stop()
        return self._verdict

    def _torture(self) -> None:
        plan = self._plan
        subscribing = self._subscribing = Subscribing(plan, self._system)
        self._began = self._verdict.began = time.monotonic()
        watching = [gevent.spawn(self._watch), gevent.spawn(self._sample)]
        clients = [gevent.spawn(subscriber.run) for subscriber in subscribing.subscribers]
        publishers = [gevent.spawn(self._publishing.run, number) for number in range(plan.publishers)]
        visitors = Visitors(plan, self._system)
        visiting = [gevent.spawn(visitors.run, number) for number in range(VISITORS)]
        lanes = [gevent.spawn(self._lane, lane) for lane in ("database", "service", "operator", "log", "bus")]
        self._stopping.wait(plan.seconds)
        self._stopping.set()
        gevent.joinall(lanes)
        self._publishing.stopping = visitors.stopping = True
        gevent.joinall([*publishers, *visiting], timeout=60)
        self._finish()
        subscribing.draining = True
        self._settle()
        self._check_presence("all are there", presence.connected(plan.clients))
        subscribing.closing = True
        gevent.joinall(clients, timeout=30)
        self._judge_presence()
        gevent.killall(watching)
        greenlets: list[gevent.Greenlet[..., None]] = [*lanes, *publishers, *visiting, *clients]
        for greenlet in greenlets:
            if greenlet.exception is not None:
                raise RuntimeError("a part of the torture itself has failed") from greenlet.exception

    def _finish(self) -> None:
        """Publish the last event of each stream while no shard hears of it: none may wait for a notification."""
        wire, faults = self._system.wires["listen"], self._verdict.faults
        if faults:
            faults.append(Injected("wire-cut", "listen, at the last event", round(time.monotonic() - self._began, 2)))
            wire.cut()
        self._publishing.say_farewell()
        if faults:
            time.sleep(0.5)
            wire.mend()
            faults[-1].until = round(time.monotonic() - self._began, 2)

    def _settle(self) -> None:
        """Wait, at most MOST_SETTLE_S, until every client has received all that it is owed."""
        since = time.monotonic()
        with self._system.connect() as connection:
            logs, broken = truth.check(self._publishing.transactions, *truth.read(connection))
        self._logs, self._verdict.violations = logs, broken
        owed = self._owed()
        assert self._subscribing is not None
        waiting = list(self._subscribing.subscribers)
        moved, cursors = since, [""] * len(waiting)
        while waiting and time.monotonic() < min(moved + SETTLE_S, since + MOST_SETTLE_S):
            waiting = [one for one in waiting if not _is_whole(one.history, one.cursor, logs, owed)]
            if (now := [one.last_id for one in waiting]) != cursors:
                moved, cursors = time.monotonic(), now
            time.sleep(0.1)
        self._verdict.whole_after_s = round(time.monotonic() - since, 1)
        self._ended = time.monotonic()

    def _check_presence(self, when: str, expected: dict[str, set[str]]) -> None:
        """Wait, at most WITHIN_S of `presence`, until exactly these users are members."""
        with self._system.connect() as connection:
            took_s, broken = presence.settle(connection, (*self._plan.shared, STREAM), expected)
        self._verdict.presence[f"{when} after s"] = took_s
        self._verdict.violations += broken

    def _judge_presence(self) -> None:
        """Judge presence when all clients have left: first its events, then that every member leaves."""
        with self._system.connect() as connection, connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            told, listed = presence.told(connection), presence.listed(connection, (*self._plan.shared, STREAM))
        staying = set() if self._plan.faults else presence.never_away(self._plan.clients)
        self._verdict.violations += presence.judge(told, listed, staying)
        self._check_presence("all are gone", {})
        self._verdict.presence |= {f"{kind}s": sum(one.type == kind for one in told) for kind in ("join", "leave")}

    def _lane(self, lane: str) -> None:
        """Inject and heal the faults of one lane, one after the other; each once before one comes a second time."""
        chance = self._plan.random(f"lane {lane}")
        scale = min(1.0, self._plan.seconds / 60)
        made = [(name, FAULTS[name](self._system, self._publishing, chance)) for name in self._plan.faults]
        names = [(name, fault) for name, fault in made if fault.lane == lane]
        queue: list[Any] = []
        # Between faults there must be time in which damage can show.
        quiet = max(scale, 0.5) * (max(1.0, 4 / self._plan.shards) if lane == "service" else 1.0)
        while names and not self._stopping.wait(chance.uniform(0.5, 3.5) * quiet):
            if not queue:
                queue = chance.sample(names, len(names))
            name, fault = queue.pop()
            low, high = fault.lasts_s
            lasts_s = max(chance.uniform(low, high) * scale, min(low, 1.0))
            injected = Injected(name, "", round(time.monotonic() - self._began, 2))
            self._verdict.faults.append(injected)
            injected.target = fault.inject(lasts_s)
            self._say(f"{injected.since:4.0f} s  -- {name} {injected.target}")
            self._stopping.wait(lasts_s)
            fault.heal()
            injected.until = round(time.monotonic() - self._began, 2)

    def _watch(self) -> None:
        """Report progress, and note how long this process itself was held up."""
        assert self._subscribing is not None
        said_at = heard = 0.0
        while True:
            before = time.monotonic()
            time.sleep(0.05)
            self._verdict.worst_pause_s = max(self._verdict.worst_pause_s, round(time.monotonic() - before - 0.05, 2))
            if time.monotonic() - said_at < 2:
                continue
            rate = (self._subscribing.received - heard) / (time.monotonic() - said_at)
            heard, said_at = self._subscribing.received, time.monotonic()
            now = f"{said_at - self._began:4.0f} s"
            faults = ", ".join(f.name for f in self._verdict.faults if f.until is None)
            self._say(
                f"{now}  {self._publishing.published} events, {heard} deliveries ({rate:.0f}/s), "
                f"{self._subscribing.connected}/{len(self._subscribing.subscribers)} connected  {faults}"
            )

    def _sample(self) -> None:
        """Note what the processes use, as far as a fault does not hide it."""
        footprints = Footprints(self._system.directory)
        try:
            while True:
                workers = {f"router {pid}": pid for pid in self._system.router_workers()}
                footprints.take(self._system.shards() | workers, self._backends())
                gevent.sleep(INTERVAL_S)
        finally:
            self._verdict.growth = footprints.growth()

    def _backends(self) -> int | None:
        try:
            with self._system.connect("footprint", timeout_s=3) as connection:
                return truth.backends(connection)
        except psycopg.Error:
            return None

    # -- the verdict

    def _owed(self) -> Owed:
        deadline_s = float(self._plan.settings["HEADRACE_WRITE_DEADLINE_S"])
        return Owed(_sees, self._system.deaths, deadline_s)

    def _judge(self) -> None:
        assert self._subscribing is not None
        verdict, system, owed = self._verdict, self._system, self._owed()
        histories = [subscriber.history for subscriber in self._subscribing.subscribers]
        if not system.shard_of:
            raise RuntimeError("no line of the log tells which shard a client was handed to; has their form changed?")
        endings: Counter[str] = Counter()
        for history in histories:
            note_ids(history, self._logs)
        for history in histories:
            for session in history.sessions:
                session.shard = system.shard_of.get(session.request_id, "")
                endings[session.ending or "open"] += 1
                verdict.gaps += sum(frame.type == "headrace:gap" for frame in session.frames)
            verdict.violations += judge(history, self._logs, owed, at_end=self._ended)
        told = {"died": system.unasked, "error": system.alarms, "publish": self._publishing.complaints}
        for kind, said in told.items():
            verdict.violations += [Violation(kind, "a process", "", (), at, text) for at, text in said]
        verdict.events = sum(len(log.events) for log in self._logs.values())
        verdict.transactions = len(self._publishing.transactions)
        verdict.deliveries = sum(map(delivered, histories))
        verdict.subscribers = len(histories)
        verdict.connections = sum(len(history.sessions) for history in histories)
        pages = self._subscribing.pages
        verdict.pages, verdict.pages_with_pending = pages.rendered, pages.with_pending
        verdict.errors = dict(self._publishing.errors)
        verdict.endings = dict(endings)
        seen: set[tuple[str, str]] = set()
        for violation in verdict.violations:
            # The first of each kind and shard; the rest is usually more of the same.
            if (key := (violation.kind, violation.shard)) not in seen and len(seen) < 6:
                seen.add(key)
                verdict.accounts.append(self._account(violation))

    def _account(self, violation: Violation) -> str:
        at = violation.at - self._began
        near = [
            f"{f.name} {f.target} from {f.since:.1f} to {f.until or self._plan.seconds:.1f} s"
            for f in self._verdict.faults
            if f.since - 1 <= at <= (f.until or at) + 6
        ]
        ended = re.search(r"\| (\S+) \(pid \d+\) ended", violation.text)
        said = self._system.around(violation.at, violation.request_id, ended[1] if ended else "")
        lines = said if len(said) <= 24 else [*said[:12], "  …", *said[-12:]]
        when = f"at {at:.2f} s" if violation.at else "at the end"
        head = f"{violation}\n  {when}; faults around: {'; '.join(near) or 'none'}"
        return "\n  ".join([head, *lines])


def _sees(history: ClientHistory, stream: str, label: str) -> bool:
    expected = EXPECTED.get(label)
    return label in history.audiences or (expected is not None and expected(history.user, stream))


def _is_whole(history: ClientHistory, cursor: tuple[int, ...] | None, logs: dict[str, StreamLog], owed: Owed) -> bool:
    if cursor is None or len(cursor) != len(history.streams):
        return False
    for name, position in zip(history.streams, cursor, strict=True):
        ids = logs[name].visible(lambda label, name=name: owed.sees(history, name, label)) if name in logs else []  # type: ignore[misc]
        if ids and position < ids[-1]:
            return False
    return True
