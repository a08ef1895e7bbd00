"""The bench's subscriber, beside a server that sends what a test wants: it tells whole streams from broken ones."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.bench.clients import FailedError
from loadtests.bench.subscriber import Subscriber
from loadtests.bench.tools import BESIDE_CHECKOUT, Tools
from loadtests.bench.writers import SESSIONS
from tests.fixtures.waiting import wait_until

TOOLS = Path(os.environ.get("BENCH_TOOLS") or BESIDE_CHECKOUT)
pytestmark = pytest.mark.skipif(
    not (TOOLS / "ssebench.c").is_file() or (not os.environ.get("CI") and not Path("/usr/include/liburing.h").exists()),
    reason=f"the bench's tools are not in {TOOLS}, or liburing-dev is not installed",
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled subscriber."""
    return Tools.build(None, tmp_path_factory.mktemp("tools")).subscriber


def number(count: int, session: int) -> int:
    """The number of a session's event, which counts from 1 on."""
    return count * SESSIONS + session


def events(numbers: Sequence[int | None]) -> bytes:
    """Events with these numbers and with ids from 1 on; None: an event without a number."""
    return b"".join(
        f"id: {id_}\ndata: {'x' if n is None else f'n={n} t=1 xx'}\n\n".encode() for id_, n in enumerate(numbers, 1)
    )


@contextmanager
def served(program: Path, *bodies: bytes) -> Iterator[Subscriber]:
    """A subscriber with a connection for each body, all connected, of a server that sends these."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            clients = []
            for _ in bodies:
                client, _ = listener.accept()
                clients.append(client)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(4096)
                client.sendall(HEAD + bodies[int(request.split()[1].removeprefix(b"/"))])
            over.wait(60)
            for client in clients:
                client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with Subscriber(program, listener.getsockname(), "/%d", len(bodies)) as subscriber:
                yield subscriber.ready()
        finally:
            over.set()
            thread.join()


def test_a_whole_stream_is_whole(program: Path) -> None:
    """Sessions' events may mix in any way, over several connections, as long as each session's are in its order."""
    first = events([number(1, 0), number(1, 15), number(2, 15), number(3, 0)])
    second = events([number(2, 0), number(70_000, 15)])
    with served(program, first, second) as subscriber:
        result = subscriber.whole(6, 20)
    assert result["events_total"] == 6
    assert result["last_event_ns"] > 0


def test_a_row_in_json_has_a_number_too(program: Path) -> None:
    """The number of a changed row's event stands in its JSON."""
    row = f'{{"op": "update", "table": "news", "row": {{"n": {number(1, 3)}, "t": 5, "id": 9}}}}'
    with served(program, f"id: 1\ndata: {row}\n\n".encode()) as subscriber:
        assert subscriber.whole(1, 20)["numbers"] == 1


@pytest.mark.parametrize(
    ("numbers", "committed", "said"),
    [
        ([number(1, 0), number(1, 1), number(1, 0)], 3, "'repeated': 1"),
        ([number(2, 0), number(1, 0)], 2, "'disordered': 1"),
        ([number(1, 0), None], 2, "'unnumbered': 1"),
        ([number(1, 0), number(2, 0)], 1, "of 1 committed events 2 were received"),
    ],
)
def test_a_broken_stream_fails(program: Path, numbers: list[int | None], committed: int, said: str) -> None:
    """An event that comes twice, too early, without a number or from no transaction is an error, and not a figure."""
    with served(program, events(numbers)) as subscriber, pytest.raises(FailedError, match=said):
        subscriber.whole(committed, 20)


def test_a_missing_event_fails_at_the_deadline(program: Path) -> None:
    """A committed event that does not come is an error that says how long was waited."""
    broken = pytest.raises(FailedError, match=r"of 2 committed events 1 were received within 0\.2 s")
    with served(program, events([number(1, 0)])) as subscriber, broken:
        subscriber.whole(2, 0.2)


def test_the_same_event_on_two_connections_fails(program: Path) -> None:
    """Numbers are compared over all connections: an event belongs to one stream."""
    twice = events([number(1, 0)])
    with served(program, twice, twice) as subscriber, pytest.raises(FailedError, match="'repeated': 1"):
        subscriber.whole(2, 20)


def test_a_gap_of_ids_fails(program: Path) -> None:
    """The ids of a stream rise by one, whatever the numbers are."""
    body = events([number(1, 0), number(2, 0)]).replace(b"id: 2", b"id: 3")
    with served(program, body) as subscriber, pytest.raises(FailedError, match="gaps"):
        subscriber.whole(2, 20)


def test_latencies_of_a_warm_up_are_forgotten(program: Path) -> None:
    """After a warm-up, latencies count anew, and events do not."""
    with served(program, events([number(1, 0)])) as subscriber:
        wait_until(lambda: subscriber.received() == 1, "the event is received")
        subscriber.forget()
        result = subscriber.whole(1, 20)
    assert "lat_p50_us" not in result
