"""The directory: which shards live, where, and which slots they own, kept in Redis for routers and commands.

Each shard registers once a second; its entry expires if it stops. The keys and the atomic steps are in `lua/`. Redis is
never in the path of an event: every method here may fail with DirectoryUnavailableError within about two seconds, and
its caller goes on with what it knew. A Redis that is read but refuses writes fails like one that is away: there the
entries of living shards expire.

Several deployments may share a Redis, each with a prefix of its own. Two with one prefix would mix their shards; so
each directory belongs to one deployment while a shard of it lives, and calls in the name of another raise
DirectoryForeignError.
"""

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from types import MappingProxyType
from typing import Any, Final, Literal, cast, get_args

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.errors import DirectoryForeignError, DirectoryReadOnlyError, DirectoryUnavailableError, SettingsError
from headrace.node import node_sockets, redis_failures
from headrace.node.placement import rendezvous
from headrace.settings import Settings
from headrace.stream import SLOTS

logger = logging.getLogger(__name__)

State = Literal["up", "draining", "drained", "stopping"]
"""What a shard does with new clients: `up` takes them, the others refuse; `stopping` will be gone soon."""

ENDS: Final = ("stopped", "died", "silent", "replaced")
"""How a shard's process ends, as the directory sees it: it leaves; another shard finds it dead; it says nothing for as
long as its entry lives; another process registers under its id."""

MAX_ERROR_CHARS: Final = 300
_SCRIPT: Final = ("keys", "shards", "slots", "counts", "call")
_FOREIGN: Final = "FOREIGN "
_MOST_ASTRAY: Final = 100
_TIMEOUT_S: Final = 1.0
"""How long Redis may take for one answer: a stopped Redis neither answers nor closes."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What one shard says of itself each second.

    path is its hand-off socket on its node; capacity and connections count clients; streams counts those with a
    subscriber here; lag_s is how far its delivery is behind the log. last_error is a sentence about the last thing that
    went wrong, empty when nothing has; database_error is about what is wrong with PostgreSQL now; canary is what came
    of its last canary, empty without one. events_s and deliveries_s are rates a second; latency_p50_ms
    and latency_p99_ms are of the last seconds, from publishing to the socket, 0 without a delivery. blocked counts
    clients whose socket is full; slowest has those who have been longest so, a line each of address, seconds and user.
    targets says where connections are on their way to, `<id>:<count>` with blanks between. wish is why it is to be
    empty: "shard" when an operator drains it, the seconds that this may take when it is the whole node.
    settled is the epoch that it has carried out; its generation tells a directory that was emptied since.
    born is "<pid> <boot> <ms>": the machine's boot, by its random id, and its age when the process started, which
    unlike wall time never goes back. The pid tells it from what another process of the id has left in the same hash.
    started_ms is wall time, for processes of version 0.1, which know no other. deployment is the identity of the
    shard's deployment, empty before version 0.3.

    Versions read each other's entries: a further field MUST have a default, which stands for it in an older entry.
    """

    id: str
    node: str
    pid: int
    path: str
    state: State
    capacity: int
    connections: int
    streams: int
    version: str
    lag_s: float = 0.0
    last_error: str = ""
    database_error: str = ""
    canary: str = ""
    moving: int = 0
    settled: str = ""
    born: str = ""
    started_ms: int = 0
    events_s: float = 0.0
    deliveries_s: float = 0.0
    targets: str = ""
    wish: str = ""
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    blocked: int = 0
    slowest: str = ""
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The directory at one moment: the epoch, the live shards by id, and per node its slots' owners.

    epoch is (generation, count); the generation is random and a new one means that Redis was emptied, so its
    counts compare only within it. It is ("", 0) in an empty Redis. drained are the shards that an operator wants
    without clients, whether they are yet or not; drained_nodes are whole nodes, each with the seconds over which its
    clients are to leave. hot has, per node, its hot streams and how many connections each leads there. ends has, per
    node, how many of its shards' processes have ended in which way, by a word of ENDS.
    """

    epoch: tuple[str, int] = ("", 0)
    shards: tuple[ShardEntry, ...] = ()
    slots: Mapping[str, Mapping[int, str]] = field(default_factory=lambda: MappingProxyType({}))
    drained: frozenset[str] = frozenset()
    drained_nodes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    hot: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    ends: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Report:
    """What a shard counts, once a second.

    crowds are its largest streams by the connections that they lead, None where there is nothing to tell; a stream is
    hot on its node from high connections on until they are fewer than low. held has, for each user or address whose
    number has changed, how many connections it has here now; with whole it is all of them. arrived are those among
    them that came through a router, each with its request id. serial rises from one report of a process to the next:
    one that is late is not heeded.
    """

    serial: int
    crowds: Mapping[str, int] | None
    high: int
    low: int
    whole: bool
    held: Mapping[str, int]
    arrived: Sequence[tuple[str, str]]


class Directory:
    """A client of the directory. Any greenlet or thread may call it; in a patched process every call yields.

    expiry_s is how long an entry lives without being registered again. prefix begins every key. deployment returns the
    identity in whose name each call is, "" to ask for nobody's. located is given each entry that is read and returns
    it with the path that counts. Raises SettingsError for a URL that is none.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        expiry_s: float,
        prefix: str = "headrace",
        deployment: Callable[[], str] = lambda: "",
        located: Callable[["ShardEntry"], "ShardEntry"] = lambda entry: entry,
    ) -> None:
        self._expiry_s = expiry_s
        self._prefix = prefix
        self._deployment = deployment
        self._located = located
        try:
            self._redis: redis.Redis = redis.Redis.from_url(
                redis_url,
                decode_responses=True,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                # Once more after a connection that Redis has closed since; never after silence.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise SettingsError(f"HEADRACE_REDIS_URL cannot be read: {error}") from error
        # Channels are the same in all databases of a server.
        self._database = str(self._redis.connection_pool.connection_kwargs.get("db") or 0)
        files = (resources.files("headrace.node") / "lua" / f"{name}.lua" for name in _SCRIPT)
        self._script = self._redis.register_script("\n".join(file.read_text() for file in files))

    @classmethod
    def of(cls, settings: Settings, deployment: Callable[[], str], *, resident: bool = False) -> "Directory":
        """The directory that these settings name, in the name of a deployment. Raises SettingsError.

        resident: for a process of this node, which finds the node's shards in its own runtime directory, whatever Redis
        says of them.
        """
        return cls(
            settings.redis_url,
            expiry_s=settings.directory_expiry_s,
            prefix=settings.redis_prefix,
            deployment=deployment,
            located=_locator(settings) if resident else lambda entry: entry,
        )

    def require_ours(self) -> None:
        """Raise DirectoryForeignError if this is the directory of another deployment that has living shards. Yields.

        Entries of shards that have died are waited for until they expire.
        """
        give_up = time.monotonic() + self._expiry_s + 1
        while occupant := self._call("occupant"):
            if time.monotonic() >= give_up:
                raise _foreign(occupant)
            time.sleep(0.1)

    def register(self, entry: ShardEntry) -> bool:
        """Write the entry and begin its expiry anew. MUST be called well within expiry_s each time.

        The epoch moves, and watchers hear of it, only if the shard is new or its node, process, path or state
        changed; returns whether. A living entry of the same id is overwritten: the last process wins. A directory that
        another deployment has left, none of whose shards lives, is emptied before.
        """
        values: list[str] = []
        for name in _FIELDS:
            values += (name, str(getattr(entry, name))[:MAX_ERROR_CHARS])
        changed, former = self._call("register", entry.id, str(int(self._expiry_s * 1000)), *values)
        if former:
            logger.warning(
                "Redis had the directory of another deployment (%s), none of whose shards lives; it is ours now", former
            )
        return bool(changed)

    def leave(self, shard_id: str, pid: int) -> bool:
        """Remove the entry if it is still that process's; returns whether it was."""
        return bool(self._call("leave", shard_id, str(pid)))

    def bury(self, shard_id: str, pid: int) -> bool:
        """Remove the entry of a process that was found dead, if it is still that process's; returns whether it was.

        Its slots can be claimed at once, while those of a shard that leaves are kept for a while.
        """
        return bool(self._call("bury", shard_id, str(pid)))

    def claim(self, node: str, *, settle_s: float | None = None, balance: bool = False) -> int:
        """Give each slot of the node that has no live owner to its first choice among the shards that are up.

        With balance, a shard that has appeared and owns none gets those whose first choice it is, whoever owns them.

        Returns how many slots were given. Called by every shard each second: with nothing to do it costs one short
        call. Nothing is given until the node's shards have stayed the same for settle_s (expiry_s when None):
        otherwise the first shard to start would get every slot, and a restarted one would find its own gone. Meanwhile
        routers use the same order of preference themselves.
        """
        settle_ms = int((self._expiry_s if settle_s is None else settle_s) * 1000)
        orphans, up, newcomers = self._call("orphans", node, str(settle_ms), str(int(balance)))
        if balance and newcomers:
            choices = ((slot, rendezvous(slot, up)[0]) for slot in range(SLOTS))
            return self.assign(node, {slot: owner for slot, owner in choices if owner in newcomers})
        if not orphans or not up:
            return 0
        proposals: list[str] = []
        for slot in orphans:
            proposals += (str(slot), rendezvous(int(slot), up)[0])
        return int(self._call("claim", node, *proposals))

    def drain(self, shard_id: str) -> None:
        """Want the shard without clients, until `undrain`; its slots are free to be claimed at once."""
        self._call("drain", shard_id)

    def undrain(self, shard_id: str) -> None:
        """Let the shard serve again. It owns no slot before some are assigned to it."""
        self._call("undrain", shard_id)

    def drain_node(self, node: str, over_s: float) -> None:
        """Want all shards of the node without clients, which are to leave within about so many seconds."""
        self._call("drain_node", node, f"{over_s:g}")

    def undrain_node(self, node: str) -> None:
        """Let the node serve again, with the slots that its shards have had."""
        self._call("undrain_node", node)

    def report(self, entry: ShardEntry, report: Report) -> bool:
        """Write what a shard counts; False if the directory had lost what was held and needs a whole report.

        False also where the entry is another process's by now, whose counts are not to be mixed with these.
        """
        value = {
            "id": entry.id,
            "pid": str(entry.pid),
            "node": entry.node,
            "expiry_ms": int(self._expiry_s * 1000),
            "serial": report.serial,
            "crowds": report.crowds,
            "high": report.high,
            "low": report.low,
            "whole": report.whole,
            "held": report.held,
            "arrived": report.arrived,
        }
        return bool(self._call("report", json.dumps(value)))

    def admit(self, request_id: str, limits: Mapping[str, int]) -> str:
        """Let a client in on behalf of each user or address in limits, unless one has as many connections already.

        Returns who has, or "". Who was let in counts at once; it counts no more if no shard has told of it within ten
        seconds, or by `release`.
        """
        pairs = [text for who, limit in limits.items() for text in (who, str(limit))]
        return str(self._call("admit", request_id, *pairs))

    def release(self, request_id: str, who: Iterable[str]) -> None:
        """A client that was let in has not been taken by any shard."""
        self._call("release", request_id, *who)

    def assign(self, node: str, owners: Mapping[int, str]) -> int:
        """Give slots of a node to shards of it, whoever owned them; shards and routers follow.

        Returns how many slots changed their owner. A shard that is not alive on the node, or is drained, is given
        nothing.
        """
        pairs = [text for slot, owner in sorted(owners.items()) for text in (str(slot), owner)]
        return int(self._call("assign", node, *pairs))

    def turn(self, what: str, hold_s: float) -> bool:
        """Whether it is the caller's turn to do something that one of all does; then nobody else's for hold_s."""
        return bool(self._call("turn", what, str(int(hold_s * 1000))))

    def end_session(self, id_: str, life_s: float) -> None:
        """An operator's session has ended, which is remembered for as long as it would have lived."""
        self._call("end_session", id_, str(int(life_s * 1000)))

    def session_ended(self, id_: str) -> bool:
        """Whether an operator has ended this session."""
        return bool(self._call("session_ended", id_))

    def read(self, known: Snapshot | None = None) -> Snapshot:
        """The whole directory in one atomic read, shards sorted by id.

        known is the last snapshot, which saves reading its slots again if the epoch is still the same.
        """
        known = known or Snapshot()
        answer = self._call("read", "{} {}".format(*known.epoch))
        with _translated():
            return self._snapshot(known, *answer)

    def _snapshot(
        self, known: Snapshot, generation: str, count: int, shards: Any, tables: Any, drained: Any, *more: Any
    ) -> Snapshot:
        """What an answer says. Raises ValueError where somebody else has written into the directory."""
        nodes, hot, ends = more
        told = [_entry(id_, dict(_pairs(values))) for id_, *values in shards if node_sockets.is_plain(id_)]
        mine = self._deployment()
        entries = [self._located(entry) for entry in told if entry and (not mine or entry.deployment in ("", mine))]
        slots = {node: MappingProxyType({int(slot): owner for slot, owner in _pairs(pairs)}) for node, *pairs in tables}
        return Snapshot(
            (generation, int(count)),
            tuple(sorted(entries, key=lambda entry: entry.id)),
            known.slots if (generation, int(count)) == known.epoch else MappingProxyType(slots),
            frozenset(drained),
            MappingProxyType({node: _finite(over_s) for node, over_s in _pairs(nodes)}),
            MappingProxyType({node: {name: int(n) for name, n in _pairs(streams)} for node, *streams in hot}),
            MappingProxyType({node: dict(zip(ENDS, map(int, counts), strict=True)) for node, *counts in ends}),
        )

    def changes(self, *, timeout_s: float) -> Generator[bool, None, None]:
        """Follow changes for ever: yields True after one or more changes, False after timeout_s without any.

        The subscription begins at the first `next()`, so read() after it misses nothing. A Redis that stops
        answering looks like silence here; read() after a False finds out. Raises DirectoryUnavailableError
        when the connection is lost. Closing the generator ends the subscription.
        """
        pubsub: redis.client.PubSub = self._redis.pubsub()  # type: ignore[no-untyped-call]
        try:
            with _translated():
                pubsub.subscribe(f"{self._prefix}:changes:{self._database}")
            yield True
            while True:
                with _translated():
                    heard = _wait(pubsub, timeout_s)
                yield heard
        finally:
            pubsub.close()

    def close(self) -> None:
        """Close all connections. The directory may be used again and would open new ones."""
        self._redis.close()

    def _call(self, *arguments: str) -> Any:
        command, *rest = arguments
        seed = secrets.token_hex(8)
        with _translated():
            try:
                return self._script(args=[command, seed, self._prefix, self._database, self._deployment(), *rest])
            except redis.RedisError as error:
                if redis_failures.WRITES in redis_failures.advice(error):
                    # After a fail-over the same name may lead to another server.
                    self._redis.connection_pool.disconnect(inuse_connections=False)
                raise


def _locator(settings: Settings) -> Callable[[ShardEntry], ShardEntry]:
    astray: set[str] = set()

    def located(entry: ShardEntry) -> ShardEntry:
        path = str(node_sockets.hand_off_socket(settings.runtime_dir, entry.id))
        if entry.node != settings.node or entry.path == path:
            return entry
        if entry.id not in astray and len(astray) < _MOST_ASTRAY:
            astray.add(entry.id)
            logger.warning(
                "shard %r says that its socket is %r; it is looked for at %r: give the routers and shards of a node "
                "the same HEADRACE_RUNTIME_DIR",
                *(entry.id, entry.path, path),
            )
        return replace(entry, path=path)

    return located


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _pairs(flat: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(flat[::2], flat[1::2], strict=True)


_FIELDS: Final = tuple(f.name for f in fields(ShardEntry) if f.name != "id")
_OPTIONAL: Final = frozenset(f.name for f in fields(ShardEntry) if f.default is not MISSING)


def _entry(id_: str, values: Mapping[str, str]) -> ShardEntry | None:
    """The entry of a hash, or None for one that a later version, or another hand, has written in a way unknown here."""
    try:
        if values["state"] not in get_args(State):
            return None
        kinds: Mapping[str, Callable[[str], Any]] = {"pid": int, "capacity": int, "connections": int}
        kinds = {**kinds, "streams": int, "lag_s": _finite, "moving": int, "started_ms": int}
        kinds |= {"events_s": _finite, "deliveries_s": _finite, "blocked": int}
        kinds |= {"latency_p50_ms": _finite, "latency_p99_ms": _finite}
        told = [name for name in _FIELDS if name in values or name not in _OPTIONAL]
        return ShardEntry(id=id_, **{name: kinds.get(name, str)(values[name]) for name in told})
    except (KeyError, ValueError):
        return None


def _wait(pubsub: redis.client.PubSub, timeout_s: float) -> bool:
    """Wait for a change, then take all that have come with it; whether there was one."""
    deadline = time.monotonic() + timeout_s
    heard = False
    while True:
        left = 0.0 if heard else deadline - time.monotonic()
        message = cast("dict[str, Any] | None", pubsub.get_message(timeout=max(0.0, left)))
        if message is not None and message["type"] == "message":
            heard = True
        elif message is None and (heard or left <= 0):
            return heard


def _foreign(identity: str) -> DirectoryForeignError:
    return DirectoryForeignError(
        f"this Redis database holds the directory of another headrace deployment ({identity}); set "
        "HEADRACE_REDIS_PREFIX, the same for all processes of this deployment, or use another database number"
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        if str(error).startswith(_FOREIGN):
            raise _foreign(str(error).removeprefix(_FOREIGN)) from error
        sentence = redis_failures.sentence(error)
        kind = DirectoryReadOnlyError if redis_failures.WRITES in sentence else DirectoryUnavailableError
        raise kind(sentence) from error
    except ValueError as error:
        raise DirectoryUnavailableError(
            f"something else has written under the keys of the directory ({error}); remove them, since shards register "
            "again by themselves, or set HEADRACE_REDIS_PREFIX"
        ) from error
