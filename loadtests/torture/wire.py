"""The wire between headrace and PostgreSQL: a TCP proxy that can be cut, or go silent."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit, urlunsplit


class Wire:
    """Listens on a port of its own and passes everything on to one server, until it is cut or silenced.

    A connection that has lost bytes while the wire was silent stays silent for ever, also after `mend`: neither side
    is told. Its threads are greenlets where gevent has patched.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.passed = 0
        self._silent = False
        self._away = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lost: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """The URL of the server with the wire's address in the place of its own."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    def cut(self) -> None:
        """Close all connections and refuse new ones, until `mend`."""
        self._away = True
        self._end_all()

    def silence(self) -> None:
        """Accept everything and pass on nothing, until `mend`."""
        self._silent = True

    def mend(self) -> None:
        """Pass everything on again."""
        self._away = self._silent = False

    def passed_on(self, source: socket.socket, data: bytes) -> bytes:
        """What comes out of the wire for what has come in."""
        return data

    def close(self) -> None:
        """End for good."""
        self._away = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._end_all()

    def _end_all(self) -> None:
        while self._pairs:
            self._end(self._pairs.pop())

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            self._lost.discard(end)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            if self._away:
                raise ConnectionRefusedError
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            near.close()
            return
        pair = near, far
        self._pairs.add(pair)
        if self._away:
            self._end(pair)
            return
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._pump, args=(pair, near, far), daemon=True).start()
        self._pump(pair, far, near)

    def _pump(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passed += len(data)
                if self._silent:
                    self._lost.update(pair)
                if source not in self._lost:
                    target.sendall(self.passed_on(source, data))
        # While the wire is silent the other side cannot be told that this one has ended: it goes on waiting.
        if self._silent:
            self._lost.update(pair)
        if source not in self._lost:
            self._end(pair)
