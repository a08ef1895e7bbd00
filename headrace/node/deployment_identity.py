"""The deployment that this process belongs to, by its identity, as far as it knows.

    PostgreSQL ── identity() ──► shards, routers and commands that have its URL
                                    │ each writes it down
                                    ▼
                       <runtime directory>/deployment ──► those without a URL, or while PostgreSQL is away

It tells a process's directory in Redis, and the shards of its node, from those of another deployment. It changes under
a running process when its database is made anew, so it is looked at again every LOOK_S.
"""

import contextlib
import logging
import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg

from headrace.errors import DirectoryUnavailableError
from headrace.node import private_file, session
from headrace.schema.identity import identity
from headrace.settings import Settings

logger = logging.getLogger(__name__)

FILE_NAME: Final = "deployment"
LOOK_S: Final = 30.0
EAGER_LOOK_S: Final = 1.0
"""While nothing is known."""
TIMEOUT_S: Final = 2.0
NAME: Final = "headrace identity"


class DeploymentIdentity:
    """The identity, as text; read by whoever likes, looked at by one greenlet or thread at a time.

    limit makes a context that ends a look which takes too long.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        limit: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._url = settings.database_url
        self._file = Path(settings.runtime_dir) / FILE_NAME
        self._limit = limit
        self._error = ""
        self._identity = ""

    def __repr__(self) -> str:
        return f"<DeploymentIdentity {self._identity or 'unknown'}>"

    @property
    def known(self) -> str:
        """The identity, "" if it is not known."""
        return self._identity

    def required(self) -> str:
        """The identity, "" if this process has no means to know it.

        Raises DirectoryUnavailableError if it is to be had and not known yet: until then this process does not know
        which deployment's directory is its own.
        """
        if self._url and not self._identity:
            raise DirectoryUnavailableError(
                f"the identity of this deployment is not known yet ({self._error or 'nobody has asked for it'}); "
                "start PostgreSQL, or run `headrace migrate`"
            )
        return self._identity

    def look(self) -> str:
        """Look for the identity, in PostgreSQL or else in the file, and return it. Yields."""
        self._error = "PostgreSQL gave no answer"
        found = ""
        with self._limit():
            found = self._asked()
        if found:
            self._write(found)
        else:
            # Who knows it keeps to that, while PostgreSQL is away.
            found = self._identity if self._identity and self._url else self._written()
        if found != self._identity and self._identity:
            logger.warning("this is another deployment from now on: %s, which was %s", found or "none", self._identity)
        self._identity = found
        return found

    def follow(self) -> None:
        """Look again and again, for ever. Yields."""
        while True:
            time.sleep((LOOK_S if self._identity else EAGER_LOOK_S) * random.uniform(0.5, 1.5))
            self.look()

    def _asked(self) -> str:
        """What PostgreSQL says; "" without an answer."""
        if not self._url:
            return ""
        try:
            with session.connect(self._url, NAME, timeout_s=TIMEOUT_S, limit_s=TIMEOUT_S) as connection:
                return str(identity(connection))
        except psycopg.Error as error:
            self._error = " ".join(str(error).split())
            logger.debug("the identity cannot be read: %s", self._error)
            return ""

    def _written(self) -> str:
        try:
            return str(uuid.UUID(private_file.read(self._file) or ""))
        except (OSError, ValueError):
            return ""

    def _write(self, found: str) -> None:
        # Who may not write there leaves it to the others.
        with contextlib.suppress(OSError):
            if self._file.parent.is_dir() and self._written() != found:
                private_file.write(self._file, f"{found}\n")
