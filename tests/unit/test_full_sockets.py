"""shard/full_sockets.py: which connections wait, and what that keeps in memory."""

from headrace.event import Frame
from headrace.shard.connection import Connection
from headrace.shard.full_sockets import FullSockets
from headrace.tokens import Context


def stalled(fd: int, frame: Frame, since: float, chunked: bool = True) -> Connection:
    """A connection that has taken the first byte of a frame."""
    connection = Connection(fd, Context(), f"r{fd}", "p", chunked=chunked)
    connection.cut((frame.encoded(chunked),), 1, since)
    return connection


def test_a_frame_that_many_have_begun_counts_once() -> None:
    """With chunks or without, it is the same bytes; the last to leave frees them."""
    blocked = FullSockets(10_000)
    frame, other = Frame(1, "x" * 1000), Frame(2, "y" * 100)
    these = [stalled(fd, frame, 0.0, chunked=fd % 2 == 0) for fd in range(50)]
    for connection in (*these, stalled(50, other, 0.0)):
        blocked.add(connection)
    assert (len(blocked), blocked.pinned) == (51, len(frame) + len(other))
    blocked.add(these[0])
    for connection in these:
        blocked.remove(connection)
        blocked.remove(connection)
    assert (len(blocked), blocked.pinned) == (1, len(other))
    assert blocked.surplus() == []


def test_who_has_taken_nothing_for_longest_goes_first() -> None:
    """Above the limit as many are named as it takes, none that holds nothing, and no more than that."""
    blocked = FullSockets(10_000)
    connections = [stalled(fd, Frame(fd + 1, "x" * 1000), since=100.0 - fd) for fd in range(12)]
    idle = Connection(99, Context(), "r99", "p")
    idle.cut((b"frame",), 0, 0.0)
    for connection in (*connections, idle):
        blocked.add(connection)
    assert [connection.fd for connection in blocked.surplus()] == [11, 10, 9, 8, 7]
    assert blocked.pinned <= 7500
    assert idle in blocked
