"""The shard's own state, as it follows from the directory: up, draining, drained or stopping.

a younger process has registered under this shard's id     stopping; with the last connection the process ends
an operator wants the shard, or its whole node, drained    draining; drained when it is empty
otherwise                                                  up
"""

from collections.abc import Callable

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.shard_entry import ShardState
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Assign, DrainNode, Message
from headrace.shard.moves import Moves
from headrace.shard.registry import Registry


class OwnState:
    """Says what the shard does with clients, and tells the dispatcher what follows for those that it has.

    Owned by the registration's greenlet; the main greenlet calls `stop`. current is the state. wish is why the shard
    is to be empty: "shard" when an operator drains it, the seconds that this may take when it is the whole node, ""
    when it is not to be. stop_intake has routers open new channels, and may yield; end ends the process.
    """

    def __init__(
        self,
        shard_id: str,
        node: str,
        registry: Registry,
        moves: Moves,
        inbox: Inbox[Message],
        stop_intake: Callable[[], None],
        end: Callable[[], object],
    ) -> None:
        self.current: ShardState = "up"
        self.wish = ""
        self._shard_id = shard_id
        self._node = node
        self._registry = registry
        self._moves = moves
        self._inbox = inbox
        self._stop_intake = stop_intake
        self._end = end
        self._assigned = Assign("", {})
        self._drain_over_s: float | None = None

    def __repr__(self) -> str:
        return f"<OwnState {self.current} wish={self.wish!r}>"

    @property
    def is_up(self) -> bool:
        """Whether the shard takes clients."""
        return self.current == "up"

    def stop(self) -> None:
        """The process ends: no client is taken any more."""
        self.current = "stopping"

    def follow(self, snapshot: DirectorySnapshot, assigned: Assign, succeeded: bool) -> None:
        """The directory was read: follow it. assigned says where connections belong by it.

        succeeded tells that a successor has registered; then the process ends when the last connection has left.
        Yields once, at a succession, while the intake stops.
        """
        over_s = snapshot.drained_nodes.get(self._node)
        self.wish = "shard" if self._shard_id in snapshot.drained else "" if over_s is None else f"{over_s:g}"
        empty = not len(self._registry) and not self._moves.pending
        if succeeded:
            if self.current != "stopping":
                self.current = "stopping"
                # Routers that have a channel to this process open a new one, which leads to the successor.
                self._stop_intake()
            if empty:
                self._end()
        elif self.wish:
            self.current = "drained" if empty else "draining"
        else:
            self.current = "up"
        stuck = not self.is_up and not empty and not self._moves.pending
        if stuck or self._moves.misrouted or assigned != self._assigned:
            self._assigned = assigned
            self._inbox.put(assigned)
        if over_s != self._drain_over_s:
            self._drain_over_s = over_s
            self._inbox.put(DrainNode(over_s))
