"""Clients that begin with pending events, which their page shows: each of these is left out once."""

import re
from dataclasses import replace
from itertools import accumulate

import pytest

from headrace.cursor import Pending, Position
from headrace.event import Frame
from headrace.node.handoff import Handoff, Moved
from headrace.shard.connection import Subscription, SubscriptionState
from headrace.shard.messages import (
    Assign,
    Connect,
    MoveEnded,
    Parcel,
    ReadKind,
    Ready,
    Rows,
    Stop,
    Sweep,
    Tick,
    Wake,
)
from headrace.stream import slot
from headrace.tokens import Context
from tests.unit.test_dispatcher import Unknown
from tests.unit.test_dispatcher_model import Client, DispatcherMachine, unchunked

FD = 12
"""The descriptor of the first client that a test connects."""


@pytest.fixture
def machine() -> DispatcherMachine:
    """A dispatcher on the model's ports, with one client of `a` and one of `b` and `a`, all live.

    Four events of `a` are committed and have no id: 81 to 84.
    """
    made = DispatcherMachine()
    made.begin(ring=100_000)
    made.commit("a", [None] * 2, True)
    made.log.publish("a", [None] * 4)
    made.calm()
    return made


def number(machine: DispatcherMachine, *seqs: int) -> None:
    """These events of `a` get their ids, in this order, and the shard reads them."""
    machine.log.number("a", seqs)
    machine.tell(Wake("a", machine.log.head("a")))
    machine.calm()


def subscription(machine: DispatcherMachine, fd: int = FD) -> Subscription:
    connection = machine.dispatcher.registry.connection(fd)
    assert connection is not None
    return connection.subscriptions[-1]


def got(client: Client) -> list[str]:
    """The ids and cursors that a client has received, in order; those of events with their data."""
    body = client.bytes.partition(b"\r\n\r\n")[2]
    text = (unchunked(body) if client.chunked else body).decode()
    return ["=".join(filter(None, found)) for found in re.findall(r"^id: (.*)\n(?:data: (.*)\n)?", text, re.MULTILINE)]


def answer_the_live_read(machine: DispatcherMachine, change: dict[str, object]) -> None:
    """Answer the live read that is asked for next with the log's page, changed."""
    machine.dispatcher.finish_batch()
    (read,) = [read for read in machine.reads if read.kind is ReadKind.LIVE]
    machine.reads.remove(read)
    (page,) = machine.pages(read)
    machine.tell(Rows(read, (replace(page, **change),)))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunked", [False, True])
def test_each_pending_event_is_left_out_once(machine: DispatcherMachine, chunked: bool) -> None:
    """Every id carries what is left, until nothing is; then the connection is one of those that share their bytes."""
    machine.connect(("a",), "watermark", chunked=chunked)
    machine.calm()
    stream = subscription(machine).stream
    assert subscription(machine) in stream.shared
    number(machine, 83)
    machine.commit("a", [None], True)
    machine.calm()
    number(machine, 81, 84)
    machine.commit("a", [None], True)
    machine.calm()
    number(machine, 82)
    assert got(machine.clients[FD]) == ["2-81-1-1-1", "4-81-1-2=a4", "7-82=a7"]
    assert stream.sole[chunked][FD] is subscription(machine)
    machine.commit("a", [None], True)
    machine.calm()
    assert got(machine.clients[FD])[-1] == "9=a9"
    assert [each.partition("=")[0] for each in got(machine.clients[10])[-7:]] == ["3", "4", "5", "6", "7", "8", "9"]


def test_what_was_left_out_is_told_at_the_next_beat(machine: DispatcherMachine) -> None:
    """As behind hidden events, a cursor alone tells where the client is and what is still pending."""
    machine.connect(("a",), "watermark")
    machine.calm()
    number(machine, 84, 82)
    for _ in range(100):
        machine.tell(Tick())
    assert got(machine.clients[FD]) == ["2-81-1-1-1", "4-81-2"]
    number(machine, 81, 83)
    for _ in range(100):
        machine.tell(Tick())
    assert got(machine.clients[FD])[2:] == ["6"]


def test_several_streams_have_pending_events_of_their_own(machine: DispatcherMachine) -> None:
    """The sets of a connection's streams are apart, and each id carries all that is left."""
    machine.log.publish("b", [None])
    machine.connect(("b", "a"), "watermark")
    machine.calm()
    machine.log.number("b", [85])
    machine.commit("b", [None], True)
    machine.calm()
    number(machine, 82, 81, 84, 83)
    machine.commit("a", [None], True)
    machine.calm()
    assert got(machine.clients[FD]) == ["0-85.2-81-1-1-1", "2.2-81-1-1-1/0=b2", "2.7/1=a7"]


@pytest.mark.parametrize("room", range(0, 72))
def test_a_socket_that_takes_a_part(machine: DispatcherMachine, room: int) -> None:
    """Wherever the kernel stops, the client stands behind what it has or is to get, with what is pending there."""
    machine.connect(("a",), "watermark", chunked=False)
    machine.calm()
    client, where = machine.clients[FD], subscription(machine)
    client.room = room
    for seq in (81, 82, 83):
        machine.log.number("a", [seq])
        machine.commit("a", [None], False)
    machine.tell(Wake("a", 8))
    whole_page = machine.log.page("a", 2).frames + machine.log.page("a", 5).frames
    answer_the_live_read(machine, {"frames": whole_page})
    pieces = [b"id: 4-82-1-1\ndata: a4\n\n", b"id: 6-83-1\ndata: a6\n\n", b"id: 8-84\ndata: a8\n\n"]
    ends = [0, *accumulate(map(len, pieces))]
    begun = sum(end < room for end in ends[:-1])
    assert str(where.part) == ["2-81-1-1-1", "4-82-1-1", "6-83-1", "8-84"][begun]
    assert client.bytes.endswith(b"".join(pieces)[:room])
    client.room = 100_000
    machine.ready.add(FD)
    machine.tell(Ready())
    machine.calm()
    assert client.bytes.endswith(b"id: 2-81-1-1-1\n\n" + b"".join(pieces))
    assert str(where.part) == "8-84"


@pytest.mark.parametrize("visible", [False, True])
def test_a_verdict_that_is_outstanding(machine: DispatcherMachine, visible: bool) -> None:
    """No predicate is asked about a pending event; behind one that is asked about, pending events stay so."""
    label = "asked-yes" if visible else "asked-no"
    machine.log.unnumbered["a"] = [(81, "asked-never"), (82, None), (83, label), (84, None)]
    machine.connect(("a",), "watermark")
    machine.calm()
    machine.log.number("a", [81])
    machine.log.labels["a"].append(label)
    machine.log.number("a", [82])
    machine.tell(Wake("a", 5))
    machine.dispatcher.finish_batch()
    machine.answer_now()
    mine = subscription(machine)
    assert [label for connection, _, label in machine.questions if connection is mine.connection] == [label]
    assert (mine.state, str(mine.part)) == (SubscriptionState.VERDICT, "3-82-1-1")
    machine.questions = [question for question in machine.questions if question[0] is mine.connection]
    machine.judge_predicate()
    machine.dispatcher.finish_batch()
    assert str(mine.part) == "5-83-1"
    assert got(machine.clients[FD])[1:] == (["4-82-1-1=a4"] if visible else [])


def test_a_gap_that_is_told_drops_what_is_pending(machine: DispatcherMachine) -> None:
    """The client loads its page anew, so it is sent all that follows; the cursor says so at once."""
    machine.connect(("a",), "watermark")
    machine.calm()
    machine.log.number("a", [81, 82])
    machine.trim("a", 0)
    number(machine, 83, 84)
    text = machine.clients[FD].bytes
    assert b'"missed_from":3,"missed_to":4' in text
    assert got(machine.clients[FD])[1:] == ["4", "5=a5", "6=a6"]


def test_removed_events_of_others_leave_what_is_pending(machine: DispatcherMachine) -> None:
    """Retention has passed the client, which has missed nothing: events that are kept are left out all the same."""
    machine.log.noted = True
    machine.log.unnumbered["a"] = [(81, "asked-no"), (82, "asked-no"), (83, None)]
    machine.log.labels["a"] = ["asked-no"] * 2
    machine.connect(("a",), "watermark")
    machine.calm()
    machine.log.number("a", [81, 82])
    machine.trim("a", 0)
    machine.calm()
    machine.log.labels["a"].append(None)
    number(machine, 83)
    assert b"headrace:gap" not in machine.clients[FD].bytes
    assert got(machine.clients[FD])[1:] == ["5-81-1-1=a5"]
    # Nobody knows that 81 and 82 are among what was removed; they cost a few bytes until the client reconnects anew.
    assert str(subscription(machine).part) == "6-81-1"


def test_a_reset_drops_what_is_pending(machine: DispatcherMachine) -> None:
    """The client's cursor is not of this log, and neither are the numbers in it."""
    streams = (("a", Position(50, Pending({81}))),)
    machine.clients[FD] = Client(("a",), [Position(50, Pending({81}))])
    machine.tell(Connect(FD, Handoff(streams, Context("u0", issued_ms=1), "r", "p")))
    machine.dispatcher.finish_batch()
    machine.answer_now()
    assert b"event: headrace:reset" in machine.clients[FD].bytes
    assert subscription(machine).pending is None
    assert got(machine.clients[FD])[-1].startswith("2")
    machine.clients.clear()


def test_where_ids_jump_nothing_is_pending(machine: DispatcherMachine) -> None:
    """Another incarnation of the log may give a sequence number to another event, which the client must get."""
    machine.connect(("a",), "watermark")
    machine.calm()
    machine.log.labels["a"].append(None)
    machine.tell(Wake("a", 3))
    frames = [Frame(1001, "another", seq=81), Frame(1002, "more", seq=82)]
    answer_the_live_read(machine, {"head": 1002, "jumps": ((3, 1000),), "frames": frames})
    assert got(machine.clients[FD])[1:] == ["1001=another", "1002=more"]
    machine.clients.clear()


@pytest.mark.parametrize(("jumps", "expected"), [((), []), (((3, 1000),), ["1002=shown"])])
def test_where_ids_jump_among_removed_events(
    machine: DispatcherMachine, jumps: tuple[tuple[int, int], ...], expected: list[str]
) -> None:
    """Retention has removed nothing that the client would have been shown, but the incarnation is another one."""
    machine.dispatcher.delivery._visibility._predicates = Unknown()
    machine.connect(("a",), "watermark")
    machine.calm()
    machine.log.labels["a"].append(None)
    machine.tell(Wake("a", 3))
    change = {
        "head": 1002,
        "trimmed_to": 1001,
        "removed": (("theirs", 1001),),
        "frames": [Frame(1002, "shown", seq=81)],
    }
    answer_the_live_read(machine, {**change, "jumps": jumps})
    assert got(machine.clients[FD])[1:] == expected
    machine.clients.clear()


@pytest.mark.parametrize("started", [False, True])
def test_a_goodbye_names_what_is_pending(machine: DispatcherMachine, started: bool) -> None:
    """A client that comes back with a goodbye's cursor goes on as if it had never been away."""
    machine.connect(("a",), "watermark", chunked=False)
    machine.calm()
    if started:
        number(machine, 82, 83)
    machine.clients[FD].allowed = 0
    for client in machine.clients.values():
        client.allowed = 0
    machine.tell(Stop("shutdown"))
    assert got(machine.clients[FD])[-1].partition("=")[0] == ("4-81-3" if started else "2-81-1-1-1")


def moving(machine: DispatcherMachine, everybody: bool = False) -> Parcel:
    """The parcel of a client that has got an event, has been spared another, and leaves for another shard."""
    machine.connect(("a",), "watermark", chunked=False)
    machine.calm()
    number(machine, 83)
    machine.tell(Assign("1", {slot("a"): "/other.sock"}, everybody=everybody))
    machine.dispatcher.finish_batch()
    (parcel,) = [parcel for parcel in machine.parcels if parcel.fd == FD]
    machine.parcels.remove(parcel)
    return parcel


def test_pending_events_move(machine: DispatcherMachine) -> None:
    """The other shard leaves out what this one would have; the cursor that is owed goes along."""
    parcel = moving(machine)
    assert parcel.handoff.streams == (("a", Position(3, Pending({81, 82, 84}))),)
    assert parcel.handoff.moved == Moved(0, True)
    machine.parcels.append(parcel)
    machine.tell(Assign("2", {}))
    machine.parcel_arrives(taken=True)
    machine.calm()
    number(machine, 82)
    machine.commit("a", [None], True)
    machine.calm()
    assert got(machine.clients[FD])[-1] == "5-81-3=a5"


def test_an_older_shard_gets_a_connection_when_nothing_is_pending(machine: DispatcherMachine) -> None:
    """A shard that does not know pending events refuses it; it is misrouted, and leaves with the next assignment."""
    parcel = moving(machine)
    machine.dispatcher.handle(MoveEnded("/other.sock", parcel, "version", misunderstood=True))
    assert machine.dispatcher.moves.misrouted
    machine.parcels.clear()
    number(machine, 81, 82, 84)
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    (parcel,) = [parcel for parcel in machine.parcels if parcel.fd == FD]
    assert parcel.handoff.streams == (("a", Position(6)),)
    assert not parcel.handoff.has_pending
    machine.dispatcher.handle(MoveEnded("/other.sock", parcel, "full"))
    assert not machine.dispatcher.moves.misrouted


def test_an_older_shard_in_the_place_of_this_one(machine: DispatcherMachine) -> None:
    """Where this shard is to be empty, the client is told goodbye with its whole cursor."""
    parcel = moving(machine, everybody=True)
    machine.clients[FD].allowed = 0
    machine.dispatcher.handle(MoveEnded("/other.sock", parcel, "version", misunderstood=True))
    assert machine.clients[FD].closed
    assert b'"reason":"drain"' in machine.clients[FD].bytes
    assert got(machine.clients[FD])[-1].startswith("3-81-1-2")


def test_what_is_pending_stays_so_when_the_stream_is_forgotten(machine: DispatcherMachine) -> None:
    """The page's event gets its id in the stream that is made again, and is left out there."""
    machine.log.trimmed["a"] = 2
    machine.connect(("a",), "watermark")
    machine.calm()
    machine.log.forget("a", 3)
    machine.tell(Sweep())
    machine.calm()
    assert str(subscription(machine).part) == "5-81-1-1-1"
    number(machine, 82, 81)
    machine.commit("a", [None], True)
    machine.calm()
    assert got(machine.clients[FD])[-1] == "8-83-1=a8"
    assert b"headrace:gap" not in machine.clients[FD].bytes
