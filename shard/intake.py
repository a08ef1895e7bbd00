"""The intake: receives client sockets from routers and gives them to the dispatcher.

One greenlet per channel, of which a router worker holds a few; none per client. The acknowledgement is sent
before the dispatcher hears of the client, so it precedes the first byte; if it cannot be sent, the router has
given up and the client is not served.
"""

import _socket
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gevent
from gevent import socket as gsocket

from headrace.errors import HandoffError, HandoffVersionError
from headrace.node import handoff
from headrace.node.client_lines import ClientLines
from headrace.node.handoff import Handoff
from headrace.node.socket_file import SocketFile
from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Connect, Message
from headrace.shard.numbers.counters import Tally
from headrace.stream import CANARY_PREFIX

logger = logging.getLogger(__name__)

MAX_CHANNELS: Final = 1024


class Intake:
    """The unix socket on which clients arrive.

    Its channels are owned by their greenlets. refusal is called with the message of each client, without a yield until
    the client is posted: it returns why the client cannot be taken, or "". turn_page is given the socket of a client
    that asks for a page of history.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        inbox: Inbox[Message],
        refusal: Callable[[Handoff], str],
        turn_page: Callable[[int, Handoff], None],
    ) -> None:
        self.accepted = 0
        self.moved_here = 0
        self.refused = Tally(
            ("full", "limit", "unreadable", "cut", "version", "revoked", "busy", "gone", handoff.REFUSED_FOREIGN)
        )
        self._reserve: _socket.socket | None = None
        self._settings = settings
        self._path = path
        self._inbox = inbox
        self._refusal = refusal
        self._turn_page = turn_page
        self._lines = ClientLines(logger, "client taken", settings.log_clients_per_s)
        self._listening: gsocket.socket | None = None
        self._file: SocketFile | None = None
        self._greenlets: set[gevent.Greenlet[..., None]] = set()
        self._accepting: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Bind the socket and accept channels; returns the accepting greenlet, which ends only by `stop`.

        The file of another process at the path is replaced in one step: it may be a predecessor's, which goes on
        with its channels while new ones come here. Raises OSError if the path cannot be bound.
        """
        listening = gsocket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._file = SocketFile(listening, self._path, backlog=MAX_CHANNELS)
        self._listening = listening
        self._reserve = _socket.socket(socket.AF_UNIX)
        self._accepting = gevent.spawn(self._accept, listening)
        return [self._accepting]

    def stop(self) -> None:
        """Take no more clients; channels close, which tells the routers. Yields."""
        if self._accepting is not None:
            self._accepting.kill()
        if self._reserve is not None:
            self._reserve.close()
        if self._listening is not None:
            self._listening.close()
            if self._file is not None:
                self._file.remove()
            # The number may be another file's from now on.
            self._listening = None
        gevent.killall(list(self._greenlets))

    def _accept(self, listening: gsocket.socket) -> None:
        while True:
            try:
                channel, _ = listening.accept()
            except OSError as error:
                if error.errno not in (
                    errno.EMFILE,
                    errno.ENFILE,
                    errno.ENOBUFS,
                    errno.ENOMEM,
                    errno.ECONNABORTED,
                ):
                    raise
                logger.error("cannot accept a router's channel: %s", error)
                self._turn_away(listening)
                gevent.sleep(0.2)
                continue
            if len(self._greenlets) >= MAX_CHANNELS:
                channel.close()
                continue
            greenlet = gevent.spawn(self._serve, channel)
            self._greenlets.add(greenlet)
            greenlet.link(self._greenlets.discard)

    def _turn_away(self, listening: gsocket.socket) -> None:
        """Without a free descriptor: close the channels that wait, by means of the one kept in reserve.

        A channel that ends without an answer lets its giver keep the client; one that stays silent would cost it.
        """
        # Sockets are closed here, since gevent's os.close() frees a descriptor only when its loop comes round.
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        raw = _socket.socket(fileno=listening.fileno())
        try:
            while True:
                _socket.socket(fileno=raw._accept()[0]).close()  # type: ignore[attr-defined]
        except OSError:
            pass
        finally:
            raw.detach()
        with contextlib.suppress(OSError):
            self._reserve = _socket.socket(socket.AF_UNIX)

    def _serve(self, channel: gsocket.socket) -> None:
        """One exchange after the other, until the router closes the channel. Yields."""
        try:
            while True:
                try:
                    data, descriptors = handoff.receive(channel)
                except HandoffError as error:
                    # For example, this process may open no more files. The router still has the client.
                    logger.error("%s", error)
                    self._answer(channel, "cut")
                    continue
                if not data:
                    return
                try:
                    self._take(channel, data, descriptors)
                finally:
                    # The socket of a client that was taken is no longer among them.
                    for descriptor in descriptors:
                        os.close(descriptor)
        except OSError as error:
            logger.debug("a channel broke: %s", error)
        finally:
            channel.close()

    def _take(self, channel: gsocket.socket, data: bytes, descriptors: list[int]) -> None:
        try:
            message = handoff.decode(data)
            size = message.moved.unsent if message.moved else 0
            if len(descriptors) != (2 if size else 1):
                raise HandoffError(f"a hand-off of {size} unsent bytes came with {len(descriptors)} descriptors")
            unsent = handoff.read_unsent(descriptors[1], size) if size else b""
            refused = self._refusal(message) if _prepare(descriptors[0], self._settings) else handoff.REFUSED_GONE
        except (HandoffError, OSError) as error:
            logger.error("a hand-off was refused: %s", error)
            refused = handoff.REFUSED_VERSION if isinstance(error, HandoffVersionError) else handoff.REFUSED_UNREADABLE
        if not refused:
            refused = self._admit(channel, message, descriptors, unsent)
        else:
            self._answer(channel, refused)
        if refused:
            self.refused.add(refused)

    def _admit(self, channel: gsocket.socket, message: Handoff, descriptors: list[int], unsent: bytes) -> str:
        try:
            channel.send(handoff.encode_answer(handoff.ACCEPTED))
        except OSError:
            return "router gone"
        self._lines.log(
            logging.DEBUG if message.streams[0][0].startswith(CANARY_PREFIX) else logging.INFO,
            request_id=message.request_id,
            peer=message.peer,
            streams=len(message.streams),
            moved=message.moved is not None,
        )
        if message.page is not None:
            self._turn_page(descriptors.pop(0), message)
        else:
            self.accepted += 1
            self.moved_here += message.moved is not None
            self._inbox.put(Connect(descriptors.pop(0), message, (unsent,) if unsent else ()))
        return ""

    def _answer(self, channel: gsocket.socket, refused: str) -> None:
        with contextlib.suppress(OSError):
            channel.send(handoff.encode_answer(handoff.HandoffAnswer(refused)))


def _prepare(fd: int, settings: Settings) -> bool:
    """Make a client's socket ready for the dispatcher; False if it is not connected any more.

    Raises OSError if it is no socket.
    """
    client = _socket.socket(fileno=fd)
    try:
        client.setblocking(False)
        try:
            client.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return False
            raise
        if settings.send_buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            # No TCP_USER_TIMEOUT: it also ends clients that read slowly, whose window is never as wide as what
            # the kernel sends next. A client that acknowledges nothing is found by
            # `Poller.silent_s`.
        return True
    finally:
        client.detach()
