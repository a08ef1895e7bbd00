"""The hand-off: the one message that goes with a client's socket from its *giver*, a router or a shard, to its *taker*,
a shard.

It is a unix SOCK_SEQPACKET message of JSON, with the client's socket as its first descriptor. A channel has one
exchange at a time. The taker answers before it writes the first byte to the client:

    giver ── {"v": 3, "streams": [["room:1", 17]], "context": […], "request_id": "…", "peer": "…", …} + fd ──► taker
    giver ◄── {"ok": true}  or  {"refused": "full"} ── taker

Each stream comes with where its client begins: `"now"`, `"all"`, an id, or, where events are pending, the text of its
part of the cursor, such as `"17-81-3"`.

`"moved": [unsent bytes, cursor owed]` comes with a connection that moves between shards. Its unsent bytes are the rest
of a piece that the giver has begun to write; they lie in a memfd, the second descriptor, since the message has no room.

`"presence": [0]` has the indexes of the streams on which the connection makes its user present.

`"page": 100` asks for so many past events of the one stream as a JSON response, in place of a subscription.

`"chunked": true` tells that the response's body is sent in chunks (RFC 9112, section 7.1); HTTP/1.0 has none.
`"deployment"` is the identity of the giver's deployment, "" where the giver does not know it.

A taker ignores fields that it does not know. So a message with a field that a taker must not ignore has a version of
its own: 1 is a subscription without chunks, 2 a page, 3 either of them with `chunked`, `deployment` and pending events.
A taker refuses a version that it does not speak, before it writes anything. The giver then offers the same client in
the form of an older version, if there is one that means the same or asks for less (`forms`).

A refusal, or an end of file without an answer, proves that nothing was written to the client: the giver may try another
taker. After silence the giver MUST call shutdown() on the client's socket before it forgets the client: the taker may
wake later, and there must never be two writers.
"""

import array
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

from headrace import cursor
from headrace.cursor import MAX_ID, Position, Start
from headrace.errors import CursorError, HandoffError, HandoffVersionError, StreamNameError
from headrace.event import Piece
from headrace.stream import check_name
from headrace.tokens import Context

VERSION: Final = 3
PLAIN_VERSION: Final = 1
"""The version of a subscription in the form that release 0.2.0 and earlier releases speak."""
PAGE_VERSION: Final = 2
"""The version of a page in the form that release 0.2.0 speaks."""
MAX_MESSAGE_BYTES: Final = 180 * 1024
"""A unix message holds about 200 kB by default (net.core.wmem_default)."""
MAX_DESCRIPTORS: Final = 4
REFUSED_VERSION: Final = "version"
"""The taker does not speak the message's version: the giver may offer an older form of the same message."""
REFUSED_UNREADABLE: Final = "unreadable"
"""The taker cannot read the message. Release 0.1.0 also answers this to a version that it does not speak."""
REFUSED_FULL: Final = "full"
REFUSED_FOREIGN: Final = "foreign"
"""The giver is of another deployment, whose streams of the same names have other events."""
REFUSED_LIMIT: Final = "limit"
"""The user, or the address, has as many connections as it may have: the giver tries no other shard."""
REFUSED_REVOKED: Final = "revoked"
"""The token was revoked: the giver tries no other shard."""
REFUSED_GONE: Final = "gone"
"""The client's connection was reset meanwhile: the giver tries no other shard, and nothing is wrong with the taker."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """A client that is given to a shard: its streams, each with where to begin; its context; its response.

    headers are further lines of the response's head (name, value), such as those for cross-origin requests. peer is the
    client's address as `host:port`, for log lines and limits. guest tells that another shard owns the client's slot and
    had no room or was silent. page is how many past events the client wants, None for a subscription. chunked tells
    that the body of an event stream is sent in chunks. deployment is the identity of the giver's deployment, "" for
    unknown.
    """

    streams: tuple[tuple[str, Start], ...]
    context: Context
    request_id: str
    peer: str
    headers: tuple[tuple[str, str], ...] = ()
    moved: "Moved | None" = None
    guest: bool = False
    page: int | None = None
    chunked: bool = False
    deployment: str = ""

    @property
    def has_pending(self) -> bool:
        """Whether the client has events that have no id yet."""
        return any(isinstance(start, Position) and start.pending is not None for _, start in self.streams)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a connection that moves has besides what a new one has: its response has begun.

    unsent is how many bytes of a begun piece come in the second descriptor, 0 for none. owed tells that the
    connection's position has run ahead of the cursor that the client was told.
    """

    unsent: int = 0
    owed: bool = False


@dataclass(frozen=True, slots=True)
class HandoffAnswer:
    """A taker's answer. refused is empty if it has accepted the client, else the reason in a word."""

    refused: str = ""


ACCEPTED: Final = HandoffAnswer()
# Numbers, since an operation on two of `socket`'s flags costs as much as receiving a message.
_CUT_MESSAGE: Final = int(socket.MSG_TRUNC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_OK: Final = b'{"ok": true}'
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Forms(Sequence[bytes]):
    """The forms of one message. The newest is there at once, the others are made when a taker wants them."""

    def __init__(self, handoff: Handoff, versions: Sequence[int]) -> None:
        """versions are those of the forms, the newest first. Raises HandoffError as `encode`."""
        self._handoff = handoff
        self._versions = versions
        self._newest = encode(handoff, versions[0])

    def __len__(self) -> int:
        return len(self._versions)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        version = self._versions[index]
        return self._newest if version == self._versions[0] else encode(self._handoff, version)


def forms(handoff: Handoff) -> Forms:
    """The forms of a message as bytes, the newest first. Each is for a taker that refuses the version before it.

    A new client may be offered without chunks, since nothing has been written to it. A connection whose response has
    begun in chunks has no older form: an older taker would write between the chunks. Nor has a client with pending
    events: an older taker would send it these events, which it has. Raises HandoffError as `encode`.
    """
    if (handoff.moved is not None and handoff.chunked) or handoff.has_pending:
        return Forms(handoff, (VERSION,))
    return Forms(handoff, (VERSION, PLAIN_VERSION if handoff.page is None else PAGE_VERSION))


def encode(handoff: Handoff, version: int = VERSION) -> bytes:
    """The message's bytes in the form of a version, which MUST be one of `forms`.

    Raises HandoffError if they would not fit in one unix message.
    """
    context = handoff.context
    message = {
        "v": version,
        "streams": [(name, _started(start)) for name, start in handoff.streams],
        "context": [context.user, sorted(context.audiences), context.issued_ms, context.expires_ms],
        "request_id": handoff.request_id,
        "peer": handoff.peer,
        "headers": handoff.headers,
        "presence": [index for index, (name, _) in enumerate(handoff.streams) if name in context.presence],
        "moved": [handoff.moved.unsent, handoff.moved.owed] if handoff.moved else None,
        "guest": handoff.guest,
        **({} if handoff.page is None else {"page": handoff.page}),
        **({"chunked": handoff.chunked, "deployment": handoff.deployment} if version == VERSION else {}),
    }
    data = _ENCODER.encode(message).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise HandoffError(f"a hand-off of {len(data)} bytes is above {MAX_MESSAGE_BYTES}; use fewer streams")
    return data


def decode(data: bytes) -> Handoff:
    """Read a message, which may have fields that are not known here.

    Raises HandoffVersionError for a version that is not spoken here, and HandoffError for bytes that are no message.
    """
    message = _load(data)
    version = message.get("v")
    if type(version) is not int:
        raise HandoffError(f"hand-off message without a version: {data[:80]!r}")
    if version not in (PLAIN_VERSION, PAGE_VERSION, VERSION):
        raise HandoffVersionError(
            f"hand-off message of version {version}; this process speaks {PLAIN_VERSION}, {PAGE_VERSION} and {VERSION}"
        )
    try:
        user, audiences, issued_ms, expires_ms, *_ = message["context"]
        read = Handoff(
            streams=tuple((check_name(name), _start(start)) for name, start, *_ in message["streams"]),
            context=Context(
                None if user is None else _text(user),
                frozenset(map(_text, audiences)),
                _number(issued_ms),
                None if expires_ms is None else _number(expires_ms),
                # Processes of a version without presence leave the field out.
                frozenset(check_name(message["streams"][_number(i)][0]) for i in message.get("presence", ())),
            ),
            request_id=_text(message.get("request_id", "")),
            peer=_text(message.get("peer", "")),
            headers=tuple((_line(name), _line(value)) for name, value in message.get("headers", ())),
            moved=_moved(message.get("moved")),
            guest=message.get("guest") is True,
            page=_page(message, version),
            chunked=version == VERSION and message.get("chunked") is True,
            deployment=_text(message.get("deployment", "")) if version == VERSION else "",
        )
    except (LookupError, TypeError, ValueError, StreamNameError, CursorError) as error:
        raise HandoffError(f"hand-off message without its fields: {error!r}") from error
    names = [name for name, _ in read.streams]
    if read.page is not None and (len(names) != 1 or read.page < 1 or read.moved is not None):
        raise HandoffError(f"a hand-off for a page of {read.page} events is for one stream, not {names!r:.200}")
    if not names or len(set(names)) != len(names):
        raise HandoffError(f"a hand-off is for one or more different streams, not {names!r:.200}")
    return read


def encode_answer(answer: HandoffAnswer) -> bytes:
    """The answer's bytes."""
    return json.dumps({"refused": answer.refused}).encode() if answer.refused else _OK


def decode_answer(data: bytes) -> HandoffAnswer:
    """Read an answer. Raises HandoffError for bytes that are no answer."""
    if data == _OK:
        return ACCEPTED
    message = _load(data)
    if message.get("ok") is True:
        return ACCEPTED
    if isinstance(message.get("refused"), str) and message["refused"]:
        return HandoffAnswer(message["refused"])
    raise HandoffError(f"answer to a hand-off not understood: {data[:80]!r}")


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one message and its descriptors, close-on-exec; (b"", []) at the end of the channel.

    The caller owns the descriptors and MUST close them. Yields in a process that gevent has patched. Raises
    HandoffError, having closed what came, if the message or its descriptors were cut.
    """
    # socket.recv_fds() would lose the flags that tell that a message was cut.
    item = array.array("i")
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * item.itemsize)
    data, ancillary, flags, _ = channel.recvmsg(MAX_MESSAGE_BYTES + 1, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            item.frombytes(payload[: len(payload) - len(payload) % item.itemsize])
    descriptors = list(item)
    if flags & _CUT:
        for descriptor in descriptors:
            os.close(descriptor)
        if flags & _CUT_MESSAGE:
            raise HandoffError("a hand-off message was cut; the sender's was too large")
        raise HandoffError("a hand-off's descriptors were cut; this process has none free, or too many were sent")
    return data, descriptors


def _load(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HandoffError(f"hand-off message is not JSON: {data[:80]!r}") from error
    if not isinstance(message, dict):
        raise HandoffError(f"hand-off message is not an object: {data[:80]!r}")
    return message


def pack_unsent(unsent: Piece) -> int:
    """A memfd that holds the bytes; the caller owns the descriptor. Raises OSError."""
    descriptor = os.memfd_create("headrace-unsent", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(unsent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_unsent(descriptor: int, size: int) -> bytes:
    """The bytes of a memfd from `pack_unsent`. Raises HandoffError if it does not hold exactly so many."""
    try:
        unsent = os.pread(descriptor, size + 1, 0)
    except OSError as error:
        raise HandoffError(f"the unsent bytes of a moved connection cannot be read: {error}") from error
    if len(unsent) != size:
        raise HandoffError(f"a moved connection came with {len(unsent)} unsent bytes instead of {size}")
    return unsent


def _page(message: dict[str, Any], version: int) -> int | None:
    """The message's page. A message of version 1 is a subscription even if it has the field."""
    if version == PLAIN_VERSION or (version == VERSION and message.get("page") is None):
        return None
    return _number(message["page"])


def _moved(value: Any) -> Moved | None:
    if value is None:
        return None
    unsent, owed, *_ = value
    if type(owed) is not bool:
        raise TypeError(f"{owed!r} is not true or false")
    return Moved(_number(unsent), owed)


def _started(start: Start) -> int | str:
    """A start as it stands in the message; `_start` reads it."""
    return start.id if isinstance(start, Position) and start.pending is None else str(start)


def _start(value: Any) -> Start:
    if value in ("now", "all"):
        return value  # type: ignore[no-any-return]
    return cursor.parse_part(value) if isinstance(value, str) else Position(_number(value))


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise ValueError(f"{value!r} is not a whole number from 0 to {MAX_ID}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _line(value: Any) -> str:
    if not _text(value).isprintable() or not value.isascii():
        raise ValueError(f"{value!r} is not one line of ASCII")
    return str(value)
