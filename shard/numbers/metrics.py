"""A shard's numbers in Prometheus' terms, and the socket at which the node's routers ask for them.

Nothing here is called while events are delivered: the parts count in plain numbers, which are read when somebody asks.
No series is per stream, connection or user, so that their number stays the same whatever is published.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import gevent
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from headrace.node import metrics_sockets
from headrace.shard.bus.hearing import Hearing
from headrace.shard.bus.hearing_decisions import HearingMode
from headrace.shard.bus.herald import Herald
from headrace.shard.bus.receiver import Receiver
from headrace.shard.clock import Clock
from headrace.shard.dispatcher import Dispatcher
from headrace.shard.filters import Filters
from headrace.shard.history import History
from headrace.shard.inbox import Inbox
from headrace.shard.intake import Intake
from headrace.shard.messages import Message, ReadKind
from headrace.shard.node.registration import Registration
from headrace.shard.numbers.canary import Canary
from headrace.shard.numbers.connection_states import connection_states
from headrace.shard.numbers.counters import Histogram
from headrace.shard.postgres.listener import Listener
from headrace.shard.postgres.presence import Presence
from headrace.shard.postgres.pruner import Pruner
from headrace.shard.postgres.readers import Readers
from headrace.shard.postgres.revocations import Revocations
from headrace.shard.postgres.sequencer import Sequencer
from headrace.shard.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a shard that count something."""

    hearing: Hearing
    receiver: Receiver
    herald: Herald
    sequencer: Sequencer
    dispatcher: Dispatcher
    inbox: Inbox[Message]
    readers: Readers
    revocations: Revocations
    history: History
    listener: Listener
    clock: Clock
    pruner: Pruner
    presence: Presence
    transfer: Transfer
    intake: Intake
    registration: Registration
    canary: Canary
    filters: Filters
    version: str
    limit: int


class MetricsServer:
    """Answers at a unix socket beside the hand-off socket with the numbers of all parts.

    Owned by its own greenlet, which only reads what the parts own.
    """

    def __init__(self, shard_id: str, hand_off_path: Path, parts: Parts) -> None:
        self._path = hand_off_path.with_suffix(metrics_sockets.SUFFIX)
        self._labelled = metrics_sockets.Labelled(shard_id, ShardMetrics(parts))
        self._socket: metrics_sockets.MetricsSocket | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Listen; returns the greenlet, which ends only by `stop`. Raises OSError if the path cannot be bound."""
        self._socket = metrics_sockets.MetricsSocket(self._path, self._labelled.render)
        self._greenlet = gevent.spawn(self._socket.serve)
        return [self._greenlet]

    def stop(self) -> None:
        """End, and remove the socket unless a successor has put its own in place. Yields."""
        if self._greenlet is None or self._socket is None:
            return
        self._greenlet.kill()
        self._socket.close()


class ShardMetrics(Collector):
    """Reads the parts' numbers. The prefix `headrace_` is added to each name here."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """The families of the whole shard. Yields to other greenlets between connections."""
        yield _info("build", "The version of headrace that runs.", version=self._parts.version)
        yield from self._clients()
        yield from self._delivery()
        yield from self._log()
        yield from self._bus()
        yield from self._announcing()
        yield from self._access()
        yield from self._presence()
        yield from self._moves()
        yield from self._loop()
        yield from self._probe()

    def _clients(self) -> Iterator[Metric]:
        parts, delivery = self._parts, self._parts.dispatcher.delivery
        found = connection_states(delivery, lambda: gevent.sleep(0))
        yield _gauges("connections", "Connections by what they wait for.", "state", found)
        yield _gauge("connections_limit", "Most connections that this shard takes.", parts.limit)
        streams = parts.dispatcher.registry.streams
        yield _gauge("streams", "Streams with a subscriber here.", len(streams))
        yield _gauge("slots", "Slots with a subscriber here.", len({stream.slot for stream in streams}))
        yield _counters(
            "handoffs",
            "Clients that routers and other shards have offered, by the answer.",
            "answer",
            {"accepted": parts.intake.accepted, **parts.intake.refused.counts},
        )
        yield _counters(
            "clients_closed",
            "Connections that ended in this shard, by the reason.",
            "reason",
            delivery.counters.closed.counts,
        )
        yield _counter("client_stalls", "Times that a client's socket was full.", delivery.counters.stalls)
        yield _counter("gaps", "Clients told that retention has removed what they missed.", delivery.counters.gaps)
        yield _counter("resets", "Clients told that their cursor is not of this log.", delivery.counters.resets)
        yield _counters(
            "predicate_failures",
            "Questions to audience predicates that raised, or took too long; their events are hidden.",
            "why",
            parts.filters.failures.counts,
        )
        held = sum(stream.ring.size for stream in streams)
        yield _gauge(
            "ring_bytes", "Bytes of recent frames in memory, from which clients that are behind are caught up.", held
        )

    def _delivery(self) -> Iterator[Metric]:
        parts, delivery = self._parts, self._parts.dispatcher.delivery
        counters = delivery.counters
        yield _counter("events", "Events read for clients that were waiting for them.", counters.events)
        yield _counter("deliveries", "Events written to clients, once for each client.", counters.deliveries)
        yield _counter("writes", "System calls that wrote to a client.", counters.writes)
        yield _counter("sent_bytes", "Bytes that the kernel has accepted for clients.", counters.bytes)
        yield _histogram(
            "publish_to_socket_seconds",
            "Time from when an event got its id, just before its commit, until the kernel had its bytes, for each"
            " client.",
            {(): counters.latency},
        )
        depth = {
            "log": sum(len(stream.log) for stream in parts.dispatcher.registry.streams),
            "ring": delivery.turns,
        }
        yield _gauges("replay_depth", "Subscriptions behind, by what they are to be caught up from.", "source", depth)

    def _log(self) -> Iterator[Metric]:
        parts = self._parts
        reads = parts.readers.reads
        for name, help_, histograms in (
            ("read_seconds", "Time of a read of the log.", {kind: reads[kind].seconds for kind in ReadKind}),
            ("read_streams", "Streams asked for in one read.", {kind: reads[kind].streams for kind in ReadKind}),
            ("read_events", "Events found by one read.", {kind: reads[kind].events for kind in ReadKind}),
        ):
            yield _histogram(name, help_, {(kind.value,): found for kind, found in histograms.items()}, ("lane",))
        yield _counters(
            "read_failures",
            "Reads that PostgreSQL has refused.",
            "lane",
            {kind.value: reads[kind].failures for kind in ReadKind},
        )
        yield _counter("read_reconnects", "Reading connections lost and made anew.", parts.readers.reconnects)
        asked_at = reads[ReadKind.LIVE].asked_at
        lag_s = 0.0 if asked_at is None else time.monotonic() - asked_at
        yield _gauge("log_lag_seconds", "How long a read of new events has been waiting for its answer.", lag_s)
        errors = parts.listener.outage.last_error or parts.revocations.outage.last_error
        up = parts.readers.outage.since is None and not errors
        yield _gauge("postgresql_up", "1 while PostgreSQL answers and notifies, as far as was noticed.", up)
        yield _gauge("listen_connected", "1 while the LISTEN connection stands.", parts.listener.connected)
        yield _counter("listen_reconnects", "LISTEN connections lost and made anew.", parts.listener.reconnects)
        yield _counter("notifications", "Notifications of new events received.", parts.listener.notifications)
        skipped = "Events that could not be sent, and that clients were told of as a gap."
        yield _counter("unsendable_events", skipped, parts.readers.unsendable.count)
        pruner = parts.pruner
        yield _counter("pruned_events", "Events that this shard has removed for retention.", pruner.pruned)
        yield _gauge(
            "log_streams", "About how many streams the log has, the same in all shards: an estimate.", pruner.streams
        )
        yield _counter("forgotten_streams", "Idle streams that this shard has forgotten.", pruner.forgotten)

    def _bus(self) -> Iterator[Metric]:
        parts = self._parts
        modes = {mode.value.replace(" ", "_"): float(mode is parts.hearing.mode) for mode in HearingMode}
        yield _gauges("hearing", "1 for the way by which this shard hears of new events.", "mode", modes)
        messages = "Messages of the bus that came here, by what became of them."
        yield _counters("bus_messages", messages, "outcome", parts.receiver.messages.counts)
        pages = "Pages of new events that came over the bus, by what became of them."
        yield _counters("bus_pages", pages, "outcome", parts.dispatcher.bus_pages.outcomes.counts)
        read = "Pages that this shard has read for all shards."
        yield _counter("bus_pages_read", read, parts.herald.pages)
        yield _counter(
            "bus_heads_told", "New heads that this shard has told all shards, without a page.", parts.herald.heads
        )
        yield _counter("bus_sent_bytes", "Bytes that this shard has published on the bus.", parts.herald.bytes)
        yield _gauge("bus_up", "1 unless this shard hears nothing from Redis, or hears it late.", parts.receiver.up)

    def _announcing(self) -> Iterator[Metric]:
        sequencer = self._parts.sequencer
        in_office = "1 while this shard numbers the events of the whole database."
        yield _gauge("announcer_in_office", in_office, sequencer.in_office)
        numbered = "Turns of publishing transactions that this shard has numbered, and notified of."
        yield _counter("announced_transactions", numbered, sequencer.numbered)
        stranger = "1 while this shard has found a stranger at the lock of the office."
        yield _gauge("announcer_lock_stranger", stranger, bool(sequencer.stranger))

    def _access(self) -> Iterator[Metric]:
        revocations = self._parts.revocations
        yield _gauge(
            "revoked_users",
            "Users whose tokens are refused, where they were issued before the revocation.",
            revocations.users,
        )
        current = "1 while revocations were read lately; while 0, no events are delivered."
        yield _gauge("revocations_current", current, revocations.current())
        results = self._parts.history.results.counts
        yield _counters("history_pages", "Pages of history asked for, by what came of them.", "result", results)

    def _presence(self) -> Iterator[Metric]:
        presence = self._parts.presence
        yield _gauge(
            "presence_members", "Users with a connection in this shard, counted once for each stream.", presence.members
        )
        yield _counter("presence_reports", "Reports of members to PostgreSQL.", presence.reports)
        yield _counter("presence_expired", "Sessions of silent shards that this shard has ended.", presence.expired)
        yield _gauge("presence_up", "1 while reports of members reach PostgreSQL.", not presence.outage.last_error)

    def _moves(self) -> Iterator[Metric]:
        parts = self._parts
        yield _counters(
            "moves",
            "Connections given to other shards, by how it ended; `silent` and `unreachable` mean trouble.",
            "outcome",
            parts.transfer.outcomes.counts,
        )
        yield _counter("moves_here", "Connections taken over from other shards.", parts.intake.moved_here)
        yield _gauge(
            "moving",
            "Connections that are to move to other shards, or are on their way.",
            parts.dispatcher.moves.pending,
        )
        yield _gauge("redis_up", "1 while the directory in Redis can be used.", parts.registration.condition == "ok")

    def _loop(self) -> Iterator[Metric]:
        parts = self._parts
        yield _histogram("loop_lag_seconds", "How late the shard's ticks were handled.", {(): parts.clock.lag})
        yield _counters(
            "clock_jumps",
            "Times that this machine's clock was set, by a second or more, by the direction.",
            "direction",
            parts.clock.wall_clock.jumps.counts,
        )
        yield _gauge("inbox_messages", "Messages that wait for the dispatcher.", len(parts.inbox))
        yield _counter("errors", "Messages that could not be handled.", parts.dispatcher.errors)

    def _probe(self) -> Iterator[Metric]:
        canary = self._parts.canary
        yield _gauge("canary_up", "1 if the last canary arrived, 0 if not, or if none is sent.", canary.result == "ok")
        yield _counters("canaries", "Canaries sent, by what came of them.", "result", canary.results.counts)
        yield _histogram(
            "canary_seconds",
            "Time from just before a canary was published until it arrived through the front door.",
            {(): canary.seconds},
        )


def _info(name: str, help_: str, **labels: str) -> Metric:
    return InfoMetricFamily(f"headrace_{name}", help_, labels)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"headrace_{name}", help_, float(value))


def _gauges(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"headrace_{name}", help_, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(f"headrace_{name}", help_, value)


def _counters(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"headrace_{name}", help_, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _histogram(
    name: str, help_: str, found: Mapping[tuple[str, ...], Histogram], labels: tuple[str, ...] = ()
) -> Metric:
    family = HistogramMetricFamily(f"headrace_{name}", help_, labels=labels)
    for values, histogram in found.items():
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        family.add_metric(values, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
    return family
