"""The directory: which shards live, where, and which slots they own, kept in Redis for routers and commands.

Each shard registers once a second; the entry of a shard that stops expires. The keys and the atomic steps are in
`lua/`. Redis is never in the path of an event: every method here may raise DirectoryUnavailableError within about two
seconds, and its caller goes on with what it knew.

Several deployments may share a Redis, each with a prefix of its own. Two deployments with one prefix would mix their
shards. So a directory belongs to one deployment as long as a shard of that deployment lives, and calls in the name of
another raise DirectoryForeignError.
"""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import fields, replace
from typing import Final

from headrace.errors import DirectoryUnavailableError
from headrace.node import runtime_directory
from headrace.node.directory_script import DirectoryScript, foreign, translated
from headrace.node.directory_snapshot import DirectorySnapshot, read_snapshot
from headrace.node.placement import rendezvous
from headrace.node.shard_entry import ShardEntry
from headrace.node.shard_report import ShardReport
from headrace.settings import Settings
from headrace.stream import SLOTS

logger = logging.getLogger(__name__)

_MOST_ASTRAY: Final = 100
"""Shards whose entry names an unexpected socket that a process warns of."""


class Directory:
    """A client of the directory. Any greenlet or thread may call it; in a patched process every call yields.

    expiry_s is how long an entry lives unless it is registered again. prefix begins every key. deployment returns the
    identity in whose name each call is, "" for no deployment's. located is given each entry that is read, and returns
    it with the path at which this process looks for the shard. Raises SettingsError for text that is no URL.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        expiry_s: float,
        prefix: str = "headrace",
        deployment: Callable[[], str] = lambda: "",
        located: Callable[[ShardEntry], ShardEntry] = lambda entry: entry,
    ) -> None:
        self._expiry_s = expiry_s
        self._deployment = deployment
        self._located = located
        self._script = DirectoryScript(redis_url, prefix, deployment)

    @classmethod
    def of(cls, settings: Settings, deployment: Callable[[], str], *, resident: bool = False) -> "Directory":
        """The directory that these settings name, in the name of a deployment. Raises SettingsError.

        resident MUST be true in a router and in a shard: such a process looks for the shards of its node in its own
        runtime directory, whatever Redis says.
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

        Waits until the entries of dead shards have expired.
        """
        give_up = time.monotonic() + self._expiry_s + 1
        while occupant := self._script.call("occupant"):
            if time.monotonic() >= give_up:
                raise foreign(occupant)
            time.sleep(0.1)

    def register(self, entry: ShardEntry) -> bool:
        """Write the entry and begin its expiry anew. MUST be called well within expiry_s each time.

        Returns whether the directory changed, which is so if the shard is new, or if its node, process, path or state
        changed: only then does the epoch move, and `changes` tell of it. A living entry of the same id is overwritten:
        the last process wins. A directory of another deployment, none of whose shards lives, is emptied before.
        """
        changed, former = self._script.call("register", entry.id, str(int(self._expiry_s * 1000)), *entry.fields())
        if former:
            logger.warning(
                "Redis had the directory of another deployment (%s), none of whose shards lives; it is ours now", former
            )
        return bool(changed)

    def leave(self, shard_id: str, pid: int) -> bool:
        """Remove the entry of a process that ends, unless another process of its id has registered; returns whether."""
        return bool(self._script.call("leave", shard_id, str(pid)))

    def bury(self, shard_id: str, pid: int) -> bool:
        """Remove the entry of a process that was found dead, unless another process of its id has registered.

        Returns whether the entry was removed. The shard's slots can be claimed at once, while those of a shard that
        leaves are kept for a while.
        """
        return bool(self._script.call("bury", shard_id, str(pid)))

    def claim(self, node: str, *, settle_s: float | None = None, balance: bool = False) -> int:
        """Give each slot of the node that has no live owner to the shard that it prefers of those that are up.

        With balance, a new shard, which owns no slot yet, gets the slots that prefer it, even from living owners.

        Returns how many slots were given. Every shard calls this each second: if there is nothing to do, it costs one
        short call. Nothing is given until the node's shards have stayed the same for settle_s (expiry_s when None):
        otherwise the first shard to start would get every slot, and a restarted shard would find its slots gone.
        Meanwhile routers use the same order of preference themselves.
        """
        settle_ms = int((self._expiry_s if settle_s is None else settle_s) * 1000)
        orphans, up, newcomers = self._script.call("orphans", node, str(settle_ms), str(int(balance)))
        if balance and newcomers:
            choices = ((slot, rendezvous(slot, up)[0]) for slot in range(SLOTS))
            return self.assign(node, {slot: owner for slot, owner in choices if owner in newcomers})
        if not orphans or not up:
            return 0
        proposals: list[str] = []
        for slot in orphans:
            proposals += (str(slot), rendezvous(int(slot), up)[0])
        return int(self._script.call("claim", node, *proposals))

    def drain(self, shard_id: str) -> None:
        """Mark the shard as drained, until `undrain`: it is to have no clients. Its slots can be claimed at once."""
        self._script.call("drain", shard_id)

    def undrain(self, shard_id: str) -> None:
        """Let the shard serve again. It owns no slot before some are assigned to it."""
        self._script.call("undrain", shard_id)

    def drain_node(self, node: str, over_s: float) -> None:
        """Mark the whole node as drained: its shards are to have no clients within about over_s seconds."""
        self._script.call("drain_node", node, f"{over_s:g}")

    def undrain_node(self, node: str) -> None:
        """Let the node serve again. Its shards still own their slots."""
        self._script.call("undrain_node", node)

    def report(self, entry: ShardEntry, report: ShardReport) -> bool:
        """Write what a shard counts. Returns False if the directory has lost `held` and needs a whole report.

        Returns False also if another process has registered under the shard's id, whose counts must not mix with these.
        """
        value = {
            "id": entry.id,
            "pid": str(entry.pid),
            "node": entry.node,
            "expiry_ms": int(self._expiry_s * 1000),
            **{field.name: getattr(report, field.name) for field in fields(report)},
        }
        return bool(self._script.call("report", json.dumps(value)))

    def admit(self, request_id: str, limits: Mapping[str, int]) -> str:
        """Admit a client, unless one of its limit keys has as many connections already as its limit.

        Returns that limit key, or "" if the client is admitted. An admitted client counts at once. It counts no more
        after `release`, or if no shard has reported it within ten seconds.
        """
        pairs = [text for limit_key, limit in limits.items() for text in (limit_key, str(limit))]
        return str(self._script.call("admit", request_id, *pairs))

    def release(self, request_id: str, limit_keys: Iterable[str]) -> None:
        """Count an admitted client no more, since no shard has accepted it."""
        self._script.call("release", request_id, *limit_keys)

    def assign(self, node: str, owners: Mapping[int, str]) -> int:
        """Give slots of a node to shards of that node, whatever shards own them now; shards and routers follow.

        Returns how many slots changed their owner. A shard that is not alive on the node, or is drained, is given no
        slot.
        """
        pairs = [text for slot, owner in sorted(owners.items()) for text in (str(slot), owner)]
        return int(self._script.call("assign", node, *pairs))

    def turn(self, what: str, hold_s: float) -> bool:
        """Whether it is the caller's turn to do what one process of all does; then it is no other's for hold_s."""
        return bool(self._script.call("turn", what, str(int(hold_s * 1000))))

    def turn_or_away(self, what: str, hold_s: float) -> bool:
        """As `turn`; without Redis it is everybody's turn."""
        try:
            return self.turn(what, hold_s)
        except DirectoryUnavailableError:
            return True

    def hold(self, what: str, who: str, hold_s: float) -> bool:
        """Whether nobody but who holds something that one process holds alone; then it is who's for hold_s from now on.

        The holder MUST ask again well within hold_s. hold_s of 0 gives up what who holds.
        """
        return bool(self._script.call("hold", what, who, str(int(hold_s * 1000))))

    def end_session(self, id_: str, life_s: float) -> None:
        """Remember for life_s, as long as it would have lived, that a session of the operations page was ended."""
        self._script.call("end_session", id_, str(int(life_s * 1000)))

    def session_ended(self, id_: str) -> bool:
        """Whether this session of the operations page was ended."""
        return bool(self._script.call("session_ended", id_))

    def read(self, known: DirectorySnapshot | None = None, node: str = "", shard_id: str = "") -> DirectorySnapshot:
        """The whole directory in one atomic read; with a node, what is of that node and of the shard with this id.

        What each process reads every second is of its own node. Redis would otherwise give all entries to all of them,
        and its work would grow with the square of the fleet. known is the last snapshot of the same kind: its slots are
        not read again if the epoch is still the same.
        """
        known = known or DirectorySnapshot()
        answer = self._script.call("read", "{} {}".format(*known.epoch), *([node, shard_id] if node else []))
        with translated():
            snapshot = read_snapshot(answer, known)
        mine = self._deployment()
        ours = (entry for entry in snapshot.shards if not mine or entry.deployment in ("", mine))
        return replace(snapshot, shards=tuple(map(self._located, ours)))

    def changes(self, *, timeout_s: float) -> Generator[bool, None, None]:
        """Follow changes for ever: yields True after one or more of them, False after timeout_s without any.

        The subscription begins at the first `next()`, which yields True: read() after it misses no change. A Redis that
        stops answering looks like silence here; read() after a False finds that out. Raises DirectoryUnavailableError
        when the connection is lost. Closing the generator ends the subscription.
        """
        return self._script.changes(timeout_s)

    def close(self) -> None:
        """Close all connections. A later call opens new ones."""
        self._script.close()


def _locator(settings: Settings) -> Callable[[ShardEntry], ShardEntry]:
    astray: set[str] = set()

    def located(entry: ShardEntry) -> ShardEntry:
        path = str(runtime_directory.hand_off_socket(settings.runtime_dir, entry.id))
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
