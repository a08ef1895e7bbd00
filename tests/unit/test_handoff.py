"""headrace/node/handoff.py"""

import json
import os
import socket
from collections.abc import Iterator

import pytest

from headrace.cursor import Pending, Position
from headrace.errors import HandoffError
from headrace.node import handoff
from headrace.node.handoff import Handoff, HandoffAnswer, Moved
from headrace.tokens import Context

MESSAGE = Handoff(
    (("room:1", Position(17)), ("ж", "now"), ("c", "all")),
    Context("ada", frozenset({"staff"}), 5, 6, frozenset({"room:1", "c"})),
    "r-1",
    "127.0.0.1:9",
    (("Access-Control-Allow-Origin", "https://a.example"),),
)


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_round_trip() -> None:
    """What a router encodes, a shard decodes."""
    assert handoff.decode(handoff.encode(MESSAGE)) == MESSAGE


def test_pending_events_travel() -> None:
    """A client comes with the pending events that it has, of each stream."""
    some, none = Position(17, Pending({81, 84, 2**63 - 1})), Position(4)
    message = Handoff((("room:1", some), ("ж", none), ("c", "all")), Context(), "r", "p", moved=Moved(3, True))
    assert handoff.decode(handoff.encode(message)) == message
    assert json.loads(handoff.encode(message))["streams"][1:] == [["ж", 4], ["c", "all"]]


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[]", b"{}", b'{"v":1}', b'{"v":2}', b'{"v":1,"streams":[["a"]],"context":[1]}', b"\xff"]
)
def test_garbage(data: bytes) -> None:
    """Anything else is a HandoffError."""
    with pytest.raises(HandoffError):
        handoff.decode(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("streams", []),
        ("streams", [["a", -1]]),
        ("streams", [["a", "later"]]),
        ("streams", [["a", "3-0"]]),
        ("streams", [["a", "3.4"]]),
        ("streams", [["a", 1], ["a", 2]]),
        ("streams", [["", 1]]),
        ("streams", [["a", 1.5]]),
        ("streams", [["a", True]]),
        ("streams", [["a", 2**63]]),
        ("headers", [["X", "a\r\nSet-Cookie: b"]]),
        ("headers", [["X"]]),
        ("context", ["ada", ["x"], "soon", None]),
        ("context", ["ada", ["x"], 1, "late"]),
        ("presence", [3]),
        ("presence", ["a"]),
        ("request_id", 7),
    ],
)
def test_fields_are_checked(field: str, value: object) -> None:
    """A message that is JSON but not a hand-off never reaches the dispatcher."""
    message = json.loads(handoff.encode(MESSAGE))
    message[field] = value
    with pytest.raises(HandoffError):
        handoff.decode(json.dumps(message).encode())


def test_a_giver_may_know_of_no_presence() -> None:
    """A process of a version without presence hands over clients who are present nowhere."""
    message = json.loads(handoff.encode(MESSAGE))
    del message["presence"]
    assert handoff.decode(json.dumps(message).encode()).context == Context("ada", frozenset({"staff"}), 5, 6)


def test_a_page_is_asked_for_in_a_version_of_its_own() -> None:
    """A shard that knows of no pages refuses the message, and does not take it for a subscription."""
    asked = Handoff((("room:1", "all"),), Context("ada"), "r", "p", page=100)
    data = handoff.encode(asked, handoff.PAGE_VERSION)
    assert handoff.decode(data) == asked == handoff.decode(handoff.encode(asked))
    assert [json.loads(form)["v"] for form in handoff.forms(asked)] == [3, 2]
    for wrong in ({"page": None}, {"page": 0}, {"streams": [["a", 0], ["b", 0]]}, {"moved": [0, False]}):
        with pytest.raises(HandoffError):
            handoff.decode(json.dumps(json.loads(data) | wrong).encode())


def test_too_large() -> None:
    """A message that no unix socket would carry is refused by its sender."""
    with pytest.raises(HandoffError, match="fewer streams"):
        handoff.encode(Handoff(tuple((f"{i}{'x' * 500}", Position(1)) for i in range(400)), Context(), "r", "p"))


def test_answers() -> None:
    """Taken and refused are told apart, and garbage from both."""
    assert handoff.decode_answer(handoff.encode_answer(HandoffAnswer())) == HandoffAnswer()
    assert handoff.decode_answer(handoff.encode_answer(HandoffAnswer("full"))) == HandoffAnswer("full")
    for data in (b"", b"{}", b'{"refused": ""}', b'{"ok": 1}'):
        with pytest.raises(HandoffError):
            handoff.decode_answer(data)


def test_descriptor_travels(channel: tuple[socket.socket, socket.socket]) -> None:
    """The receiver gets a descriptor of its own that is close-on-exec."""
    ours, theirs = channel
    read_end, write_end = os.pipe()
    socket.send_fds(ours, [b"hello"], [write_end])
    os.close(write_end)
    data, (received,) = handoff.receive(theirs)
    assert data == b"hello"
    assert not os.get_inheritable(received)
    os.write(received, b"!")
    os.close(received)
    assert os.read(read_end, 10) == b"!"
    os.close(read_end)


def test_too_many_descriptors(channel: tuple[socket.socket, socket.socket]) -> None:
    """A message with more descriptors than a hand-off has is refused and leaks none."""
    ours, theirs = channel
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ours, [b"x"], [0] * 20)
    with pytest.raises(HandoffError, match="cut"):
        handoff.receive(theirs)
    assert len(os.listdir("/proc/self/fd")) == before


def test_end_of_channel(channel: tuple[socket.socket, socket.socket]) -> None:
    """The end of a channel is an empty message."""
    ours, theirs = channel
    ours.close()
    assert handoff.receive(theirs) == (b"", [])
