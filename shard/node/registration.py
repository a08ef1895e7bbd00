"""The shard's place in the directory: what it says of itself each second, and what it reads there for itself.

Four things follow from what is read. An operator wants this shard drained: it takes nobody new and its connections
go to the owners of their slots. A slot has another owner: its connections go there. A stream is hot: its connections
are spread over the node. A younger process has registered under our id: it is our successor, everything goes to it,
and this process ends.
"""

import contextlib
import logging
import random
from collections.abc import Callable
from typing import Final

import gevent
from gevent.event import Event

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.outage import Outage
from headrace.node.placement import rendezvous, spread
from headrace.node.shard_entry import ShardEntry
from headrace.shard.messages import Assign
from headrace.shard.node.death_watch import DeathWatch
from headrace.shard.node.reported_counts import ReportedCounts
from headrace.stream import SLOTS

logger = logging.getLogger(__name__)

BUSY_INTERVAL_S: Final = 0.2


class Registration:
    """Registers the shard, takes over slots whose owner is gone, and tells where connections belong.

    Owned by its own greenlet. Without Redis it goes on trying; nothing else of the shard depends on it. This greenlet
    calls placed with each snapshot that it has read. With balance, a shard that has appeared is given its share of the
    slots. With follows, every change is read at once, which needs a process that gevent has patched; without it, only
    when interval_s has passed. counts are sent to the directory beside the entry.
    """

    def __init__(
        self,
        directory: Directory,
        entry: Callable[[], ShardEntry],
        placed: Callable[[DirectorySnapshot], None],
        interval_s: float,
        *,
        balance: bool = False,
        follows: bool = False,
        counts: ReportedCounts | None = None,
    ) -> None:
        self.succeeded = False
        self._outage = Outage(logger, "going on with the last known assignments", "Redis is back")
        self._directory = directory
        self._entry = entry
        self._placed = placed
        self._interval_s = interval_s
        self._balance = balance
        self._follows = follows
        self._counts = counts
        self._deaths = DeathWatch(self._bury)
        self._news = Event()
        self._known: DirectorySnapshot | None = None
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    @property
    def condition(self) -> str:
        """How Redis is, in a word: "ok", or why the directory cannot be used."""
        return self._outage.condition

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start registering; returns the greenlets, which end only by `stop`."""
        self._greenlets = [gevent.spawn(self._run)]
        if self._follows:
            self._greenlets.append(gevent.spawn(self._follow))
        return self._greenlets

    def stop(self) -> None:
        """Remove the entry, so that nobody is sent here any more, and end. Yields, about two seconds at most."""
        if not self._greenlets:
            return
        gevent.killall(self._greenlets)
        self._greenlets = []
        self._deaths.stop()
        entry = self._entry()
        try:
            self._directory.leave(entry.id, entry.pid)
        except DirectoryUnavailableError:
            logger.info("Redis is away; the entry of %s expires by itself", entry.id)

    def announce(self) -> None:
        """Register and read, as each second. Yields. Without Redis it says so and returns."""
        try:
            entry = self._entry()
            if not self.succeeded:
                # Before this process registers, since registering would overwrite the entry of a successor.
                self.succeeded = successor(self._read(entry), entry) is not None
                if self.succeeded:
                    logger.info("a younger process has the id %s; it gets the connections", entry.id)
            if not self.succeeded:
                self._directory.register(entry)
                if self._counts is not None:
                    hot = self._known.hot if self._known else {}
                    self._counts.send(self._directory, entry, hot.get(entry.node, {}))
                self._directory.claim(entry.node, balance=self._balance)
            self._known = self._read(entry)
        except DirectoryUnavailableError as error:
            self._outage.failed(error, error.condition)
            return
        self._outage.ended()
        self._deaths.watch(
            other
            for other in self._known.shards
            if other.node == entry.node and other.id != entry.id and _birth(other)[0] == _birth(entry)[0]
        )
        self._placed(self._known)

    def _read(self, entry: ShardEntry) -> DirectorySnapshot:
        """What is of this node. Yields. A successor has this shard's id, and may have come up as another node's."""
        return self._directory.read(self._known, entry.node, entry.id)

    def _bury(self, dead: ShardEntry) -> None:
        """Take over the slots of a shard that has died. Yields. Without Redis, its entry expires by itself."""
        try:
            if self._directory.bury(dead.id, dead.pid):
                logger.warning("shard %s (pid %d) is dead; its slots go to the others", dead.id, dead.pid)
                self._directory.claim(dead.node)
                self._news.set()
        except DirectoryUnavailableError as error:
            logger.info("the entry of %s, which is dead, expires by itself: %s", dead.id, error)

    def _run(self) -> None:
        while True:
            self.announce()
            entry, known = self._entry(), self._known
            busy = entry.moving or (known is not None and entry.settled != "{} {}".format(*known.epoch))
            # While connections move, an operator's command waits for this shard to say how many are left.
            self._news.wait(min(self._interval_s, BUSY_INTERVAL_S) if busy else self._interval_s)
            self._news.clear()

    def _follow(self) -> None:
        """Wake `_run` at every change of the directory, not only when the interval has passed. Yields."""
        while True:
            with contextlib.suppress(DirectoryUnavailableError):
                for changed in self._directory.changes(timeout_s=self._interval_s):
                    if changed:
                        self._news.set()
                    gevent.sleep(0)
            # Redis is away, as `announce` logs. The pauses differ, so that not all shards ask a returning Redis at
            # once.
            gevent.sleep(self._interval_s * random.uniform(0.5, 1.5))


def successor(snapshot: DirectorySnapshot, entry: ShardEntry) -> ShardEntry | None:
    """The entry of a younger process with the same id on this machine, if there is one.

    Connections are handed over within one machine only, and only within one boot of it do ages compare. A process of
    version 0.1 tells, and compares, wall time alone: it succeeds, and is succeeded, unless the clock was set back.
    """
    for other in snapshot.shards:
        if other.id == entry.id and other.pid != entry.pid and _younger(other, entry):
            return other
    return None


def _younger(other: ShardEntry, entry: ShardEntry) -> bool:
    boot, age_ms = _birth(entry)
    other_boot, other_age_ms = _birth(other)
    if not boot or not other_boot:
        return other.started_ms >= entry.started_ms
    return other_boot == boot and other_age_ms >= age_ms


def _birth(entry: ShardEntry) -> tuple[str, int]:
    """(the boot, the machine's age in ms), or ("", 0) if the process does not tell."""
    parts = entry.born.split(" ")
    told = len(parts) == 3 and parts[0] == str(entry.pid) and parts[2].isdecimal()
    return (parts[1], int(parts[2])) if told else ("", 0)


def assignment(snapshot: DirectorySnapshot, entry: ShardEntry) -> Assign:
    """Where the connections of the shard with this entry belong.

    A slot whose owner is unknown, dead or not up stays where it is, unless this shard is to be empty: then its first
    choice among those that are up gets it. A hot stream is spread over all that are up.
    """
    epoch = "{} {}".format(*snapshot.epoch)
    following = successor(snapshot, entry)
    if following is not None:
        return Assign(epoch, dict.fromkeys(range(SLOTS), following.path), everybody=True)
    others = {
        other.id: other.path
        for other in snapshot.shards
        if other.node == entry.node
        and other.state == "up"
        and other.id not in snapshot.drained
        and other.id != entry.id
    }
    if not others:
        return Assign(epoch, {})
    owners = snapshot.slots.get(entry.node, {})
    leaving = entry.id in snapshot.drained
    paths: dict[int, str] = {}
    for slot in range(SLOTS):
        owner = owners.get(slot)
        if owner in others:
            paths[slot] = others[owner]
        elif leaving:
            paths[slot] = others[rendezvous(slot, others)[0]]
    hot = frozenset(snapshot.hot.get(entry.node, ()))
    if not hot:
        return Assign(epoch, paths, everybody=leaving)
    shares = spread(others if leaving else [*others, entry.id])
    return Assign(epoch, paths, hot, tuple(others.get(id_, "") for id_ in shares), everybody=leaving)
