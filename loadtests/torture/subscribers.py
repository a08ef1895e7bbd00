"""Subscribers: each behaves as a browser does, some well and some badly, and notes every frame that it receives.

steady      reads at once and stays
slow        reads little by little, through a small receive buffer
stalling    stops reading for some seconds, now and then for longer than the write deadline
vanishing   goes away without a FIN (the kernel drops what comes for it), and comes back on another connection
restless    leaves at any moment, with a FIN or a reset, and comes back with its last id
late        arrives at any time during the run, then is steady
"""

import contextlib
import ctypes
import random
import re
import socket
import struct
import time
from typing import Final

from headrace import cursor, tokens
from headrace.cursor import Position
from headrace.errors import CursorError
from headrace.event import CURSOR_TYPE
from loadtests.chunks import Body
from loadtests.torture.judge import DATED_AHEAD, ClientConnection, ClientHistory, Received
from loadtests.torture.pages import Pages
from loadtests.torture.plan import Plan, PlannedClient
from loadtests.torture.system import System

_SO_ATTACH_FILTER: Final = 26
_LINE: Final = re.compile(r"(retry: [0-9]+|: [^\n]*)\n")
_IDS: Final = r"[0-9]+(?:-[0-9]+)*(?:\.[0-9]+(?:-[0-9]+)*)*"
_BLOCK: Final = re.compile(
    rf"id: (?P<cursor>{_IDS})"
    rf"|(?:id: (?P<id>{_IDS}(?:/[0-9]+)?)\n)?"
    r"(?:event: (?P<type>[^\n]+)\n)?"
    r"(?P<data>data: [^\n]*(?:\ndata: [^\n]*)*)"
)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
_OPENING_DEADLINE_S: Final = 15.0


class Subscribing:
    """All subscribers. Once `draining` is true they all read at once and stay; once `closing` is true they leave."""

    def __init__(self, plan: Plan, system: System) -> None:
        self.plan = plan
        self.system = system
        self.pages = Pages(system)
        self.draining = False
        self.closing = False
        self.connected = 0
        self.received = 0
        self.refusals = 0
        self.subscribers = [TortureSubscriber(self, client) for client in plan.clients]
        self._interned: dict[str, str] = {}
        self._graveyard: list[socket.socket] = []

    def intern(self, data: str) -> str:
        """The one copy of this text in memory, since hundreds of clients receive the same."""
        return self._interned.setdefault(data, data)

    def bury(self, vanished: socket.socket) -> None:
        """Keep a socket open, so that it does not send a FIN."""
        self._graveyard.append(vanished)


class TortureSubscriber:
    """One client over all its connections. `cursor` is the last id that it received, per stream."""

    def __init__(self, all_: Subscribing, client: PlannedClient) -> None:
        self.history = ClientHistory(
            client.name, client.kind, client.streams, client.start, client.user, client.audiences, client.ttl_s
        )
        self.last_id = ""
        self._all = all_
        self._client = client
        self._chance = all_.plan.random(f"subscriber {client.name}")
        self._signed_at = 0.0
        self._path = self._sign()
        self._since = client.start
        self._body = Body(b"")

    @property
    def cursor(self) -> tuple[int, ...] | None:
        """The client's position in each stream; None until the server has told it."""
        if not self.last_id:
            return None
        starts = cursor.parse(self.last_id, len(self._client.streams))
        return tuple(start.id for start in starts if isinstance(start, Position))

    def run(self) -> None:
        """Connect again and again until the end."""
        chance = self._chance
        if self._client.kind == "late":
            self._rest(chance.uniform(0, self._all.plan.seconds * 0.8))
        else:
            self._rest(chance.uniform(0, 2))
        while not self._all.closing:
            session = self._session()
            if session is None:
                self._rest(0.5)
                continue
            self.history.sessions.append(session)
            self._live(session)
            session.ended_at = time.monotonic()
            # As a browser does, but with little patience: the run is short.
            self._rest(chance.uniform(0.02, 0.3) if session.opened_at is not None else chance.uniform(0.2, 0.8))

    # -- one connection

    def _session(self) -> ClientConnection | None:
        """The next connection; None if its page cannot be rendered now. Now and then the client reloads its page."""
        reloads = self._client.start == "page" and not self._all.draining and self._chance.random() < 0.1
        page = None
        if self._client.start == "page" and (reloads or not self.last_id):
            page = self._all.pages.render(self._client.streams)
            if page is None:
                return None
            self.last_id, self._since = "", page.since
        number = len(self.history.sessions)
        sent = self.last_id or (self._since if self._since not in ("now", "all") else None)
        shown = page.shown if page else None
        return ClientConnection(f"{self._client.name}-{number}", sent, time.monotonic(), shown=shown)

    def _request(self, session: ClientConnection) -> bytes:
        path = self._sign() if self._client.ttl_s is not None else self._path
        lines = [f"X-Request-Id: {session.request_id}", "Host: torture", "Accept: text/event-stream"]
        since = session.sent or self._since
        if session.sent is not None and self._chance.random() < 0.7:
            lines.append(f"Last-Event-ID: {session.sent}")
            # As the browser element does: the URL of the page stays, and the header wins.
            since = self._since if "/" not in self._since else since
        # Some proxies ask in the old way, and get a body without chunks.
        version = "HTTP/1.0" if self._chance.random() < 0.2 else "HTTP/1.1"
        return "\r\n".join([f"GET {path}?since={since} {version}", *lines, "", ""]).encode()

    def _sign(self) -> str:
        """A fresh URL, as an application on the same machine signs it."""
        client = self._client
        self._signed_at = self._all.system.machine.now()
        token = tokens.sign(
            client.streams,
            secrets=(self._all.system.secret,),
            user=client.user,
            audiences=sorted(client.audiences),
            ttl_s=client.ttl_s,
            presence=client.presence,
            now=self._signed_at,
        )
        return f"/streams/{token}"

    def _ahead_s(self) -> float:
        """How many seconds the URL is dated ahead of the machine's clock, which goes on while a response is awaited."""
        return self._signed_at - self._all.system.machine.now()

    def _live(self, session: ClientConnection) -> None:
        connection = socket.socket()
        kept = False
        try:
            if self._client.kind in ("slow", "stalling"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(_OPENING_DEADLINE_S)
            connection.connect(self._all.system.address)
            session.port = connection.getsockname()[1]
            rest = self._open(connection, session)
            if session.opened_at is not None:
                self._all.connected += 1
                try:
                    kept = self._read(connection, session, rest)
                finally:
                    self._all.connected -= 1
        except OSError:
            # A reset ends an open connection just as a FIN does; before the response's head nothing was promised.
            session.ending = "cut" if session.opened_at is not None else "unanswered"
        except ValueError as error:
            # An answer that no HTTP client understands: this one hangs up, as all of them do.
            session.malformed = session.malformed or str(error)
            session.ending = "left"
        finally:
            if not kept:
                connection.close()

    def _open(self, connection: socket.socket, session: ClientConnection) -> bytes:
        """Send the request and read the response's head; returns what came behind it."""
        ahead_s = self._ahead_s()
        connection.sendall(self._request(session))
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                session.ending = "unanswered"
                return b""
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        self._body = Body(head)
        match = _STATUS.match(head)
        if match is None:
            raise ValueError(f"no head of a response: {head[:60]!r}")
        status = match[1].decode()
        if status == "200":
            session.opened_at = time.monotonic()
        elif status == "403" and max(ahead_s, self._ahead_s()) > tokens.MAX_AHEAD_S:
            # The URL is from before the clock was set back: a page asks its application for a fresh one.
            self._all.refusals += 1
            session.ending = DATED_AHEAD
            self._path = self._sign()
        else:
            self._all.refusals += 1
            session.ending = f"refused {status}"
        return rest

    def _read(self, connection: socket.socket, session: ClientConnection, rest: bytes) -> bool:
        """Read to the connection's end; returns whether the socket must stay open, since the client has vanished."""
        chance, kind, all_ = self._chance, self._client.kind, self._all
        leaves = kind in ("restless", "vanishing")
        leave_at = time.monotonic() + (chance.uniform(0.2, 6) if leaves else float("inf"))
        stall_at = time.monotonic() + chance.uniform(0.5, 6)
        connection.settimeout(0.5)
        widened = False
        rest = self._body.feed(rest)
        while True:
            rest = self._parse(session, rest)
            if all_.draining and not widened:
                # With a window of a few bytes the kernel itself is slow, and the server alone is to be judged now.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                widened = True
            if all_.closing:
                session.ending = "left"
                return False
            now = time.monotonic()
            if not all_.draining:
                if now > leave_at:
                    session.ending = "left"
                    return self._leave(connection)
                if kind == "slow":
                    self._rest(chance.uniform(0.01, 0.15))
                elif kind == "stalling" and now > stall_at:
                    long = chance.random() < 0.1
                    self._rest(chance.uniform(9, 14) if long else chance.uniform(0.5, 4))
                    session.stalled_s = max(session.stalled_s, time.monotonic() - now)
                    stall_at = time.monotonic() + chance.uniform(0.5, 6)
            try:
                data = connection.recv(chance.randint(200, 3000) if kind == "slow" and not all_.draining else 65536)
            except TimeoutError:
                continue
            if not data:
                session.ending = session.ending or "cut"
                return False
            rest += self._body.feed(data)

    def _leave(self, connection: socket.socket) -> bool:
        if self._client.kind == "vanishing":
            drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)
            program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
            connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            self._all.bury(connection)
            return True
        if self._chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    # -- what comes

    def _parse(self, session: ClientConnection, data: bytes) -> bytes:
        """Note all complete frames; returns the bytes behind them."""
        end = data.rfind(b"\n\n")
        if end < 0:
            return data
        now = time.monotonic()
        for text in data[:end].decode("utf-8", "replace").split("\n\n"):
            block = text
            while line := _LINE.match(block):
                block = block[line.end() :]
            match = _BLOCK.fullmatch(block)
            if match is None or "\r" in block or not self._has_shape(match):
                session.malformed = session.malformed or block or "(empty)"
            elif match["type"] == CURSOR_TYPE and match["id"] is not None:
                self.last_id = match["id"]
                session.frames.append(Received(now, self.last_id))
            elif match["cursor"]:
                self.last_id = match["cursor"]
                session.frames.append(Received(now, self.last_id))
            elif match["data"]:
                self._event(session, now, match)
        return data[end + 2 :]

    def _has_shape(self, match: re.Match[str]) -> bool:
        """Whether the id, if the frame has one, is a cursor that this client could send back."""
        streams, text = len(self._client.streams), match["cursor"] or match["id"]
        is_event = match["cursor"] is None and match["type"] != CURSOR_TYPE
        try:
            cursor.parse(text, streams)
        except CursorError:
            return False
        return text is None or ("/" in text) == (is_event and streams > 1)

    def _event(self, session: ClientConnection, now: float, match: re.Match[str]) -> None:
        data = match["data"].removeprefix("data: ").replace("\ndata: ", "\n")
        type_ = match["type"] or "message"
        if (match["id"] is None) != type_.startswith("headrace:"):
            session.malformed = session.malformed or f"a sentinel with an id, or an event without: {match[0][:100]}"
            return
        if match["id"] is not None:
            self._all.received += 1
            self.last_id = match["id"]
        elif type_ == "headrace:goodbye":
            reason = re.search(r'"reason":"([^"]*)"', data)
            session.ending = f"goodbye {reason[1] if reason else data}"
        session.frames.append(Received(now, match["id"], type_, self._all.intern(data)))

    def _rest(self, seconds: float) -> None:
        """Sleep, but no longer than the run lets it."""
        until = time.monotonic() + seconds
        with contextlib.suppress(ValueError):
            while time.monotonic() < until and not (self._all.draining or self._all.closing):
                time.sleep(min(0.5, until - time.monotonic()))
        if self._all.draining:
            time.sleep(random.uniform(0.0, 0.1))
