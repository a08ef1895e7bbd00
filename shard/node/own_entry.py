"""The shard's own entry in the directory: what it says of itself each second, gathered from its parts."""

import os
import time
from pathlib import Path

from headrace.node import runtime_directory
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.shard_entry import ShardEntry
from headrace.settings import Settings
from headrace.shard.dispatcher import Dispatcher
from headrace.shard.node.own_state import OwnState
from headrace.shard.numbers.canary import Canary
from headrace.shard.numbers.recent_performance import RecentLatency, RecentRates, slowest
from headrace.shard.postgres.listener import Listener
from headrace.shard.postgres.presence import Presence
from headrace.shard.postgres.readers import Readers
from headrace.shard.postgres.revocations import Revocations


class OwnEntry:
    """Makes the entry.

    Owned by the registration's greenlet; it only reads what the parts own, and nothing here yields. limit is the most
    connections that the shard takes, version the one of headrace.
    """

    def __init__(
        self,
        settings: Settings,
        shard_id: str,
        version: str,
        limit: int,
        state: OwnState,
        deployment: DeploymentIdentity,
        dispatcher: Dispatcher,
        readers: Readers,
        listener: Listener,
        revocations: Revocations,
        presence: Presence,
        canary: Canary,
    ) -> None:
        self._shard_id = shard_id
        self._node = settings.node
        self._path = str(runtime_directory.hand_off_socket(settings.runtime_dir, shard_id))
        self._version = version
        self._limit = limit
        self._state = state
        self._deployment = deployment
        self._dispatcher = dispatcher
        self._readers = readers
        self._listener = listener
        self._revocations = revocations
        self._presence = presence
        self._canary = canary
        self._rates = RecentRates()
        self._latency = RecentLatency(dispatcher.delivery.counters.latency)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Not wall time: with the clock set back in between, a successor would look older than its predecessor.
        self._born = f"{os.getpid()} {boot} {time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000}"
        self._started_ms = time.time_ns() // 1_000_000

    def now(self) -> ShardEntry:
        """The entry at this moment. Rates and latencies are of the time since the calls before."""
        away_since = self._readers.outage.since
        registry, moves = self._dispatcher.registry, self._dispatcher.moves
        counters = self._dispatcher.delivery.counters
        canary = registry.stream(self._canary.stream)
        events_s, deliveries_s = self._rates.rates(counters.events, counters.deliveries)
        p50_ms, p99_ms = self._latency.quantiles_ms()
        blocked = self._dispatcher.writer.full_sockets
        database_error = (
            self._listener.outage.last_error or self._readers.outage.last_error or self._revocations.outage.last_error
        )
        return ShardEntry(
            id=self._shard_id,
            node=self._node,
            pid=os.getpid(),
            path=self._path,
            state=self._state.current,
            capacity=self._limit,
            # The canary is nobody's client.
            connections=len(registry) - (canary.leads if canary else 0),
            streams=len(registry.streams) - (canary is not None),
            version=self._version,
            lag_s=0.0 if away_since is None else time.monotonic() - away_since,
            # Faults that are there now come first: the errors of the dispatcher and of moves stay after their fault.
            last_error=(
                database_error
                or self._canary.last_error
                or self._presence.outage.last_error
                or self._dispatcher.last_error
                or moves.last_error
            ),
            database_error=database_error,
            canary=self._canary.result,
            moving=moves.pending,
            settled=moves.carried_out_epoch,
            events_s=events_s,
            deliveries_s=deliveries_s,
            targets=" ".join(f"{Path(path).stem}:{count}" for path, count in sorted(moves.targets.items())),
            wish=self._state.wish,
            born=self._born,
            started_ms=self._started_ms,
            latency_p50_ms=p50_ms,
            latency_p99_ms=p99_ms,
            blocked=len(blocked),
            slowest=slowest(blocked, time.monotonic()),
            deployment=self._deployment.known,
        )
