"""Watches all client sockets with one epoll object, edge-triggered, and one gevent watcher on that.

No watcher, greenlet or timer per connection: an idle client costs this process nothing here but a kernel entry.
"""

import _socket
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from typing import Any, Final

from gevent import get_hub, monkey

# gevent takes epoll away from the module, since it would block the hub; here it is only polled.
_select: Any = select
_epoll: Any = monkey.get_original("select", "epoll")

EVENTS: Final = (
    select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "EPOLLIN") else 0
)
MAX_EVENTS: Final = 4096


class Poller:
    """The client sockets of a shard.

    Owned by the dispatcher greenlet, except that the hub calls `_wake` when sockets have something: it posts
    one message, and polling is done by the dispatcher itself, so that a descriptor which was closed and given
    to another client meanwhile cannot be mistaken.
    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._epoll = _epoll()
        self._watcher = get_hub().loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._wake)

    def _wake(self) -> None:
        self._watcher.stop()
        self._on_ready()

    def register(self, fd: int) -> None:
        """Watch a client's socket."""
        self._epoll.register(fd, EVENTS)

    def poll(self) -> Iterator[tuple[int, bool, bool]]:
        """Descriptors of which there is news since the last call: (fd, readable or gone, writable)."""
        gone = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        try:
            while events := self._epoll.poll(0, MAX_EVENTS):
                for fd, mask in events:
                    yield fd, bool(mask & gone), bool(mask & select.EPOLLOUT)
                if len(events) < MAX_EVENTS:
                    break
        finally:
            # Also when the caller gives up half-way; otherwise no socket would ever be reported again.
            self._watcher.start(self._wake)

    def receive(self, fd: int) -> int:
        """Read and drop what a client sent; how many bytes, or -1 if it has ended the connection."""
        received = 0
        # Edge-triggered: bytes that are left unread here would not be reported again.
        while received < 1 << 20:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return received
            except OSError:
                return -1
            if not data:
                return -1
            received += len(data)
        return received

    def unregister(self, fd: int) -> None:
        """Stop watching a socket whose connection goes on in another process."""
        self._epoll.unregister(fd)

    def outstanding(self, fd: int) -> int:
        """Bytes that were written and not yet acknowledged (SIOCOUTQ; of a unix socket: not yet read)."""
        return int(struct.unpack("=i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])

    def silent_s(self, fd: int) -> float:
        """For how long a TCP peer has acknowledged nothing, not even a probe, though something was sent to it.

        0 while nothing is outstanding, and for other sockets. (tcp(7), TCP_INFO; the layout is Linux's tcp_info:
        eight bytes, the fourth the probes unanswered, then words, the fifth unacked and the thirteenth last_ack_recv.)
        """
        client = _socket.socket(fileno=fd)
        try:
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
        except OSError:
            return 0.0
        finally:
            client.detach()
        unacked, last_ack_ms = struct.unpack_from("=I28xI", info, 24)
        return last_ack_ms / 1000 if unacked or info[3] else 0.0

    def close(self, fd: int) -> None:
        """End the connection for real, even if another process still holds a copy, and close the descriptor."""
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        client = _socket.socket(fileno=fd)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()

    def stop(self) -> None:
        """Stop watching. The sockets are the dispatcher's to close."""
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()
