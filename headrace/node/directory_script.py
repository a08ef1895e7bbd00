"""How the directory's script in Redis is called, and what its failures become.

The script is `lua/`, whose first file documents the keys and whose last file documents the commands. Every call is one
atomic step. A Redis that is read but refuses writes fails like one that is away: there the entries of living shards
expire.
"""

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.errors import DirectoryForeignError, DirectoryReadOnlyError, DirectoryUnavailableError, SettingsError
from headrace.node import redis_errors
from headrace.node.redis_client import redis_client

_FILES: Final = ("keys", "shards", "slots", "counts", "call")
_FOREIGN: Final = "FOREIGN "
_TIMEOUT_S: Final = 1.0
"""How long Redis may take for one answer: a stopped Redis neither answers nor closes."""


class DirectoryScript:
    """A client of one Redis server, for the directory under one prefix.

    Any greenlet or thread may call it; in a patched process every call yields. deployment returns the identity in whose
    name each call is, "" for nobody's. Raises SettingsError for text that is no URL of Redis.
    """

    def __init__(self, redis_url: str, prefix: str, deployment: Callable[[], str]) -> None:
        self._prefix = prefix
        self._deployment = deployment
        try:
            self._redis: redis.Redis = redis_client(
                redis_url,
                prefix,
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
        files = (resources.files("headrace.node") / "lua" / f"{name}.lua" for name in _FILES)
        self._script = self._redis.register_script("\n".join(file.read_text() for file in files))

    def call(self, command: str, *arguments: str) -> Any:
        """What a command of the script returns. Raises DirectoryUnavailableError within about two seconds, or
        DirectoryForeignError."""
        seed = secrets.token_hex(8)
        with translated():
            try:
                return self._script(args=[command, seed, self._prefix, self._database, self._deployment(), *arguments])
            except redis.RedisError as error:
                if redis_errors.WRITES in redis_errors.advice(error):
                    # After a fail-over the same name may lead to another server.
                    self._redis.connection_pool.disconnect(inuse_connections=False)
                raise

    def changes(self, timeout_s: float) -> Generator[bool, None, None]:
        """As `Directory.changes`."""
        pubsub: redis.client.PubSub = self._redis.pubsub()  # type: ignore[no-untyped-call]
        try:
            with translated():
                pubsub.subscribe(f"{self._prefix}:changes:{self._database}")
            yield True
            while True:
                with translated():
                    heard = _wait(pubsub, timeout_s)
                yield heard
        finally:
            pubsub.close()

    def close(self) -> None:
        """Close all connections. A later call opens new ones."""
        self._redis.close()


def foreign(identity: str) -> DirectoryForeignError:
    """The error for a directory that belongs to the deployment with this identity."""
    return DirectoryForeignError(
        f"this Redis database holds the directory of another headrace deployment ({identity}); set "
        "HEADRACE_REDIS_PREFIX, the same for all processes of this deployment, or use another database number"
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn the errors of Redis, and ValueError for an answer that cannot be read, into errors of the directory."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        if str(error).startswith(_FOREIGN):
            raise foreign(str(error).removeprefix(_FOREIGN)) from error
        sentence = redis_errors.sentence(error)
        kind = DirectoryReadOnlyError if redis_errors.WRITES in sentence else DirectoryUnavailableError
        raise kind(sentence) from error
    except ValueError as error:
        raise DirectoryUnavailableError(
            f"something else has written under the keys of the directory ({error}); remove them, since shards register "
            "again by themselves, or set HEADRACE_REDIS_PREFIX"
        ) from error


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
