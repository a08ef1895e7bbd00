"""The identity of the deployment that this process belongs to, as far as the process knows it.

    PostgreSQL ── identity() ──► shards, routers and commands that have its URL
                                    │ each writes it to the file
                                    ▼
                       <runtime directory>/deployment ──► processes without a URL, or while PostgreSQL is away

By its identity a process tells its own directory in Redis, and the shards of its node, from those of another
deployment. The identity changes while the process runs if the database is made anew, so it is looked up again every
LOOK_S.
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
"""As LOOK_S, while the identity is not known."""
TIMEOUT_S: Final = 2.0
NAME: Final = "headrace identity"


class DeploymentIdentity:
    """The identity as text. Any greenlet or thread may read it; one at a time may look it up.

    limit makes a context that ends a look-up which takes too long.
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
        """The identity; "" if this process cannot know it, since it has no URL of PostgreSQL.

        Raises DirectoryUnavailableError if the process has a URL and does not know the identity yet: until then it
        cannot tell whether the directory is that of its own deployment.
        """
        if self._url and not self._identity:
            raise DirectoryUnavailableError(
                f"the identity of this deployment is not known yet ({self._error or 'nobody has asked for it'}); "
                "start PostgreSQL, or run `headrace migrate`"
            )
        return self._identity

    def look(self) -> str:
        """Look the identity up, in PostgreSQL or else in the file, and return it; "" if it is found nowhere. Yields."""
        self._error = "PostgreSQL gave no answer"
        found = ""
        with self._limit():
            found = self._asked()
        if found:
            self._write(found)
        else:
            # While PostgreSQL is away, a process that knows the identity keeps it.
            found = self._identity if self._identity and self._url else self._written()
        if found != self._identity and self._identity:
            logger.warning("this is another deployment from now on: %s, which was %s", found or "none", self._identity)
        self._identity = found
        return found

    def follow(self) -> None:
        """Look the identity up again and again, for ever. Yields."""
        while True:
            time.sleep((LOOK_S if self._identity else EAGER_LOOK_S) * random.uniform(0.5, 1.5))
            self.look()

    def _asked(self) -> str:
        """The identity as PostgreSQL has it; "" without an answer."""
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
        # A process that may not write there leaves that to the others.
        with contextlib.suppress(OSError):
            if self._file.parent.is_dir() and self._written() != found:
                private_file.write(self._file, f"{found}\n")
