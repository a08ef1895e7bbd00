"""One run: makes the database, starts everybody, injects what happens to the server, ends everybody, and judges."""

import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files

import psycopg

from loadtests.log_torture import broken_schemas, log_calls
from loadtests.log_torture.cluster import Cluster
from loadtests.log_torture.fail_over import judge_followed, judge_ids, judge_pages_kept, kept
from loadtests.log_torture.followers import Follower
from loadtests.log_torture.judge import (
    Truth,
    judge,
    judge_acknowledged,
    judge_follower,
    judge_pages,
)
from loadtests.log_torture.killers import Ambusher, RandomKiller
from loadtests.log_torture.listeners import Listener
from loadtests.log_torture.notes import Notes, Violation
from loadtests.log_torture.pages import PageReader
from loadtests.log_torture.publishers import Publisher
from loadtests.log_torture.sequencers import Sequencer
from loadtests.log_torture.session_loop import SessionLoop
from loadtests.log_torture.streams import ROWS, STREAMS, row
from loadtests.log_torture.truth import read_truth

END_DEADLINE_S = 60.0
PREPARED = "select gid from pg_prepared_xacts where database = current_database()"
ACTIVITY = """
    select pid, pg_blocking_pids(pid), state, wait_event, left(query, 200) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle' order by 1"""
CRASH_EVERY_S = 7.0
"""A server that is to be killed is killed about so often."""


@dataclass(slots=True)
class Plan:
    """What is done in one run. broken names a break of the schema; faults are among `crash` and `failover`."""

    seed: int
    seconds: float
    faults: frozenset[str] = frozenset()
    broken: str | None = None
    publishers: int = 10
    sequencers: int = 2
    pages: int = 2


@dataclass(slots=True)
class Verdict:
    """What has come of one run."""

    plan: Plan
    events: int
    counts: dict[str, int]
    violations: list[Violation] = field(default_factory=list)

    def line(self) -> str:
        """One line of counts."""
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()) if count)
        kinds: dict[str, int] = {}
        for one in self.violations:
            kinds[one.kind] = kinds.get(one.kind, 0) + 1
        verdict = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no promise broken"
        return f"seed {self.plan.seed} {self.plan.broken or ''}: {self.events} events, {counts}; {verdict}"


class LogTortureRun:
    """One run on a database of its own. Owned by the main thread, which owns the cluster."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._cluster = cluster
        self._plan = plan
        self._random = random.Random(f"{plan.seed} run")
        self._notes = Notes()
        self._position: int | None = None  # the position up to which the promoted standby has everything
        self._publishers: list[Publisher] = []
        self._followers: list[Follower] = []
        self._others: list[SessionLoop] = []
        self._listener: Listener | None = None

    def __call__(self) -> Verdict:
        """Torture, and judge. Raises LookupError if the break does not apply."""
        plan, notes = self._plan, self._notes
        self._prepare()
        make = (self._cluster, notes, plan.seed)
        self._publishers = [Publisher(*make, number) for number in range(plan.publishers)]
        for publisher in self._publishers:
            publisher.long = publisher.number >= plan.publishers - 2
            publisher.positions = "failover" in plan.faults
        self._followers = [Follower(*make, number) for number in range(2)]
        sequencers = [Sequencer(*make, number) for number in range(plan.sequencers)]
        pages = [PageReader(*make, number) for number in range(plan.pages)]
        if "failover" in plan.faults:
            pages.append(PageReader(*make, plan.pages))
            pages[-1].standby = True
        self._others = [*sequencers, *pages, RandomKiller(*make, 0), Ambusher(*make, 0)]
        loops = [*self._publishers, *self._followers, *self._others]
        self._listener = Listener(*make, 0)
        for loop in [*loops, self._listener]:
            loop.start()
        try:
            self._wait()
        finally:
            for loop in loops:
                loop.stop()
            deadline = time.monotonic() + END_DEADLINE_S
            hung = [loop for loop in loops if not loop.ended(deadline - time.monotonic())]
        if hung:
            with psycopg.connect(self._cluster.url) as connection:
                names = {pid: name for name, pid in notes.sessions.items()}
                for pid, *what in connection.execute(ACTIVITY).fetchall():
                    notes.violation("hangs", f"{names.get(pid, pid)}: {what}")
            return Verdict(plan, 0, dict(notes.counts), notes.violations)
        try:
            return self._judge()
        finally:
            self._listener.stop()
            self._listener.ended(END_DEADLINE_S)

    def _prepare(self) -> None:
        plan = self._plan
        self._cluster.create(f"torture_{plan.seed}_{(plan.broken or 'sound').replace('-', '_')}")
        if plan.broken is not None:
            broken_schemas.apply(self._cluster.url, plan.broken)
        with psycopg.connect(self._cluster.url, autocommit=True) as connection:
            connection.execute(log_calls.KEEP)
            # What a transaction has after RESET ALL.
            name = self._cluster.database
            connection.execute(f"alter database {name} set synchronous_commit = off".encode())
            connection.execute(files(__package__).joinpath("application.sql").read_bytes())
            for stream in STREAMS:
                for number in range(ROWS):
                    connection.execute("insert into torture.chain values (%s, %s, 0)", [row(stream, number), stream])
        if "failover" in plan.faults:
            self._cluster.add_standby()

    def _wait(self) -> None:
        """Let time pass, and do to the server what the plan says."""
        until = time.monotonic() + self._plan.seconds
        if "failover" in self._plan.faults:
            time.sleep(self._plan.seconds * self._random.uniform(0.3, 0.6))
            if not self._cluster.synchronous:
                self._cluster.cut_standby()
                time.sleep(self._random.uniform(0.2, 1.0))
            self._position = self._cluster.fail_over()
            self._notes.count("fail-overs")
            self._roll_back_forgotten()
        while (left := until - time.monotonic()) > 0:
            if "crash" not in self._plan.faults:
                time.sleep(left)
                continue
            time.sleep(min(left, CRASH_EVERY_S * self._random.uniform(0.4, 1.2)))
            self._cluster.crash()
            self._notes.count("servers killed")

    def _roll_back_forgotten(self) -> None:
        """Roll back what is prepared at the standby and was decided at the killed server: nobody else would end it."""
        with psycopg.connect(self._cluster.url, autocommit=True) as connection:
            for (name,) in connection.execute(PREPARED).fetchall():
                if int(name.split()[1]) not in {publisher.undecided for publisher in self._publishers}:
                    with suppress(psycopg.errors.UndefinedObject):
                        connection.execute(f"rollback prepared '{name}'".encode())
                    self._notes.count("prepared and forgotten")

    def _judge(self) -> Verdict:
        notes, cluster = self._notes, self._cluster
        with psycopg.connect(cluster.url, autocommit=True) as connection:
            notes.count("left for a successor", log_calls.do_round(connection).numbered)
            truth = read_truth(connection)
            for follower in self._followers:
                while follower.read(connection, {}):
                    pass
            self._await_notifications(truth)
        found = list(judge(truth, notes.transactions))
        answered = [note for note in notes.transactions.values() if note.ended is not None]
        if self._position is None:
            found += judge_acknowledged(truth, answered)
            for follower in self._followers:
                found += judge_follower(follower.name, follower.seen, truth)
        else:
            found += judge_acknowledged(truth, kept(answered, cluster.era, self._position, cluster.synchronous))
            found += self._judge_fail_over(truth)
        found += judge_pages([page for page in notes.pages if page.era == cluster.era], truth)
        events = sum(len(read.events) for read in truth.log.values())
        return Verdict(self._plan, events, dict(notes.counts), notes.violations + found)

    def _await_notifications(self, truth: Truth) -> None:
        """Wait until the listener knows all heads, which nobody raises any more."""
        give_up = time.monotonic() + END_DEADLINE_S / 6
        assert self._listener is not None
        while True:
            known = self._listener.heads
            late = {name: read.head for name, read in truth.log.items() if known.get(name) != read.head}
            if not late or time.monotonic() > give_up:
                break
            time.sleep(0.01)
        for name, head in late.items():
            self._notes.violation("not told", f"{name} has head {head}, the listener knows {known.get(name)}")

    def _judge_fail_over(self, truth: Truth) -> list[Violation]:
        """Start the killed server once more, without clients, and compare what it had."""
        notes, cluster = self._notes, self._cluster
        cluster.start_old()
        with psycopg.connect(cluster.old_url, autocommit=True) as connection:
            for (name,) in connection.execute(PREPARED).fetchall():
                connection.execute(f"rollback prepared '{name}'".encode())
            heads = {name: read.head for name, read in log_calls.read(connection, dict.fromkeys(truth.log, 0)).items()}
            log_calls.do_round(connection)
            old = read_truth(connection)
        pages = [page for page in notes.pages if page.era < cluster.era]
        notes.count("transactions lost with the server", len(old.committed() - truth.committed()))
        found = [*judge(old, notes.transactions), *judge_pages(pages, old), *judge_ids(old, truth, heads)]
        found += judge_pages_kept(pages, old, truth, notes)
        for follower in self._followers:
            found += judge_followed(follower.name, follower.seen, old, truth, notes)
        return found
