"""How every process reaches Redis: a client for each form of HEADRACE_REDIS_URL.

    redis://…  rediss://…  unix://…                                         one server, as redis-py reads it
    redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/SERVICE[/DB]    the primary that Sentinels name
    redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]                  one node of a cluster

With `rediss+sentinel` and `rediss+cluster` all connections use TLS. The user and the password are those of the servers
with the data; those of the Sentinels are the options `sentinel_username` and `sentinel_password`. Other options behind
`?` are redis-py's: `ssl_ca_certs`, `ssl_certfile` and so on.

In a cluster all keys and channels of a deployment MUST be on one node, since the directory's script changes several
keys at a time: the prefix has a hash tag, as in `HEADRACE_REDIS_PREFIX={headrace}`. Each connection asks the cluster
which node that is. When the node has given the slot away, or a Sentinel names another primary, the connection ends, and
the next one leads there.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError
from redis.sentinel import Sentinel

_SENTINEL_PORT: Final = 26379
_PORT: Final = 6379
_SENTINELS_OWN: Final = "sentinel_"
_NOT_HERE: Final = "access a non local key"


def redis_client(url: str, prefix: str, **options: Any) -> "redis.Redis":
    """A client for the URL. options are redis-py's, such as socket_timeout. Raises ValueError for what is no URL.

    It opens connections when it is used. prefix begins every key, and decides which node of a cluster has them.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if not kind:
        return redis.Redis.from_url(url, **options)
    told: dict[str, Any] = dict(parse_qsl(parts.query))
    own = {name.removeprefix(_SENTINELS_OWN): told.pop(name) for name in [*told] if name.startswith(_SENTINELS_OWN)}
    told |= {"username": _unquoted(parts.username), "password": _unquoted(parts.password), **options}
    if kind == "sentinel":
        return _primary(parts, told, own, scheme == "rediss")
    if key_slot(prefix.encode()) == key_slot(f"{prefix}:".encode()):
        seeds = _addresses(parts, _PORT)
        connection = _ClusterSSLConnection if scheme == "rediss" else _ClusterConnection
        pool = redis.ConnectionPool(connection_class=connection, seeds=seeds, prefix=prefix, **told)
        return redis.Redis.from_pool(pool)
    raise ValueError(
        f"a cluster needs a prefix with a hash tag: set HEADRACE_REDIS_PREFIX, as in {{headrace}}, not {prefix!r}"
    )


def _primary(parts: SplitResult, told: dict[str, Any], own: dict[str, Any], tls: bool) -> "redis.Redis":
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not (database or "0").isdigit():
        raise ValueError("the URL of Sentinels ends with the name of the service, as in redis+sentinel://HOST/mymaster")
    timeouts = {name: value for name, value in told.items() if name.startswith("socket_")}
    secure = {"ssl": True, **{name: value for name, value in told.items() if name.startswith("ssl_")}} if tls else {}
    sentinel = Sentinel(_addresses(parts, _SENTINEL_PORT), sentinel_kwargs={**timeouts, **secure, **own})  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(service, _PrimaryClient, db=int(database or 0), **{"ssl": tls}, **told)  # type: ignore[no-untyped-call]
    return client


def _addresses(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    found = []
    for word in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{word}")
        if not one.hostname:
            raise ValueError("the URL names no host")
        found.append((one.hostname, one.port or port))
    return found


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None


class _PrimaryClient(redis.Redis):
    """A client of the primary, which also closes its connections to the Sentinels."""

    def close(self) -> None:
        """Close all connections. A later call opens new ones."""
        super().close()
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            sentinel.close()


class _ClusterConnection(redis.Connection):
    """A connection to the node that has the slot of the prefix. Owned by its pool."""

    def __init__(self, *, seeds: Sequence[tuple[str, int]], prefix: str, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._seeds = seeds
        self._prefix = prefix
        self._options = {
            name: value
            for name, value in options.items()
            if name.startswith(("socket_", "ssl_")) or name in ("username", "password")
        }

    def _connect(self) -> Any:
        self.host, self.port = self._owner()
        return super()._connect()  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """As of any connection; a node that has given the slot away ends the connection."""
        try:
            return super().read_response(*arguments, **options)
        except redis.ResponseError as error:
            # A script without keys of its own is run anywhere, and fails at its first key.
            if not isinstance(error, MovedError | ClusterDownError) and _NOT_HERE not in str(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError(f"the cluster has moved the slot: {error}") from error

    def _owner(self) -> tuple[str, int]:
        """The address of the node, by the first node that answers. Raises redis.RedisError or OSError. Yields."""
        slot = key_slot(f"{self._prefix}:".encode())
        failure: Exception = redis.ConnectionError("no node of the cluster answers")
        for host, port in self._seeds:
            try:
                with contextlib.closing(
                    redis.Redis(host=host, port=port, ssl=isinstance(self, redis.SSLConnection), **self._options)
                ) as seed:
                    ranges = seed.connection_pool.get_connection()
                    ranges.send_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
                    for first, last, node, *_ in ranges.read_response():
                        if first <= slot <= last:
                            name = node[0].decode() if isinstance(node[0], bytes) else node[0]
                            return name or host, int(node[1])
            except (redis.RedisError, OSError) as error:
                failure = error
        raise failure


class _ClusterSSLConnection(_ClusterConnection, redis.SSLConnection):
    """The same over TLS."""
