"""What shards tell each other over the bus, and the seal that keeps others from telling them anything.

    channel `<prefix>:bus:<database>:<n>`      News of the slots whose number modulo CHANNELS is n
    channel `<prefix>:bus:<database>:pulse`    a Pulse, several times a second while a shard is on duty
    channel `<prefix>:bus:<database>:want`     Wants of shards that read a stream for themselves

A message is 32 bytes of HMAC-SHA256 (RFC 2104) and a body in JSON:

    {"s": session, "n": number, "t": timeline, "h": [[stream, head], …], "p": [page, …]}      News
        page     [stream, after, head, trimmed_to, begins_after, jumps, audiences, removed_to,
                  [event, …]]
        event    [id, seq, type, data, visible_to, age_us]
    {"s": session, "r": rate, "n": [number of the last News on channel 0, 1, …]}              Pulse
    {"i": shard id, "w": [stream, …]}                                                         Wants

A page is what `headrace.read_log` returns for a stream, with nulls where there is nothing. The key of the seal is
made of the deployment's secret and identity, and the channel is sealed in, so a message holds for one deployment and
one channel. Whoever writes to Redis without the secret can make shards read more, and no more than that.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

CHANNELS: Final = 64
PULSE: Final = "pulse"
WANT: Final = "want"
_SEAL_BYTES: Final = 32
_PURPOSE: Final = b"headrace bus 1 "


@dataclass(frozen=True, slots=True)
class NewsPage:
    """The log of one stream after an id. rows are as of READ_EVENTS, at least one."""

    stream: str
    after: int
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class News:
    """New heads of streams, and pages of those streams that several shards serve.

    session names the duty of one shard, number counts its News on the channel from 1. timeline is that of the server
    that was read.
    """

    session: str
    number: int
    timeline: str | None = None
    heads: Sequence[tuple[str, int]] = ()
    pages: Sequence[NewsPage] = ()


@dataclass(frozen=True, slots=True)
class Pulse:
    """The shard on duty lives. rate is how many notifications it hears a second, numbers the last of each channel."""

    session: str
    rate: float
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Wants:
    """A shard has read these streams for itself, and could use pages of them."""

    shard_id: str
    streams: Sequence[str]


Bulletin = News | Pulse | Wants


def channel_of(slot: int) -> int:
    """The channel on which the slot's news are told."""
    return slot % CHANNELS


class Seal:
    """Makes and opens messages in the name of the deployment.

    secrets are the deployment's, of which the first seals. identity returns the deployment's identity; while it is ""
    nothing can be sealed or opened.
    """

    def __init__(self, secrets: Sequence[str], identity: Callable[[], str]) -> None:
        self._secrets = secrets
        self._identity = identity
        self._made_for = ""
        self._keys: list[bytes] = []

    @property
    def ready(self) -> bool:
        """Whether messages can be sealed and opened."""
        return bool(self._secrets and self._identity())

    def close(self, channel: str, bulletin: Bulletin) -> bytes:
        """The message for a channel. MUST NOT be called while the seal is not ready."""
        body = json.dumps(_told(bulletin), ensure_ascii=False, separators=(",", ":")).encode()
        return _mac(self._known()[0], channel, body) + body

    def open(self, channel: str, message: bytes) -> Bulletin | None:
        """What a message of a channel says; None if it was not made by this deployment, or is damaged."""
        seal, body = message[:_SEAL_BYTES], message[_SEAL_BYTES:]
        if not self.ready or not any(hmac.compare_digest(seal, _mac(key, channel, body)) for key in self._known()):
            return None
        return _read(json.loads(body))

    def _known(self) -> list[bytes]:
        identity = self._identity()
        if identity != self._made_for:
            purpose = _PURPOSE + identity.encode()
            self._keys = [hmac.digest(secret.encode(), purpose, hashlib.sha256) for secret in self._secrets]
            self._made_for = identity
        return self._keys


def _mac(key: bytes, channel: str, body: bytes) -> bytes:
    return hmac.digest(key, channel.encode() + b"\0" + body, hashlib.sha256)


def _told(bulletin: Bulletin) -> dict[str, Any]:
    if isinstance(bulletin, Pulse):
        return {"s": bulletin.session, "r": bulletin.rate, "n": bulletin.numbers}
    if isinstance(bulletin, Wants):
        return {"i": bulletin.shard_id, "w": bulletin.streams}
    pages = [
        [page.stream, page.after, *page.rows[0][1:7], [row[-6:] for row in page.rows if row[-6] is not None]]
        for page in bulletin.pages
    ]
    return {
        "s": bulletin.session, "n": bulletin.number, "t": bulletin.timeline, "h": bulletin.heads, "p": pages
    }  # fmt: skip


def _read(value: dict[str, Any]) -> Bulletin:
    if "w" in value:
        return Wants(value["i"], value["w"])
    if "r" in value:
        return Pulse(value["s"], value["r"], value["n"])
    pages = []
    for stream, after, *standing, events in value["p"]:
        columns = 1, *standing, False, value["t"]
        rows = [(*columns, *event) for event in events] or [(*columns, *[None] * 6)]
        pages.append(NewsPage(stream, after, rows))
    return News(value["s"], value["n"], value["t"], [(stream, head) for stream, head in value["h"]], pages)
