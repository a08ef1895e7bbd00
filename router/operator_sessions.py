"""The sessions of the operations page that operators have ended by signing out.

A session is a signed cookie, which is good until its time: that it was ended has to be kept, where all workers of all
nodes look. That is Redis. While it is away the page goes on, since operators need it then: a session that was ended is
remembered by the worker that was told, and other workers let it in until Redis is back or the session's time is over.
"""

import logging
from collections import OrderedDict
from typing import Final

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.router.client_placement import ClientPlacement

logger = logging.getLogger(__name__)

MOST_ENDED: Final = 1000


class OperatorSessions:
    """Remembers sessions by their ids. Called by any request greenlet; keeps the last that this worker has ended."""

    def __init__(self, directory: Directory, placement: ClientPlacement) -> None:
        self._directory = directory
        self._placement = placement
        self._here: OrderedDict[str, None] = OrderedDict()

    def end(self, id_: str, life_s: float) -> None:
        """A session that would have lived so long was ended. Yields."""
        self._here[id_] = None
        if len(self._here) > MOST_ENDED:
            self._here.popitem(last=False)
        try:
            self._directory.end_session(id_, life_s)
        except DirectoryUnavailableError as error:
            logger.warning("a session of the operations page was ended, and other workers do not know it: %s", error)

    def has_ended(self, id_: str) -> bool:
        """Whether a session was ended, as far as is known. Yields."""
        if id_ in self._here:
            return True
        if self._placement.directory_away:
            return False
        try:
            return self._directory.session_ended(id_)
        except DirectoryUnavailableError:
            return False
