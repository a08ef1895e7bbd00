"""Faults of the bus: its messages are lost, repeated, late or in another order, forged, or more than Redis keeps."""

import contextlib

import redis

from loadtests.torture.bus_wire import TROUBLES
from loadtests.torture.fault import Fault


class BusTrouble(Fault):
    """The wire to Redis loses messages, repeats them, holds them back, or changes their order."""

    lane = "bus"
    lasts_s = (2.0, 8.0)

    def inject(self, lasts_s: float) -> str:
        """Begin one of these."""
        self.system.bus.trouble = self.chance.choice(TROUBLES)
        return self.system.bus.trouble

    def heal(self) -> None:
        """Pass everything on again."""
        self.system.bus.trouble = ""


class BusSqueeze(Fault):
    """Redis ends subscribers for which it must keep some bytes, as where a shard reads too slowly."""

    lane = "bus"
    lasts_s = (1.0, 4.0)

    def inject(self, lasts_s: float) -> str:
        """Lower the limit, and end the subscribers once, as Redis does."""
        self._limit("256 128 1")
        with contextlib.suppress(redis.RedisError), _client(self.system.redis.url) as client:
            return f"{client.client_kill_filter(_type='pubsub')} ended"
        return ""

    def heal(self) -> None:
        """The limit is Redis's own again."""
        self._limit("33554432 8388608 60")

    def _limit(self, limit: str) -> None:
        with contextlib.suppress(redis.RedisError), _client(self.system.redis.url) as client:
            client.config_set("client-output-buffer-limit", f"pubsub {limit}")


class BusForge(Fault):
    """A stranger writes garbage to the channels of the bus, and messages without a good seal."""

    lane = "bus"

    def inject(self, lasts_s: float) -> str:
        """Write to each channel."""
        page = b'["shared:0",0,1,0,null,null,null,[[1,null,null,"!",null,0]]]'
        body = b'{"s":"x","n":1000000,"t":"00000001","h":[],"p":[%b]}' % page
        with contextlib.suppress(redis.RedisError), _client(self.system.redis.url) as client:
            for channel in (*range(64), "pulse", "want"):
                for message in (b"", b"garbage", bytes(32) + body):
                    client.execute_command("SPUBLISH", f"headrace:bus:0:{channel}", message)
        return ""


def _client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, socket_timeout=2)
