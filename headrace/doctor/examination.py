"""The whole examination: all checks in their order, each of which may fail without hindering the others."""

import contextlib
from collections.abc import Callable, Iterator

import psycopg
import redis

from headrace.doctor import (
    capacity,
    front,
    listening,
    machine,
    numbering,
    postgresql,
    redis_server,
    rights,
    secret,
    shards,
    streams,
)
from headrace.doctor.finding import Finding, fail, ok
from headrace.errors import HeadraceError
from headrace.node import redis_errors
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.directory import Directory
from headrace.node.postgres_errors import meaning, said
from headrace.node.redis_client import redis_client
from headrace.node.session import connect
from headrace.node.shard_entry import ShardEntry
from headrace.publish import publish_now
from headrace.schema.ownership import require_owned
from headrace.settings import Settings

NAME = "headrace doctor"
CONNECT_TIMEOUT_S = 5
LIMIT_S = 10.0
"""For each question to PostgreSQL."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that these settings name, and yield each finding as it is made. Publishes to one stream."""
    registered = _Registered()
    yield from _redis(settings, registered)
    yield from _postgresql(settings, registered)
    here = [shard for shard in registered.shards if shard.node == settings.node]
    yield machine.descriptors([shard.pid for shard in here], settings.max_connections)
    yield machine.somaxconn()
    most = capacity.clients(here, settings.max_node_connections)
    for name, check in (
        ("proxy ports", lambda: capacity.proxy_ports(most, settings.trusted_proxies)),
        ("tracked connections", lambda: capacity.tracked_connections(most)),
        ("cores", lambda: capacity.cores(len(here))),
        ("memory", lambda: capacity.memory(here, settings)),
    ):
        yield from _guarded(name, "see what this machine allows", check)
    if not settings.secret:
        yield fail("secrets", "none", "set HEADRACE_SECRET")
        return
    yield secret.strength(settings.secret)
    yield from _guarded("front door", "start PostgreSQL", lambda: _front(settings))


class _Registered:
    shards: tuple[ShardEntry, ...] = ()


def _redis(settings: Settings, registered: _Registered) -> Iterator[Finding]:
    if not settings.redis_url:
        yield fail("redis", "no URL", "set HEADRACE_REDIS_URL")
        return
    with contextlib.closing(
        redis_client(settings.redis_url, settings.redis_prefix, socket_timeout=CONNECT_TIMEOUT_S)
    ) as client:
        try:
            info = redis_server.information(client)
        except redis.exceptions.NoPermissionError:
            yield ok("redis", "its user may not ask for INFO, so its version, memory and persistence are not looked at")
        except (redis.RedisError, OSError) as error:
            yield fail("redis", str(error), f"{redis_errors.advice(error)}; meanwhile events go on")
            return
        else:
            yield redis_server.version(info)
            yield redis_server.persistence(info)
            yield redis_server.memory(info)
            yield redis_server.processor(client)
            yield redis_server.clients(info)
            yield redis_server.output_buffers(redis_server.pubsub_limits(client), settings.page_bytes)
    deployment = DeploymentIdentity(settings)
    deployment.look()
    with contextlib.closing(Directory.of(settings, lambda: deployment.known)) as directory:
        try:
            registered.shards = directory.read().shards
        except HeadraceError as error:
            found, _, advice = str(error).partition("; ")
            yield fail("directory", found, advice)
            return
    yield shards.serving(registered.shards)


def _postgresql(settings: Settings, registered: _Registered) -> Iterator[Finding]:
    if not settings.database_url:
        yield fail("postgresql", "no URL", "set HEADRACE_DATABASE_URL")
        return
    try:
        # The server itself, not a pooler, which would tell of its own connections.
        connection = connect(settings.listen_database_url, NAME, limit_s=LIMIT_S)
    except psycopg.Error as error:
        yield fail("postgresql", said(error), f"{meaning(error).advice} (HEADRACE_LISTEN_DATABASE_URL)")
        return
    with connection:
        yield postgresql.version(connection)
        advice = "see the server's log"
        for name, check in (
            ("schema", postgresql.schema_version),
            ("schema parts", rights.parts),
            ("publishers", rights.publishers),
            ("locks", rights.strangers),
            ("pruning", rights.pruning),
            ("numbering", numbering.numbering),
            ("streams", streams.streams),
            ("notification queue", postgresql.notification_queue),
            ("open transactions", postgresql.open_transactions),
            ("clocks", postgresql.clock),
        ):
            yield from _guarded(name, advice, lambda check=check: check(connection))  # type: ignore[misc]
        count = len(registered.shards)
        yield from _guarded("max_connections", advice, lambda: postgresql.room(connection, count, settings.readers))
    yield from _guarded(
        "listen",
        "correct HEADRACE_DATABASE_URL",
        lambda: listening.listen(settings.listen_database_url, settings.database_url, settings.listen_proof_deadline_s),
    )


def _front(settings: Settings) -> Finding:
    with connect(settings.database_url, NAME, limit_s=LIMIT_S) as connection:
        require_owned(connection)
        return front.delivery(
            settings.public_url, settings.secret, lambda stream, data: publish_now(connection, stream, data)
        )


def _guarded(name: str, advice: str, check: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield check()
    except psycopg.Error as error:
        yield fail(name, said(error), meaning(error).advice)
    except (HeadraceError, OSError) as error:
        yield fail(name, str(error), advice)
