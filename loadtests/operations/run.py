"""One run: every operation of an operator, one after the other, and what the clients noticed of each."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

import headrace
from headrace.environment_file import environ_with_file
from headrace.node.directory import Directory
from headrace.stream import SLOTS, slot
from loadtests.bench.node import Node
from loadtests.operations.crowd import Crowd

SETTLE_S = 30.0
COMMAND_DEADLINE_S = 180.0
PATIENT = {"HEADRACE_HANDOFF_DEADLINE_S": "10", "HEADRACE_DIRECTORY_EXPIRY_S": "10"}
"""On a small machine a process may stand still for longer than the defaults allow; that is not to cost its clients."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: how long it took, and the longest that any client waited meanwhile from one event to the next."""

    name: str
    seconds: float
    silence_s: float
    age_s: float
    output: str


@dataclass(slots=True)
class OperationsVerdict:
    """The result of a run. problems is empty if no promise was broken."""

    clients: int
    streams: int
    rate: float
    shards: int
    events: int = 0
    deliveries: int = 0
    steps: list[Step] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)
    moves_s: list[float] = field(default_factory=list)
    moves_silence_s: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The same as a dictionary that can be written as JSON."""
        return asdict(self)


class SteadyPublisher:
    """Publishes to the streams in turn, at a rate, from a thread of its own; heads are the newest ids."""

    def __init__(self, url: str, streams: list[str], rate: float) -> None:
        self.heads = dict.fromkeys(streams, 0)
        self._url = url
        self._rate = rate
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="publisher")

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def stop(self) -> None:
        """Stop publishing; returns when the last event is committed."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _publish(self) -> None:
        began, count = time.monotonic(), 0
        with psycopg.connect(self._url, autocommit=True) as connection:
            while True:
                for stream in self.heads:
                    due = began + count / self._rate
                    if self._ending.wait(max(0.0, due - time.monotonic())):
                        return
                    text = f"t={time.monotonic_ns()} {'x' * 160}"
                    self.heads[stream] = headrace.publish_now(connection, stream, text)
                    count += 1


class OperationsRun:
    """Starts a node with its clients, runs the operations, and judges. Owned by the main thread."""

    def __init__(
        self,
        *,
        clients: int,
        streams: int,
        rate: float,
        shards: int,
        moves: int,
        pause_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._verdict = OperationsVerdict(clients, streams, rate, shards)
        self._streams = [f"room:{number}" for number in range(streams)]
        self._moves = moves
        self._pause_s = pause_s
        self._say = say
        self._node = Node(shards, router_workers=2, settings=PATIENT)

    def __call__(self) -> OperationsVerdict:
        """Start everything, operate, and judge."""
        verdict = self._verdict
        self._say("starting everything")
        self._node.start()
        publisher = SteadyPublisher(self._node.database_url, self._streams, verdict.rate)
        crowd = Crowd(self._node.address)
        try:
            for number in range(verdict.clients):
                stream = self._streams[number % verdict.streams]
                crowd.join(self._node.path(stream, since="0"), stream)
            self._say(f"{verdict.clients} clients are connected")
            crowd.start()
            publisher.start()
            self._crowd = crowd
            self._operate()
            publisher.stop()
            self._settle(crowd, publisher.heads)
        finally:
            publisher.stop()
            crowd.stop()
            self._node.stop()
        verdict.events = sum(publisher.heads.values())
        verdict.deliveries = crowd.deliveries
        verdict.problems = dict(+crowd.problems)
        return verdict

    def _operate(self) -> None:
        shards = self._verdict.shards
        self._step("nothing", lambda: self._pause(5 * self._pause_s))
        owner = self._owner(self._streams[0])
        target = next(f"b-{number}" for number in range(shards) if f"b-{number}" != owner)
        self._command("move", self._streams[0], target)
        self._command("drain", "b-0")
        self._command("rebalance")
        self._command("undrain", "b-0")
        self._command("rebalance")
        for number in range(shards):
            self._command("restart", f"b-{number}")
        self._step("restart of the routers", self._restart_routers)
        self._command("scale", str(shards + 1))
        self._command("scale", str(shards))
        # All clients move to one shard, and then to another: this is timed.
        others = [f"b-{number}" for number in range(shards)]
        self._assign(others[0])
        for turn in range(self._moves):
            step = self._step(f"move of all, {turn + 1}", lambda turn=turn: self._assign(others[1 - turn % 2]))  # type: ignore[misc]
            self._verdict.moves_s.append(step.seconds)
            self._verdict.moves_silence_s.append(step.silence_s)

    def _assign(self, shard: str) -> str:
        """Give all slots to one shard; returns when every connection is there."""
        directory = self._directory()
        directory.assign("b", dict.fromkeys(range(SLOTS), shard))
        while True:
            entries = {entry.id: entry for entry in directory.read().shards}
            if entries[shard].connections == self._verdict.clients and not any(e.moving for e in entries.values()):
                return ""
            time.sleep(0.02)

    def _command(self, *arguments: str) -> None:
        def run() -> str:
            environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
            environ["PYTHONPATH"] = str(Path(headrace.__file__).parents[1])
            done = subprocess.run(
                [sys.executable, "-P", "-m", "headrace.cli", *arguments],
                cwd=self._node.directory,
                env=environ,
                capture_output=True,
                text=True,
                timeout=COMMAND_DEADLINE_S,
                check=False,
            )
            if done.returncode:
                self._crowd.problems["command"] += 1
            return done.stdout + done.stderr

        self._step(" ".join(arguments), run)

    def _step(self, name: str, work: Callable[[], str]) -> Step:
        self._crowd.listen_anew()
        began = time.monotonic()
        output = work()
        seconds = time.monotonic() - began
        # Events that the operation has held up arrive right after it.
        time.sleep(self._pause_s)
        step = Step(name, round(seconds, 2), round(self._crowd.silence_s, 2), round(self._crowd.age_s, 2), output)
        self._verdict.steps.append(step)
        self._say(
            f"{name:24} {step.seconds:6.2f} s, longest silence {step.silence_s:.2f} s, oldest event {step.age_s:.2f} s"
        )
        return step

    def _pause(self, seconds: float) -> str:
        time.sleep(seconds)
        return ""

    def _restart_routers(self) -> str:
        """SIGHUP to gunicorn's master: new workers, and the old ones end."""
        before = self._workers()
        (master,) = self._routers().keys() - before
        os.kill(master, signal.SIGHUP)
        deadline = time.monotonic() + COMMAND_DEADLINE_S
        while before & self._workers() and time.monotonic() < deadline:
            time.sleep(0.05)
        return ""

    def _routers(self) -> dict[int, int]:
        """The processes of gunicorn, each with its parent."""
        found = {}
        for process in psutil.Process(self._node.pid).children(recursive=True):
            # A process may end in this moment.
            with contextlib.suppress(psutil.Error):
                if any("gunicorn" in word for word in process.cmdline()[:4]):
                    found[process.pid] = process.ppid()
        return found

    def _workers(self) -> set[int]:
        routers = self._routers()
        return {pid for pid, parent in routers.items() if parent in routers}

    def _owner(self, stream: str) -> str:
        return self._directory().read().slots.get("b", {}).get(slot(stream), "")

    def _directory(self) -> Directory:
        environ = environ_with_file({}, self._node.directory / ".headrace" / "env")
        return Directory(environ["HEADRACE_REDIS_URL"], expiry_s=3)

    def _settle(self, crowd: Crowd, heads: dict[str, int]) -> None:
        """Wait, at most SETTLE_S, until every client has all events; those that a client lacks then are lost."""
        deadline = time.monotonic() + SETTLE_S
        while crowd.behind(heads) and time.monotonic() < deadline:
            time.sleep(0.1)
        if behind := crowd.behind(heads):
            crowd.problems["lost"] += behind


def render(verdict: OperationsVerdict) -> str:
    """The verdict as one or two lines for people."""
    broken = ", ".join(f"{count} {kind}" for kind, count in verdict.problems.items()) or "no promise broken"
    text = (
        f"{verdict.clients} clients on {verdict.streams} streams, {verdict.shards} shards: {verdict.events} events, "
        f"{verdict.deliveries} deliveries, {len(verdict.steps)} operations; {broken}"
    )
    if verdict.moves_s:
        seconds, silence_s = statistics.median(verdict.moves_s), statistics.median(verdict.moves_silence_s)
        text += (
            f"\na move of all {verdict.clients}: {seconds:.2f} s (median of {', '.join(map(str, verdict.moves_s))}), "
        )
        text += f"longest silence {silence_s:.2f} s"
    return text


def dump(verdict: OperationsVerdict) -> str:
    """The verdict as JSON."""
    return json.dumps(verdict.as_json(), indent=1)
