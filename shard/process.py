"""The shard process: builds all parts, starts them in order, watches them, and stops them in order.

clock ─────► Tick, Sweep ─┐
listener ──► Wake … ──────┤
bus ───────► BusPage … ───┤            ┌─► readers ─► Rows ─┐
intake ────► Connect ─────┼─► inbox ─► dispatcher ◄─────────┘
poller ────► Ready ───────┤            └─► sockets
filters ───► Verdict ─────┤
revocations ► Revised ────┘
registration ─► Redis   sequencer, pruner, presence, operations feed ─► PostgreSQL   metrics ─► routers
"""

import gc
import logging
import re
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final, Protocol

import gevent
from gevent.event import Event

from headrace import predicates
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.directory import Directory
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.settings import Settings
from headrace.shard.bus.bulletin import Seal
from headrace.shard.bus.hearing import Hearing
from headrace.shard.bus.herald import Herald
from headrace.shard.bus.receiver import Receiver
from headrace.shard.bus.redis_channels import RedisChannels
from headrace.shard.client_admission import ClientAdmission
from headrace.shard.clock import Clock
from headrace.shard.dispatcher import Dispatcher
from headrace.shard.filters import Filters
from headrace.shard.history import History
from headrace.shard.inbox import Inbox
from headrace.shard.intake import Intake
from headrace.shard.messages import Message, Ready, Stop
from headrace.shard.node.own_entry import OwnEntry
from headrace.shard.node.own_state import OwnState
from headrace.shard.node.registration import Registration, assignment
from headrace.shard.node.reported_counts import ReportedCounts
from headrace.shard.numbers.canary import Canary
from headrace.shard.numbers.metrics import MetricsServer, Parts
from headrace.shard.numbers.operations_feed import OperationsFeed
from headrace.shard.poller import Poller
from headrace.shard.postgres.listener import Listener
from headrace.shard.postgres.presence import Presence
from headrace.shard.postgres.pruner import Pruner
from headrace.shard.postgres.readers import Readers
from headrace.shard.postgres.revocations import Revocations
from headrace.shard.postgres.sequencer import Sequencer
from headrace.shard.transfer import Transfer
from headrace.stream import OPS_STREAM

logger = logging.getLogger(__name__)

REVOCATIONS_PATIENCE_S: Final = 1.0
_NAME_PARTS: Final = re.compile("(?<=[a-z])(?=[A-Z])")


class Part(Protocol):
    """A long-lived part of the process."""

    def start(self) -> "list[gevent.Greenlet[..., None]]":
        """Start; returns greenlets that live until `stop`. Called once."""

    def stop(self) -> None:
        """End. Does nothing before `start` or the second time. Yields."""


class Process:
    """One shard from start to end.

    Owned by the main greenlet. The death of any part's greenlet ends the process with a non-zero status. serves is
    called when clients are taken.
    """

    def __init__(
        self,
        settings: Settings,
        shard_id: str,
        deployment: DeploymentIdentity,
        directory: Directory,
        serves: Callable[[], None] = lambda: None,
    ) -> None:
        settings.require("database_url", "redis_url")
        self.shard_id = shard_id
        self.path = Path(settings.runtime_dir) / f"{shard_id}.sock"
        self._settings = settings
        self._serves = serves
        self._limit = settings.connection_limit()
        self._ending = Event()
        self._failure = ""
        self._inbox: Inbox[Message] = Inbox()
        self._poller = Poller(lambda: self._inbox.put_once(Ready()))
        self._readers = Readers(settings, self._inbox, shard_id)
        self._sequencer = Sequencer(settings, shard_id)
        channels, seal = RedisChannels(settings), Seal(settings.secret, lambda: deployment.known)
        unsendable = self._readers.unsendable
        self._herald = Herald(
            settings, shard_id, directory, channels, seal, self._inbox, unsendable, self._serves_stream
        )
        self._listener = Listener(settings, self._inbox, shard_id, self._sequencer.heard, self._herald.heard)
        self._receiver = Receiver(
            channels, seal, self._inbox, shard_id, unsendable, self._serves_stream, lambda: self._hearing.slots
        )
        self._hearing = Hearing(
            settings, self._listener, self._receiver, self._herald, seal, self._inbox, self._sequencer
        )
        self._filters = Filters(predicates.load(settings.filters), settings.filter_deadline_s, self._inbox)
        self._deployment = deployment
        self._transfer = Transfer(settings.handoff_deadline_s, self._inbox, lambda: deployment.known)
        self._presence = Presence(settings, shard_id)
        self._revocations = Revocations(settings, self._inbox, shard_id)
        self.dispatcher = Dispatcher(
            settings,
            self._inbox,
            self._readers,
            self._hearing,
            self._poller,
            self._filters,
            self._transfer,
            self._presence,
            self._revocations,
            pause=lambda: gevent.sleep(0),
            missed=self._sequencer.missed,
        )
        self._history = History(settings, shard_id, self._filters.decide, self._revocations, self._readers.unsendable)
        self._clock = Clock(settings, self._inbox)
        self._pruner = Pruner(
            settings,
            shard_id,
            self.dispatcher.registry,
            self._sequencer.missed,
            lambda hold_s: directory.turn_or_away("prune", hold_s),
        )
        registry = self.dispatcher.registry
        self._state = OwnState(
            shard_id,
            settings.node,
            registry,
            self.dispatcher.moves,
            self._inbox,
            stop_intake=lambda: self._intake.stop(),
            end=self._ending.set,
        )
        admission = ClientAdmission(
            settings,
            self._limit,
            self._state,
            deployment,
            registry,
            self._revocations,
            self._history,
            waiting=lambda: self._intake.accepted - self.dispatcher.connects,
        )
        self._intake = Intake(settings, self.path, self._inbox, admission.refusal, self._history.submit)
        self._canary = Canary(settings, shard_id, lambda: self._state.is_up)
        self._operations_feed = OperationsFeed(
            settings, shard_id, directory, lambda: registry.stream(OPS_STREAM) is not None
        )
        version = metadata.version("headrace")
        self._entry = OwnEntry(
            settings,
            shard_id,
            version,
            self._limit,
            self._state,
            deployment,
            self.dispatcher,
            self._readers,
            self._listener,
            self._revocations,
            self._presence,
            self._canary,
        )
        self._registration = Registration(
            directory,
            self._entry.now,
            self._follow,
            settings.directory_interval_s,
            balance=settings.auto_balance,
            follows=True,
            counts=ReportedCounts(registry, settings.hot_connections),
        )
        parts = Parts(
            self._hearing, self._receiver, self._herald, self._sequencer, self.dispatcher, self._inbox, self._readers,
            self._revocations, self._history,
            self._listener, self._clock, self._pruner, self._presence, self._transfer, self._intake,
            self._registration, self._canary, self._filters, version, self._limit,
        )  # fmt: skip
        self._metrics = MetricsServer(shard_id, self.path, parts)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until a part dies; returns the exit status. Yields."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self._ending.set)
        dispatching = gevent.spawn(self.dispatcher.run)
        # The intake last but one: clients are taken when everything that serves them is there.
        parts: list[Part] = [
            self._revocations, self._readers, self._sequencer, self._listener, self._receiver, self._hearing,
            self._filters, self._clock,
            self._pruner, self._presence, self._transfer, self._history, self._metrics, self._intake,
            self._registration, self._canary, self._operations_feed,
        ]  # fmt: skip
        self._watch(dispatching, "dispatcher")
        following = gevent.spawn(self._deployment.follow)
        self._watch(following, "deployment")
        for part in parts:
            if part is self._intake:
                # So that a client whose token is revoked is refused, and not taken and then closed. Without PostgreSQL
                # clients are taken, but no events are read for them until the revocations are known.
                self._revocations.wait_loaded(REVOCATIONS_PATIENCE_S)
            for greenlet in part.start():
                self._watch(greenlet, _NAME_PARTS.sub(" ", type(part).__name__).lower())
        # The objects of now live as long as the process: the garbage collector need not look at them again.
        gc.freeze()
        logger.info("shard %s serves up to %d connections at %s", self.shard_id, self._limit, self.path)
        self._serves()
        self._ending.wait()
        following.kill()
        self._stop(dispatching)
        return 1 if self._failure else 0

    def _stop(self, dispatching: "gevent.Greenlet[..., None]") -> None:
        """Take no client any more, say goodbye to every client, then stop the other parts. Yields."""
        self._state.stop()
        self._canary.stop()
        self._operations_feed.stop()
        self._registration.stop()
        self._intake.stop()
        self._clock.stop()
        self._inbox.put(Stop("shutdown"))
        dispatching.join(self._settings.stop_deadline_s)
        if not dispatching.ready():
            logger.warning("the dispatcher did not end within %g s", self._settings.stop_deadline_s)
        self._hearing.stop()
        self._receiver.stop()
        self._listener.stop()
        self._sequencer.stop()
        self._pruner.stop()
        self._presence.stop()
        self._history.stop()
        self._revocations.stop()
        self._transfer.stop()
        self._filters.stop()
        self._readers.stop()
        self._poller.stop()
        self._metrics.stop()
        logger.info("shard %s has ended", self.shard_id)

    def _watch(self, greenlet: "gevent.Greenlet[..., None]", name: str) -> None:
        def ended(_: object) -> None:
            if self._ending.is_set() or (self._state.current == "stopping" and name == "intake"):
                return
            error = greenlet.exception
            self._failure = f"the {name} has ended: {error}" if error else f"the {name} has ended"
            logger.critical("%s; the shard stops", self._failure)
            self._ending.set()

        greenlet.link(ended)

    def _serves_stream(self, name: str) -> bool:
        return self.dispatcher.registry.stream(name) is not None

    def _follow(self, snapshot: DirectorySnapshot) -> None:
        """The directory was read. Yields once, at a succession, while the intake stops."""
        assigned = assignment(snapshot, self._entry.now())
        self._canary.placed(snapshot)
        self._hearing.placed(snapshot)
        self._state.follow(snapshot, assigned, self._registration.succeeded)
