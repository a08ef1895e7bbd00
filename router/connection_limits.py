"""How many connections a user, an address and the node may have, over all shards, before a client is handed over."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from gevent.lock import BoundedSemaphore

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.limit_keys import limits_of
from headrace.router.client_placement import ClientPlacement
from headrace.settings import Settings

logger = logging.getLogger(__name__)

MOST_QUESTIONS = 16
"""The most questions to Redis at a time: each takes a connection of its own."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client is not let in, as a sentence. elsewhere tells whether another node may let it in."""

    sentence: str
    elsewhere: bool


class ConnectionLimits:
    """Lets clients in, or refuses them. Called by any request greenlet.

    The counts are in the directory, where each client that was let in counts at once. Without Redis no client is
    refused here; each shard still refuses by its own count.
    """

    def __init__(self, directory: Directory, placement: ClientPlacement, settings: Settings) -> None:
        self._directory = directory
        self._placement = placement
        self._settings = settings
        self._questions = BoundedSemaphore(MOST_QUESTIONS)

    def of(self, user: str | None, peer: str) -> Mapping[str, int]:
        """The limits that a client of this user, from this address, comes under."""
        return limits_of(user, peer, self._settings.max_user_connections, self._settings.max_address_connections)

    def refusal(self, request_id: str, limits: Mapping[str, int]) -> Refusal | None:
        """Why a client cannot be let in; None if it was, and counts from now on. Yields."""
        if self._placement.directory_away:
            # Clients that were handed over since are counted here, but not those that have left.
            return None
        most = self._settings.max_node_connections
        if most and self._placement.connections >= most:
            return Refusal(f"this node has its {most} connections", elsewhere=True)
        if not limits:
            return None
        try:
            with self._questions:
                if self._placement.directory_away:  # found out while we waited for our turn
                    return None
                over = self._directory.admit(request_id, limits)
        except DirectoryUnavailableError as error:
            logger.warning("request %s is let in uncounted: %s", request_id, error)
            return None
        if not over:
            return None
        whose = over.partition(":")[0].partition("#")[0]
        return Refusal(f"there are {limits[over]} connections of this {whose}", elsewhere=False)

    def release(self, request_id: str, limits: Mapping[str, int]) -> None:
        """Take a client that was let in, and was not handed over, out of the counts. Yields."""
        if not limits:
            return
        try:
            with self._questions:
                if not self._placement.directory_away:
                    self._directory.release(request_id, limits)
        except DirectoryUnavailableError as error:
            logger.info("request %s counts for a while though it was not served: %s", request_id, error)
