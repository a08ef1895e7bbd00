"""The admission of clients: whether this shard takes a client that a router or another shard offers.

A client that is refused is offered to another shard, or told why; the reasons are those of `headrace.node.handoff`.
"""

from collections.abc import Callable

from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.handoff import REFUSED_FOREIGN, REFUSED_FULL, REFUSED_LIMIT, REFUSED_REVOKED, Handoff
from headrace.node.limit_keys import limits_of
from headrace.settings import Settings
from headrace.shard.history import History
from headrace.shard.node.own_state import OwnState
from headrace.shard.ports import RevocationCheck
from headrace.shard.registry import Registry


class ClientAdmission:
    """Refuses the clients that this shard cannot serve, or must not.

    Owned by the intake's greenlets; nothing here yields. waiting returns how many clients the intake has taken of
    which the dispatcher has not heard yet; limit is the most connections that the shard takes.
    """

    def __init__(
        self,
        settings: Settings,
        limit: int,
        state: OwnState,
        deployment: DeploymentIdentity,
        registry: Registry,
        revocations: RevocationCheck,
        history: History,
        waiting: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._limit = limit
        self._state = state
        self._deployment = deployment
        self._registry = registry
        self._revocations = revocations
        self._history = history
        self._waiting = waiting

    def refusal(self, message: Handoff) -> str:
        """Why the client of this message cannot be taken; "" if it can."""
        moved = message.moved is not None
        if not self._state.is_up:
            return self._state.current
        if message.deployment and self._deployment.known not in ("", message.deployment):
            return REFUSED_FOREIGN
        if not moved and self._revocations.refuses(message.context):
            return REFUSED_REVOKED
        if message.page is not None:
            return "" if self._history.has_room(message) else "busy"
        if len(self._registry) + self._waiting() >= self._limit:
            return REFUSED_FULL
        if not moved and self._at_limit(message):
            return REFUSED_LIMIT
        return ""

    def _at_limit(self, message: Handoff) -> bool:
        """Whether the user or the address of a client has all the connections that it may have.

        Routers count over all shards. Without Redis they cannot, and each shard still knows its own connections.
        """
        limits = limits_of(
            message.context.user,
            message.peer,
            self._settings.max_user_connections,
            self._settings.max_address_connections,
        )
        return any(self._registry.connection_counts.count(holder) >= limit for holder, limit in limits.items())
