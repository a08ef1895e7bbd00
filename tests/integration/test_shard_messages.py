"""An exception while one message is handled hurts only that message."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from headrace import cursor
from headrace.event import Frame
from headrace.node.handoff import Handoff
from headrace.settings import Settings
from headrace.shard.connection import Connection
from headrace.shard.dispatcher import Dispatcher
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Connect, Message, Page, Read, Ready, Rows, Stop, Sweep, Wake
from headrace.shard.poller import Poller
from headrace.shard.socket_calls import SocketCalls
from headrace.tokens import Context
from tests.fixtures.client import Client


class Log:
    """Stands for everything beside the dispatcher: answers its reads from a list of frames when told to."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.asked: list[Read] = []

    def submit(self, read: Any, path: str = "") -> None:
        self.asked.append(read)

    def ensure_listening(self, slot: int) -> bool:
        return True

    def stop_listening(self, slots: Iterable[int]) -> None:
        pass

    def ask(self, connection: Connection, stream: str, label: str) -> bool | None:
        return False

    def appear(self, connection: Connection) -> None:
        pass

    def disappear(self, connection: Connection) -> None:
        pass

    def current(self) -> bool:
        return True

    def refuses(self, context: Context) -> str:
        return ""

    def missed(self, streams: Iterable[str]) -> str:
        return ""

    def publish(self, text: str) -> int:
        self.frames.append(Frame(len(self.frames) + 1, text))
        return len(self.frames)

    def answer(self, read: Read) -> Rows:
        pages = [Page(len(self.frames), 0, (), [] if a is None else self.frames[a:]) for a in read.after]
        return Rows(read, tuple(pages))


class Bench:
    """A dispatcher with real sockets, whose system calls can be made to fail. Owned by the test."""

    def __init__(self) -> None:
        self.log = Log()
        self.fails: set[int] = set()
        self.now = 0.0
        inbox: Inbox[Message] = Inbox()
        self.poller = Poller(lambda: None)
        self.clients: list[tuple[int, Client]] = []
        self.dispatcher = Dispatcher(
            Settings(),
            inbox,
            self.log,
            self.log,
            self.poller,
            self.log,
            self.log,
            self.log,
            self.log,
            socket_calls=SocketCalls(self._write, self._writev),
            clock=lambda: self.now,
        )

    def _writev(self, fd: int, data: Sequence[bytes]) -> int:
        return self._write(fd, b"".join(data))

    def _write(self, fd: int, data: bytes) -> int:
        if fd in self.fails:
            raise RuntimeError("not an error of the operating system")
        return os.write(fd, data)

    def handle(self, *messages: Message) -> None:
        """Handle messages, and the reads that follow from them, until nothing is left to do."""
        for message in messages:
            self.dispatcher.handle(message)
        self.dispatcher.finish_batch()
        while self.log.asked or self.dispatcher.delivery.busy:
            reads, self.log.asked = self.log.asked, []
            for read in reads:
                self.dispatcher.handle(self.log.answer(read))
            self.dispatcher.finish_batch()

    def connect(self, since: Any = "now", then: Callable[[int], None] = lambda fd: None) -> Client:
        """A new client; then is called with its descriptor when it is taken, before its reads are answered."""
        near, far = socket.socketpair()
        far.setblocking(False)
        fd = far.detach()
        client = Client(near)
        self.clients.append((fd, client))
        self.dispatcher.handle(Connect(fd, Handoff((("s", cursor.parse(str(since), 1)[0]),), Context(), "r", "p")))
        then(fd)
        self.handle()
        return client

    def publish(self, text: str) -> None:
        self.handle(Wake("s", self.log.publish(text)))

    def close(self) -> None:
        self.fails.clear()
        self.dispatcher.handle(Stop("test"))
        for _, client in self.clients:
            client.close()
        self.poller.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_a_write_that_fails_strangely_hurts_nobody_else(bench: Bench) -> None:
    """An unforeseen error while one client is written to leaves the others complete and live."""
    clients = [bench.connect() for _ in range(9)]
    bad_fd, bad = bench.clients[4]
    bench.publish("1")
    bench.fails.add(bad_fd)
    bench.publish("2")
    bench.handle(Sweep())
    bench.publish("3")
    for client in clients:
        client.pump()
        if client is not bad:
            assert client.data == ["1", "2", "3"]
    assert bench.dispatcher.errors or bad.ended


def test_a_client_that_was_written_to_in_vain_is_complete_or_closed(bench: Bench) -> None:
    """After an unforeseen error a client gets what it missed, or is closed: it is never left silent."""
    client = bench.connect()
    fd = bench.clients[0][0]
    bench.fails.add(fd)
    bench.publish("1")
    bench.fails.clear()
    bench.handle(Sweep())
    bench.publish("2")
    client.pump()
    assert client.ended or client.data == ["1", "2"]


def test_a_page_of_the_log_that_cannot_be_written_leaves_nobody_waiting(bench: Bench) -> None:
    """The same in the catching up of a client from the log."""
    for number in range(5):
        bench.log.publish(str(number))
    keeper = bench.connect()
    behind, again = (bench.connect(since=1, then=bench.fails.add) for _ in range(2))
    bench.fails.clear()
    bench.handle(Sweep())
    bench.handle(Sweep())
    bench.publish("live")
    for client in (keeper, behind, again):
        client.pump()
    assert keeper.data == ["live"]
    for client in (behind, again):
        assert client.ended or client.data == ["1", "2", "3", "4", "live"]


def test_an_error_on_one_socket_does_not_stop_the_others_from_being_heard(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When something about one ready socket fails, what the others have is still seen."""
    clients = [bench.connect() for _ in range(6)]
    bench.handle(Ready())
    bad_fd = bench.clients[0][0]
    receive = bench.poller.receive

    def failing(fd: int) -> int:
        if fd == bad_fd:
            raise RuntimeError("not an error of the operating system")
        return receive(fd)

    monkeypatch.setattr(bench.poller, "receive", failing)
    for client in clients:
        client.close()
    bench.handle(Ready())
    bench.handle(Ready())
    assert len(bench.dispatcher.registry) == 0


def test_a_shutdown_in_which_a_goodbye_fails_closes_everybody(bench: Bench) -> None:
    """One client that cannot be told goodbye does not keep the others from it, nor the dispatcher from its end."""
    clients = [bench.connect() for _ in range(5)]
    bench.fails.add(bench.clients[2][0])
    bench.handle(Stop("shutdown"))
    assert bench.dispatcher.stopped
    for index, client in enumerate(clients):
        if index != 2:
            client.wait_for_end()
            assert client.wait_for_sentinel("goodbye") == {"reason": "shutdown"}


def test_a_client_that_fails_at_its_connect_is_closed(bench: Bench) -> None:
    """An unforeseen error while a client is taken closes its socket; the next client is served."""
    keeper = bench.connect()
    near, far = socket.socketpair()
    far.setblocking(False)
    fd = far.detach()
    bench.fails.add(fd)
    bench.handle(Connect(fd, Handoff((("s", "now"),), Context(), "r", "p")))
    client = Client(near)
    client.wait_for_end()
    client.close()
    bench.fails.clear()
    after = bench.connect()
    bench.publish("1")
    for each in (keeper, after):
        each.pump()
        assert each.data == ["1"]
    assert len(bench.dispatcher.registry) == 2


def test_a_cursor_that_could_not_be_told_is_told_later(bench: Bench) -> None:
    """A heartbeat that the socket does not take loses nothing: the cursor that was owed comes with a later one."""
    client = bench.connect()
    fd = bench.clients[0][0]
    connection = bench.dispatcher.registry.connection(fd)
    assert connection is not None
    for subscription in connection.subscriptions:
        subscription.hidden = True
    bench.dispatcher.writer.socket_calls.writev = lambda fd, frames: 0
    bench.dispatcher.writer.beat(connection)
    bench.dispatcher.writer.socket_calls.writev = bench._writev
    bench.dispatcher.delivery.writable(connection)
    client.pump()
    before = len(client.frames)
    bench.dispatcher.writer.beat(connection)
    client.pump()
    assert [frame.id for frame in client.frames[before:]] == ["0"]
