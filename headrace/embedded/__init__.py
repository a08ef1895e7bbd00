"""Real PostgreSQL and Redis servers for one machine, started as children; what `headrace up` and tests run on."""

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis"]
