"""Named decisions of shard/dispatcher.py and shard/delivery.py; the model beside this file draws all the others."""

import os

import pytest

from headrace.node.placement import BUCKETS, bucket
from headrace.shard.bus_pages import MOST_WAITING
from headrace.shard.connection import Connection, Subscription
from headrace.shard.messages import (
    Assign,
    BusPage,
    DrainNode,
    MoveEnded,
    Page,
    Read,
    ReadFailed,
    ReadKind,
    Ready,
    Relistened,
    Revised,
    Rows,
    Sweep,
    Tick,
    Wake,
)
from headrace.stream import slot
from tests.unit.test_dispatcher_model import TIMELINE, DispatcherMachine, unchunked


class Unknown:
    """Predicates of which none is registered."""

    def ask(self, connection: Connection, stream: str, label: str) -> bool | None:
        return False


@pytest.fixture
def machine() -> DispatcherMachine:
    """A dispatcher on the model's ports, with one client of `a` and one of `b` and `a`, all live."""
    made = DispatcherMachine()
    made.begin(ring=100_000)
    return made


def begin_catching_up(machine: DispatcherMachine) -> None:
    """Nine events of `a` are in the log, in no ring, and client 12 needs all of them: its read is outstanding."""
    machine.begin(ring=0)
    machine.commit("a", [None] * 9, True)
    machine.calm()
    machine.connect(("a",), 9)
    machine.dispatcher.finish_batch()
    machine.dispatcher.finish_batch()


def test_one_read_at_a_time(machine: DispatcherMachine) -> None:
    """However many wakes come, one read is outstanding, and the next begins where it ended."""
    for _ in range(5):
        machine.commit("a", [None], True)
        machine.dispatcher.finish_batch()
    (read,) = machine.reads
    assert (read.kind, [stream.name for stream in read.streams], read.after) == (ReadKind.LIVE, ["a"], (0,))
    machine.answer_now()
    machine.dispatcher.finish_batch()
    assert [read.after for read in machine.reads] == [(3,)], "a full page is followed by the next"


def test_all_dirty_streams_share_a_read(machine: DispatcherMachine) -> None:
    """Streams that become dirty together are read in one query."""
    machine.commit("a", [None], True)
    machine.commit("b", [None], True)
    machine.dispatcher.finish_batch()
    (read,) = machine.reads
    assert {stream.name for stream in read.streams} == {"a", "b"}


def test_a_wake_that_is_no_news(machine: DispatcherMachine) -> None:
    """A notification of a head that was read already, or of a stream without subscribers, costs no read."""
    machine.commit("a", [None], True)
    machine.calm()
    machine.tell(Wake("a", 1))
    machine.tell(Wake("nobody", 7))
    machine.dispatcher.finish_batch()
    assert machine.reads == []


def told(machine: DispatcherMachine, after: int, timeline: str = TIMELINE) -> BusPage:
    """What a shard on duty tells of `a` after an id, as the log is now."""
    return BusPage("a", after, machine.log.page("a", after), timeline, machine.now)


def test_a_page_of_the_bus_takes_the_place_of_a_read(machine: DispatcherMachine) -> None:
    """What begins at the head is written to everybody; what comes again, or overlaps, is written once."""
    machine.commit("a", [None], False)
    first = told(machine, 0)
    machine.tell(first)
    machine.commit("a", [None], False)
    for page in (first, told(machine, 0), told(machine, 1)):
        machine.tell(page)
    machine.dispatcher.finish_batch()
    assert machine.reads == []
    assert [client.bytes.count(b"data: a") for client in machine.clients.values()] == [2, 2]
    assert machine.dispatcher.bus_pages.outcomes.counts == {"applied": 2, "repeated": 2, "hole": 0, "refused": 0}


def test_a_page_behind_a_hole_is_not_applied_but_read(machine: DispatcherMachine) -> None:
    """A page whose predecessor was lost moves no head: the shard reads from its own."""
    machine.commit("a", [None, None, None], False)
    machine.tell(told(machine, 2))
    machine.dispatcher.finish_batch()
    assert [(read.kind, read.after) for read in machine.reads] == [(ReadKind.LIVE, (0,))]
    assert machine.dispatcher.bus_pages.outcomes.counts["hole"] == 1
    assert b"data: a" not in machine.clients[10].bytes


def test_a_page_of_another_timeline_is_read(machine: DispatcherMachine) -> None:
    """The shard on duty may be connected to a server that was replaced."""
    machine.commit("a", [None], False)
    machine.tell(told(machine, 0, "00000002"))
    machine.dispatcher.finish_batch()
    assert [read.after for read in machine.reads] == [(0,)]
    assert b"data: a" not in machine.clients[10].bytes


def test_a_page_waits_for_the_read_that_is_outstanding(machine: DispatcherMachine) -> None:
    """The answer finds the head where it was asked for, and then the page is applied behind it."""
    machine.commit("a", [None], True)
    machine.dispatcher.finish_batch()
    (read,) = machine.reads
    answer = machine.pages(read)
    machine.commit("a", [None], False)
    machine.tell(told(machine, 1))
    assert b"data: a" not in machine.clients[10].bytes
    machine.reads.clear()
    machine.tell(Rows(read, answer, timeline=TIMELINE))
    assert machine.clients[10].bytes.count(b"data: a") == 2
    machine.dispatcher.finish_batch()
    assert machine.reads == []


def test_too_many_pages_for_a_read_that_is_outstanding_become_a_read(machine: DispatcherMachine) -> None:
    """The pages that wait are bounded; what does not fit is read."""
    machine.commit("a", [None], True)
    machine.dispatcher.finish_batch()
    for _ in range(MOST_WAITING + 5):
        machine.commit("a", [None], False)
        machine.tell(told(machine, machine.log.head("a") - 1))
    machine.calm()
    machine.calm()
    assert machine.dispatcher.bus_pages.outcomes.counts["refused"] == 5
    for _ in range(MOST_WAITING):
        machine.calm()
    assert machine.clients[10].bytes.count(b"data: a") == MOST_WAITING + 6


def test_a_page_is_not_used_while_revocations_are_not_known(machine: DispatcherMachine) -> None:
    """Nobody is sent an event that a revocation may forbid; the stream is read when revocations are known again."""
    machine.commit("a", [None], False)
    machine.revocations_are_known(False)
    machine.tell(told(machine, 0))
    machine.dispatcher.finish_batch()
    assert (machine.reads, b"data: a" in machine.clients[10].bytes) == ([], False)
    machine.revocations_are_known(True)
    machine.calm()
    assert b"data: a1\n" in machine.clients[10].bytes


def test_a_refused_read_is_tried_stream_by_stream(machine: DispatcherMachine) -> None:
    """A stream whose read PostgreSQL refuses does not hold up those that were read with it."""
    machine.commit("a", [None], True)
    machine.commit("b", [None], True)
    machine.dispatcher.finish_batch()
    machine.tell(ReadFailed(machine.reads.pop(), "corrupt"))
    asked = []
    for _ in range(2):
        machine.dispatcher.finish_batch()
        (read,) = machine.reads
        (stream,) = read.streams
        asked.append(stream.name)
        if stream.name == "a":
            machine.tell(ReadFailed(machine.reads.pop(), "corrupt"))
        else:
            machine.answer_now()
    assert sorted(asked) == ["a", "b"]
    client = machine.clients[11]
    assert b"data: b1\n" in client.bytes
    machine.dispatcher.finish_batch()
    assert machine.reads == [], "it rests until the sweep"
    machine.tell(Sweep())
    machine.calm()
    machine.calm()
    assert b"data: a1\n" in client.bytes


def test_a_moving_client_is_written_to_by_nobody(machine: DispatcherMachine) -> None:
    """From the moment a connection leaves until it is taken, its socket is left alone."""
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [10]
    before = machine.clients[10].bytes
    machine.commit("a", [None], True)
    machine.calm_but_for_parcels()
    assert machine.clients[10].bytes == before
    assert b"data: a1\n" in machine.clients[11].bytes
    machine.tell(Assign("2", {}))
    machine.parcel_arrives(taken=True)
    machine.calm()
    assert b"data: a1\n" in machine.clients[10].bytes


def test_an_assignment_is_carried_out_when_all_have_left(machine: DispatcherMachine) -> None:
    """The shard says that it has carried out an assignment only when no connection is on its way."""
    machine.tell(Assign("g 7", {slot("a"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    assert (machine.dispatcher.moves.pending, machine.dispatcher.moves.carried_out_epoch) == (1, "")
    machine.tell(Assign("g 8", {}))
    machine.parcel_arrives(taken=False)
    assert (machine.dispatcher.moves.pending, machine.dispatcher.moves.carried_out_epoch) == (0, "g 8")


def test_a_hot_streams_connections_go_by_their_buckets(machine: DispatcherMachine) -> None:
    """Of a hot stream's connections those move whose bucket is another shard's, whoever owns the slot."""
    for _ in range(20):
        machine.connect(("a",), "now")
    machine.calm()
    spread = ("", "/other.sock") * (BUCKETS // 2)
    expected = {fd for fd in (10, *range(12, 32)) if spread[bucket(f"peer:{fd}")]}
    assert 0 < len(expected) < 21
    machine.tell(Assign("1", {slot("a"): "/owner.sock", slot("b"): "/owner.sock"}, frozenset("a"), spread))
    assert machine.dispatcher.moves.targets == {"/other.sock": len(expected), "/owner.sock": 1}
    machine.dispatcher.finish_batch()
    assert {parcel.fd for parcel in machine.parcels} == expected | {11}


def test_a_guest_stays_until_its_slot_or_everybody_moves(machine: DispatcherMachine) -> None:
    """A client that was placed here since its own shard was full is not sent there by the next assignment."""
    owner = {slot("a"): "/other.sock"}
    machine.tell(Assign("1", owner))
    machine.calm_but_for_parcels()
    machine.parcels.clear()
    machine.connect(("a",), "now", guest=True)
    machine.calm_but_for_parcels()
    machine.tell(Assign("2", owner | {slot("b"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [11]
    for number, assignment in enumerate((Assign("3", {slot("a"): "/third.sock"}), Assign("4", owner, everybody=True))):
        machine.tell(assignment)
        machine.dispatcher.finish_batch()
        parcel = machine.parcels.pop()
        assert (parcel.fd, parcel.handoff.guest) == (12 + number, assignment.everybody)
        machine.connect(("a",), "now", guest=True)
        machine.calm_but_for_parcels()


def test_a_misrouted_connection_leaves_with_the_next_assignment(machine: DispatcherMachine) -> None:
    """A client whose router did not know the assignment is noted, and leaves when the assignment is given again."""
    assignment = Assign("1", {slot("a"): "/other.sock"})
    machine.tell(assignment)
    machine.calm_but_for_parcels()
    machine.parcels.clear()
    for streams, guest, misrouted in ((("b",), False, False), (("a",), True, False), (("a",), False, True)):
        machine.connect(streams, "now", guest=guest)
        assert machine.dispatcher.moves.misrouted is misrouted
    machine.calm_but_for_parcels()
    assert not machine.parcels
    machine.tell(assignment)
    assert not machine.dispatcher.moves.misrouted
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [14]
    machine.parcel_arrives(taken=False)
    machine.connect(("a",), "now")
    machine.calm_but_for_parcels()
    machine.tell(assignment)
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [15], "a refused connection stays until something has changed"
    machine.tell(Assign("2", assignment.paths))
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [15, 14]


def test_a_misrouted_connection_that_cannot_leave_yet_is_to_leave_once(machine: DispatcherMachine) -> None:
    """While its start is not known it waits, and the assignment given again for another does not count it twice."""
    assignment = Assign("1", {slot("a"): "/other.sock"})
    machine.tell(assignment)
    machine.calm_but_for_parcels()
    for _ in range(2):
        machine.connect(("a",), "now")
        machine.tell(assignment)
    assert machine.dispatcher.moves.targets == {"/other.sock": 3}, "the first, on its way, and both"


def test_a_refused_connection_is_sent_again_from_a_shard_that_is_to_be_empty(machine: DispatcherMachine) -> None:
    """There the same assignment again is for all connections."""
    assignment = Assign("1", {slot("a"): "/other.sock"}, everybody=True)
    for _ in range(2):
        machine.tell(assignment)
        machine.dispatcher.finish_batch()
        assert [parcel.fd for parcel in machine.parcels] == [10]
        machine.parcel_arrives(taken=False)


def test_a_guest_leaves_when_its_stream_becomes_hot(machine: DispatcherMachine) -> None:
    """Also for the shard that had no room: others leave that one for the rest of the node."""
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.calm_but_for_parcels()
    machine.parcels.clear()
    machine.connect(("a",), "now", guest=True)
    machine.calm_but_for_parcels()
    machine.tell(Assign("2", {slot("a"): "/other.sock"}, frozenset("a"), ("/other.sock",) * BUCKETS))
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [12]


def test_a_connection_on_its_way_to_a_former_owner_follows_the_next_assignment(machine: DispatcherMachine) -> None:
    """A connection that is refused by a shard to which it does not belong any more goes on to the one that it does."""
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    assignment = Assign("2", {slot("a"): "/third.sock"})
    machine.tell(assignment)
    machine.parcel_arrives(taken=False)
    assert machine.dispatcher.moves.misrouted
    machine.tell(assignment)
    assert machine.dispatcher.moves.targets == {"/third.sock": 1}


def test_a_guest_is_the_successors_guest(machine: DispatcherMachine) -> None:
    """A guest is not sent to its full shard after a deploy; a connection that leaves for its own shard is no guest."""
    machine.connect(("a",), "now", guest=True)
    machine.calm_but_for_parcels()
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.tell(Assign("2", {slot("b"): "/successor.sock", slot("a"): "/successor.sock"}, everybody=True))
    machine.dispatcher.finish_batch()
    assert {parcel.fd: parcel.handoff.guest for parcel in machine.parcels} == {10: False, 11: False, 12: True}


def test_a_guest_of_a_hot_stream_stays_until_its_place_is_another(machine: DispatcherMachine) -> None:
    """Assignments that leave its place as it is leave the guest; it goes when the stream is hot no more."""
    machine.tell(Assign("1", {slot("a"): "/owner.sock"}, frozenset("a"), ("/other.sock",) * BUCKETS))
    machine.calm_but_for_parcels()
    machine.parcels.clear()
    machine.connect(("a",), "now", guest=True)
    machine.calm_but_for_parcels()
    for epoch in ("1", "2"):
        machine.tell(Assign(epoch, {slot("a"): "/owner.sock"}, frozenset("a"), ("/other.sock",) * BUCKETS))
        machine.dispatcher.finish_batch()
        assert not machine.parcels
    machine.tell(Assign("3", {slot("a"): "/owner.sock"}))
    machine.dispatcher.finish_batch()
    assert [parcel.fd for parcel in machine.parcels] == [12]


def test_catching_up_leaves_the_live_lane_free(machine: DispatcherMachine) -> None:
    """While a page for someone behind is outstanding, live streams are read."""
    begin_catching_up(machine)
    assert [read.kind for read in machine.reads] == [ReadKind.CATCH_UP]
    machine.commit("a", [None], True)
    machine.dispatcher.finish_batch()
    assert [read.kind for read in machine.reads] == [ReadKind.CATCH_UP, ReadKind.LIVE]
    live = machine.reads.pop()
    machine.tell(Rows(live, machine.pages(live)))
    assert b"data: a10\n" in machine.clients[10].bytes
    assert b"data: a10\n" not in machine.clients[12].bytes


def test_who_comes_back_while_the_node_is_drained_leaves_as_well(machine: DispatcherMachine) -> None:
    """A connection that was on its way when the drain began, and was refused, is asked to go like the others."""
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    machine.tell(DrainNode(0.0))
    machine.tell(Tick())
    assert [client.closed for client in machine.clients.values()] == [False, True]
    machine.tell(Assign("2", {}))
    machine.parcel_arrives(taken=False)
    machine.tell(Tick())
    assert machine.clients[10].closed


def test_who_comes_back_and_cannot_be_watched_is_closed(
    machine: DispatcherMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may refuse to watch one more socket: the client is not kept as one that nobody would hear of."""
    machine.tell(Assign("1", {slot("a"): "/other.sock"}))
    machine.dispatcher.finish_batch()
    monkeypatch.setattr(machine, "register", lambda fd: os.close(-1))
    machine.dispatcher.handle(MoveEnded("/other.sock", machine.parcels.pop(), "refused"))
    assert machine.clients[10].closed
    assert machine.dispatcher.registry.connection(10) is None
    assert machine.dispatcher.moves.pending == 0


@pytest.mark.parametrize("kind", [ReadKind.LIVE, ReadKind.CATCH_UP])
def test_a_read_that_was_kept_waiting_is_asked_again(machine: DispatcherMachine, kind: ReadKind) -> None:
    """What comes when revocations are no longer known reaches nobody; when they are, it is read anew."""
    machine.begin(ring=0)
    machine.commit("a", [None] * 9, True)
    machine.calm()
    if kind is ReadKind.CATCH_UP:
        machine.connect(("a",), 9)
        machine.dispatcher.finish_batch()
        machine.dispatcher.finish_batch()
    else:
        machine.commit("a", [None], True)
        machine.dispatcher.finish_batch()
    assert [read.kind for read in machine.reads] == [kind]
    before = [client.bytes for client in machine.clients.values()]
    machine.knows_revocations = False
    machine.answer_now()
    machine.dispatcher.finish_batch()
    assert [client.bytes for client in machine.clients.values()] == before
    assert machine.reads == []
    machine.knows_revocations = True
    machine.calm()
    head = b"data: a10\n" if kind is ReadKind.LIVE else b"data: a9\n"
    assert [client.bytes.count(head) for client in machine.clients.values()] == [1] * len(before)


@pytest.mark.parametrize("how", ["refused", "unknown revocations", "a refused sweep"])
def test_a_read_that_comes_to_nothing_leaves_those_of_the_live_lane_alone(machine: DispatcherMachine, how: str) -> None:
    """A subscription that waits for a live read begins with it, whatever becomes of the other reads beside it."""
    begin_catching_up(machine)
    machine.connect(("a",), "now")
    machine.dispatcher.finish_batch()
    catch_up, live = machine.reads
    machine.reads.clear()
    pages = machine.pages(live)
    if how == "refused":
        machine.tell(ReadFailed(catch_up, "refused"))
    elif how == "a refused sweep":
        machine.tell(ReadFailed(Read(ReadKind.SWEEP, live.streams, (None,)), "refused"))
    else:
        machine.knows_revocations = False
        machine.tell(Rows(catch_up, machine.pages(catch_up)))
        machine.knows_revocations = True
        machine.tell(Revised({}))
    machine.commit("a", [None], True)  # after the snapshot of the live read, which the client is to begin with
    machine.tell(Rows(live, pages))
    machine.dispatcher.finish_batch()
    machine.calm()
    late = machine.clients[13].bytes
    assert late.index(b"id: 9\n") < late.index(b"id: 10\ndata: a10\n")


def test_a_subscription_that_cannot_begin_is_closed_and_holds_up_no_other(
    machine: DispatcherMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error with the first of the subscriptions that wait for a read closes its connection alone."""
    for _ in range(3):
        machine.connect(("a",), "now")
    machine.dispatcher.finish_batch()
    arrivals = machine.dispatcher.arrivals
    begin = arrivals.begin

    def fails_once(subscription: Subscription, page: Page) -> None:
        monkeypatch.setattr(arrivals, "begin", begin)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(arrivals, "begin", fails_once)
    read = machine.reads.pop()
    machine.dispatcher.handle(Rows(read, machine.pages(read)))
    assert machine.dispatcher.errors == 1
    machine.dispatcher.errors = 0
    machine.clients[12].allowed = 0
    machine.commit("a", [None], True)
    machine.calm()
    assert [client.closed for client in machine.clients.values()] == [False, False, True, False, False]
    assert all(b"data: a1\n" in machine.clients[fd].bytes for fd in (13, 14))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("room", [0, 1, 40, 200])
def test_an_opening_that_the_socket_did_not_take_is_kept_whole(
    machine: DispatcherMachine, room: int, chunked: bool
) -> None:
    """Whatever the first write takes, the client has the response head, `retry:` and its cursor when it reads on."""
    machine.connect(("a",), 0, chunked=chunked, room=room)
    machine.commit("a", [None] * 3, True)
    machine.calm()
    late = machine.clients[12]
    assert len(late.bytes) == room
    late.room = 100_000
    machine.ready.add(12)
    machine.tell(Ready())
    machine.calm()
    head, _, body = late.bytes.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    text = unchunked(body) if chunked else body
    assert text.startswith(b"retry: ")
    assert b"\nid: 0\n\nid: 1\ndata: a1\n\nid: 2\ndata: a2\n\n" in text


def test_stalled_clients_beyond_the_limit_are_closed(machine: DispatcherMachine) -> None:
    """Those that have taken nothing for longest go, which is counted; whoever reads stays."""
    machine.dispatcher.writer.full_sockets._limit = 60
    for number in range(6):
        machine.connect(("a",), 0)
        machine.calm()
        machine.now += 1
        machine.clients[12 + number].room = 1
        machine.commit("a", [None], True)
        machine.calm()
    closed = [fd for fd, client in machine.clients.items() if client.closed]
    assert closed == list(range(12, 12 + len(closed))) and closed
    assert machine.dispatcher.writer.counters.closed.counts["unsent limit"] == len(closed)
    assert machine.dispatcher.writer.full_sockets.pinned <= 60
    assert not machine.clients[10].closed


def test_what_is_hidden_from_everybody_is_not_remembered(machine: DispatcherMachine) -> None:
    """However many labels there are that no predicate answers for, a connection keeps nothing of them."""
    machine.log.labels["a"] += [f"user:{number}" for number in range(5)]
    connection = machine.dispatcher.registry.connection(10)
    assert connection is not None
    machine.dispatcher.delivery._visibility._predicates = Unknown()
    machine.tell(Wake("a", 5))
    for _ in range(5):
        machine.calm()
    assert connection.subscriptions[0].position == 5
    assert not connection.verdicts


def test_a_stream_that_is_forgotten_behind_its_clients(machine: DispatcherMachine) -> None:
    """They missed nothing: their cursor moves on, and what is published later follows, without a gap."""
    machine.commit("a", [None] * 2, True)
    machine.calm()
    machine.forget("a", higher=3)
    machine.commit("a", [None], True)
    machine.calm()
    client = machine.clients[10]
    assert b"headrace:gap" not in client.bytes
    assert b"id: 6\ndata: a6\n" in client.bytes


def test_a_stream_that_is_forgotten_while_the_shard_cannot_read(machine: DispatcherMachine) -> None:
    """A shard that has read nothing for long cannot know what was lost in the meantime, and tells of a gap."""
    machine.commit("a", [None] * 2, True)
    machine.calm()
    machine.now += 3600.0
    machine.log.labels["a"].append(None)  # no notification of it has come
    machine.log.trimmed["a"] = 3
    machine.log.forget("a", 2)
    machine.tell(Relistened())
    machine.calm()
    assert b'data: {"stream":"a","missed_from":3,"missed_to":5}\n' in machine.clients[10].bytes
