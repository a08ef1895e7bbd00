"""The socket over which commands ask a running `headrace up`: whose turn it is, and who is no longer there."""

import json
import selectors
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headrace.up.control import FILE_NAME, Control
from headrace.up.shards import Operation


class Recorded:
    """Operations that say when they begin, go on once, and end. Owned by the test."""

    ids = ("n-0",)

    def __init__(self) -> None:
        self.begun: list[int] = []

    def add(self, count: int) -> Operation:
        self.begun.append(count)
        yield f"starting {count}"
        yield f"still {count}"


class Desk:
    """The supervisor's end, and clients of it. Owned by the test."""

    def __init__(self, directory: Path) -> None:
        self.shards = Recorded()
        self._path = directory / FILE_NAME
        self._selector = selectors.DefaultSelector()
        self.control = Control(self._path, self._selector, self.shards)  # type: ignore[arg-type]

    def ask(self, count: int) -> socket.socket:
        """A client that wants so many shards added; its request has been read."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self._path))
        client.sendall(json.dumps({"add": count}).encode() + b"\n")
        for key, _ in self._selector.select():
            key.data()
        return client

    def finish(self) -> None:
        """Advance until nothing is left."""
        while self.control.step(lambda line: None):
            pass

    def close(self) -> None:
        self.control.close()
        self._selector.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with closing(Desk(tmp_path)) as made:
        yield made


def heard(client: socket.socket) -> list[dict[str, Any]]:
    """All that a client was told until its end."""
    with client, client.makefile() as lines:
        return [json.loads(line) for line in lines]


def test_who_waits_is_told_what_for_and_has_its_turn(desk: Desk) -> None:
    """One operation after the other; the second client hears of the first one's progress, so it does not give up."""
    first, second = desk.ask(1), desk.ask(2)
    desk.finish()
    assert desk.shards.begun == [1, 2]
    assert heard(first) == [{"say": "starting 1"}, {"say": "still 1"}, {"done": ["n-0"]}]
    assert heard(second) == [
        {"say": "waiting for another command; starting 1"},
        {"say": "waiting for another command; still 1"},
        {"say": "starting 2"},
        {"say": "still 2"},
        {"done": ["n-0"]},
    ]


def test_a_command_that_was_given_up_is_not_carried_out_later(desk: Desk) -> None:
    """A client that has gone before its turn is passed over; one whose operation has begun is not cut short."""
    first, second, third = desk.ask(1), desk.ask(2), desk.ask(3)
    assert desk.control.step(lambda line: None)
    first.close()
    second.close()
    desk.finish()
    assert desk.shards.begun == [1, 3]
    assert heard(third)[-1] == {"done": ["n-0"]}


def test_one_who_has_gone_before_the_first_turn_leaves_nothing_waiting(desk: Desk) -> None:
    """The only client has ended already: nothing is done, and nothing is under way."""
    desk.ask(1).close()
    assert not desk.control.step(lambda line: None)
    assert desk.shards.begun == []
