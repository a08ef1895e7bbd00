"""The PostgreSQL and the Redis of a fleet, each started for it alone."""

import shutil
import tempfile
from pathlib import Path
from typing import Final, Self

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.embedded.redis import EmbeddedRedis
from headrace.schema.migrations import migrate
from loadtests.fleet import processor_time

CONNECTIONS_A_SHARD: Final = 10
SPARE_CONNECTIONS: Final = 40


class Servers:
    """Both servers, from entering the block to leaving it. Owned by the main thread, with which they end."""

    def __init__(self, shards: int) -> None:
        """shards is how many there will be at most, for PostgreSQL's max_connections."""
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-fleet-"))
        self.directory.chmod(0o711)
        most = shards * CONNECTIONS_A_SHARD + SPARE_CONNECTIONS
        self._postgres = EmbeddedPostgres(self.directory, max_connections=most)
        self._redis = EmbeddedRedis(self.directory)

    def __enter__(self) -> Self:
        try:
            self._postgres.start()
            self._redis.start()
            migrate(self._postgres.url)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._postgres, self._redis):
            server.hurry()
            server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def database_url(self) -> str:
        """headrace's database, as its owner."""
        return self._postgres.url

    @property
    def redis_url(self) -> str:
        """The database of Redis with the directory."""
        return self._redis.url

    def seconds(self) -> tuple[float, float]:
        """The processor time of PostgreSQL, and that of Redis, since their starts."""
        assert self._postgres.pid is not None, self._postgres.log.read_text()[-2000:]
        assert self._redis.pid is not None, self._redis.log.read_text()[-2000:]
        return processor_time.seconds(self._postgres.pid), processor_time.seconds(self._redis.pid)
