"""The channels of the bus on the Redis server: how a process publishes to them, and how it subscribes.

Where the server has sharded channels (Redis 7), the channels are sharded: all processes find out the same from the
server. Elsewhere they are plain ones. A connection for subscribing is used as it is, without redis-py's PubSub, which
would subscribe again by itself after a loss: here a loss must be noticed.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.node.redis_client import redis_client
from headrace.settings import Settings

TIMEOUT_S: Final = 0.5
"""How long Redis may take for one answer. A page that comes later is of no use: its shards have read by then."""
_UNKNOWN: Final = "unknown command"

T = TypeVar("T")


class RedisChannels:
    """Publishes to the channels, over one connection that is opened again after it was lost.

    Owned by the greenlets of one process. Raises redis.RedisError or OSError where Redis is away.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = _client(settings)
        self._sharded = True
        database = self._redis.connection_pool.connection_kwargs.get("db") or 0
        # Channels are the same in all databases of a server.
        self._beginning = f"{settings.redis_prefix}:bus:{database}:"

    def name(self, channel: str | int) -> str:
        """The name of a channel on the server."""
        return f"{self._beginning}{channel}"

    def publish(self, messages: Sequence[tuple[str, bytes]]) -> int:
        """Publish messages, each with its channel's name, in order; returns how many subscribers they reached. Yields.

        The subscribers of one message count for themselves.
        """
        return self._as_the_server_can(lambda: self._publish(messages))

    def subscribe(self, *channels: str | int) -> "ChannelReader":
        """A new connection that asks to be subscribed to these channels. Yields."""
        return self._as_the_server_can(lambda: self._subscribe(channels))

    def close(self) -> None:
        """Close the connection. A later call opens another."""
        self._redis.close()

    def _publish(self, messages: Sequence[tuple[str, bytes]]) -> int:
        pipeline = self._redis.pipeline(transaction=False)
        command = "SPUBLISH" if self._sharded else "PUBLISH"
        for name, message in messages:
            pipeline.execute_command(command, name, message)  # type: ignore[no-untyped-call]
        return sum(map(int, pipeline.execute()))

    def _subscribe(self, channels: Sequence[str | int]) -> "ChannelReader":
        reader = ChannelReader(_client(self._settings), self._beginning, self._sharded)
        try:
            reader.change(channels)
            reader.await_answer()
        except BaseException:
            reader.close()
            raise
        return reader

    def _as_the_server_can(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except redis.ResponseError as error:
            if not self._sharded or _UNKNOWN not in str(error).lower():
                raise
            self._sharded = False
            return work()


class ChannelReader:
    """One connection to Redis that receives messages. Owned by one greenlet.

    Raises redis.RedisError or OSError from any call once the connection is lost; it is of no use then.
    """

    def __init__(self, client: "redis.Redis", beginning: str, sharded: bool) -> None:
        self._redis = client
        self._beginning = beginning
        self._prefix = "S" if sharded else ""
        self._connection: Any = client.connection_pool.get_connection()
        self._kept: list[Any] = []

    def fileno(self) -> int:
        """The descriptor of the socket, which is readable when messages may have come."""
        return int(self._connection._sock.fileno())

    def change(self, added: Sequence[str | int], dropped: Sequence[str | int] = ()) -> None:
        """Ask to be subscribed to some channels and no more to others; `received` tells when it is done. Yields."""
        for command, channels in (("SUBSCRIBE", added), ("UNSUBSCRIBE", dropped)):
            if channels:
                names = (f"{self._beginning}{channel}" for channel in channels)
                self._connection.send_command(self._prefix + command, *names, check_health=False)

    def ping(self) -> None:
        """Ask for an answer, which takes the way of the messages. Yields."""
        self._connection.send_command("PING", check_health=False)

    def await_answer(self) -> None:
        """Wait until Redis has answered something, which `received` then returns. Yields."""
        self._kept.append(self._connection.read_response())

    def received(self) -> tuple[str, str, bytes] | None:
        """(kind, channel, data) of the next thing that has come, None if nothing has; does not wait.

        kind is `message`, `subscribe`, `unsubscribe` or `pong`. channel is without the beginning.
        """
        if self._kept:
            answer = self._kept.pop()
        elif self._connection.can_read(timeout=0):
            answer = self._connection.read_response()
        else:
            return None
        kind, channel, data = (*answer, b"")[:3] if isinstance(answer, list) else (b"pong", b"", b"")
        name = kind.decode()
        if name in ("smessage", "ssubscribe", "sunsubscribe"):
            name = name[1:]
        if name == "pong":
            channel = b""
        return name, channel.decode().removeprefix(self._beginning), data if isinstance(data, bytes) else b""

    def close(self) -> None:
        """End the connection."""
        self._connection.disconnect()
        self._redis.close()


def _client(settings: Settings) -> "redis.Redis":
    return redis_client(
        settings.redis_url,
        settings.redis_prefix,
        protocol=2,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
