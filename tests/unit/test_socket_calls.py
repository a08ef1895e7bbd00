"""The wire: the same bytes to many descriptors, whatever some of them do."""

import errno
import os

from headrace.shard.socket_calls import GONE, SocketCalls


def test_what_each_descriptor_has_taken() -> None:
    """A full socket, a peer that is gone and an unforeseen error are told apart, and hurt nobody behind them."""
    answers = {1: 5, 2: BlockingIOError(), 3: 2, 4: OSError(errno.EPIPE, "gone"), 5: RuntimeError("bug"), 6: 5}
    asked = []

    def write(fd: int, data: bytes) -> int:
        asked.append((fd, data))
        answer = answers[fd]
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert SocketCalls(write).write_each(answers, b"frame") == [5, 0, 2, GONE, GONE, 5]
    assert asked == [(fd, b"frame") for fd in answers]


def test_errors_at_either_end() -> None:
    """The first or the last may fail, or all, or there may be nobody."""

    def refuse(fd: int, data: bytes) -> int:
        raise BlockingIOError

    assert SocketCalls(refuse).write_each([7, 8, 9], b"x") == [0, 0, 0]
    assert SocketCalls(refuse).write_each([], b"x") == []


def test_real_descriptors() -> None:
    """With the system's own call: a closed pipe is gone, an open one takes the bytes."""
    reading, writing = os.pipe()
    deaf, mute = os.pipe()
    os.close(deaf)
    try:
        assert SocketCalls().write_each([writing, mute], b"frame") == [5, GONE]
        assert os.read(reading, 10) == b"frame"
    finally:
        for fd in (reading, writing, mute):
            os.close(fd)
