"""Any interleaving of what can happen to a dispatcher, against a model of ten lines: the log itself.

The ports are the dispatcher's own (readers, listener, sockets, predicates); what hypothesis draws is the order in
which they answer, how much each socket takes, and which notifications are lost.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.cursor import Pending, Position, Start, parse
from headrace.event import Frame
from headrace.node.handoff import Handoff, decode, encode
from headrace.node.placement import BUCKETS
from headrace.settings import Settings
from headrace.shard.connection import Connection, SubscriptionState
from headrace.shard.dispatcher import Dispatcher
from headrace.shard.inbox import Inbox
from headrace.shard.messages import (
    Assign,
    BusPage,
    Connect,
    Listening,
    Message,
    Missed,
    MoveEnded,
    Page,
    Parcel,
    Read,
    ReadFailed,
    Ready,
    Relistened,
    Revised,
    Rows,
    Sweep,
    Tick,
    Verdict,
    Wake,
)
from headrace.shard.numbers.connection_states import connection_states
from headrace.shard.socket_calls import SocketCalls
from headrace.stream import slot
from headrace.tokens import Context

STREAMS = ("a", "b")
LABELS = (None, None, None, None, None, None, "mine", "asked-yes", "asked-no")
PAGE = 3
TIMELINE = "00000001"
ROOM = st.sampled_from([0, 1, 7, 40, 200, 100_000])


class Log:
    """The model: what is committed, in order, and what retention has removed.

    unnumbered are the events that are committed and have no id yet: their sequence numbers and labels. Ids up to begins
    are of the stream before it was forgotten, and of others; those that it never had have a label that nobody sees.
    """

    def __init__(self) -> None:
        self.noted = True
        self.labels: dict[str, list[str | None]] = {name: [] for name in STREAMS}
        self.seqs: dict[str, dict[int, int]] = {name: {} for name in STREAMS}
        self.unnumbered: dict[str, list[tuple[int, str | None]]] = {name: [] for name in STREAMS}
        self.trimmed = dict.fromkeys(STREAMS, 0)
        self.begins = dict.fromkeys(STREAMS, 0)
        self.seq = 80

    def publish(self, stream: str, labels: Sequence[str | None]) -> None:
        """Events that get their ids later."""
        for label in labels:
            self.seq += 1
            self.unnumbered[stream].append((self.seq, label))

    def number(self, stream: str, seqs: Iterable[int]) -> None:
        """Give ids to these events, in this order."""
        waiting = dict(self.unnumbered[stream])
        for seq in seqs:
            self.labels[stream].append(waiting.pop(seq))
            self.seqs[stream][self.head(stream)] = seq
        self.unnumbered[stream] = list(waiting.items())

    def watermark(self, stream: str) -> Position:
        """The head, and the events without an id."""
        seqs = [seq for seq, _ in self.unnumbered[stream]]
        return Position(self.head(stream), Pending(seqs) if seqs else None)

    def forget(self, stream: str, higher: int) -> None:
        """The stream is forgotten; another one of its slot had a head that is so much higher."""
        self.labels[stream] += ["asked-no"] * higher
        self.begins[stream] = self.trimmed[stream] = self.head(stream)

    def head(self, stream: str) -> int:
        return len(self.labels[stream])

    def page(self, stream: str, after: int | None) -> Page:
        head, trimmed = self.head(stream), self.trimmed[stream]
        first = head if after is None else max(after, trimmed)
        ids = range(first + 1, min(head, first + PAGE) + 1)
        frames = [Frame(i, f"{stream}{i}", label=self.labels[stream][i - 1], seq=self.seqs[stream].get(i)) for i in ids]
        begins = self.begins[stream]
        newest = {label or "": i for i, label in enumerate(self.labels[stream][:trimmed], 1) if i > begins}
        if newest and begins:
            newest.setdefault("", begins)
        return Page(head, trimmed, (), frames, tuple(newest.items()) if self.noted else (), begins_after=begins)

    def visible(self, stream: str, after: int, upto: int, had: AbstractSet[int] = frozenset()) -> list[int]:
        """The events that a client is shown which has had those with the sequence numbers in had."""
        hidden, seqs = ("asked-no",), self.seqs[stream]
        return [
            i for i in range(after + 1, upto + 1) if self.labels[stream][i - 1] not in hidden and seqs.get(i) not in had
        ]


class Client:
    """What one client got, judged frame by frame against the log.

    had are the pending events that it came with, of each stream; a gap that it is told ends that.
    """

    def __init__(self, streams: Sequence[str], starts: Sequence[Start], chunked: bool = False) -> None:
        self.streams = streams
        self.chunked = chunked
        self.positions = [start.id if isinstance(start, Position) else None for start in starts]
        self.came_with = [
            start.pending.seqs if isinstance(start, Position) and start.pending else frozenset() for start in starts
        ]
        self.bytes = b""
        self.room = 100_000
        self.closed = False
        self.unharmed: dict[tuple[str, int], int] = {}
        self.context = Context()
        self.allowed: int | None = None

    @property
    def events(self) -> int:
        """How many events it has got whole."""
        return sum(b"data: " in part and b"event: " not in part for part in self.bytes.split(b"\n\n")[:-1])

    @property
    def last_id(self) -> str:
        """The last cursor that it has got whole, "" for none."""
        body = self.bytes.partition(b"\r\n\r\n")[2]
        whole = (unchunked(body) if self.chunked else body).rpartition(b"\n\n")[0]
        return "".join(re.findall(r"^id: (.*)$", whole.decode(), re.MULTILINE)[-1:])

    def judge(self, log: Log) -> None:
        head, end, body = self.bytes.partition(b"\r\n\r\n")
        if not end:
            return
        assert head.startswith(b"HTTP/1.1 200")
        assert (b"Transfer-Encoding: chunked" in head) == self.chunked
        if self.chunked:
            body = unchunked(body)
        positions = list(self.positions)
        self.had = list(self.came_with)
        for frame in body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in frame.split("\n"))
            if "event" in fields:
                positions = self._sentinel(fields, positions, log)
            elif "data" in fields:
                ids = self._ids(log, fields["id"])
                number = int(fields["id"].partition("/")[2] or 0)
                stream = self.streams[number]
                assert fields["data"] == f"{stream}{ids[number]}"
                self._advance(log, stream, positions[number], ids[number] - 1)
                assert ids[number] > (positions[number] or 0), "repeated or disordered"
                assert log.seqs[stream].get(ids[number]) not in self.had[number], "the client has this event"
                positions[number] = ids[number]
                self._check_others(log, positions, ids, number)
                positions = ids
            elif "id" in fields:
                ids = self._ids(log, fields["id"])
                self._check_others(log, positions, ids, -1)
                positions = ids
        self.reached = positions

    def _sentinel(self, fields: dict[str, str], positions: list[int | None], log: Log) -> list[int | None]:
        told = json.loads(fields["data"])
        if fields["event"] == "headrace:cursor":
            assert told == {"cursor": fields["id"]}
            ids = self._ids(log, fields["id"])
            self._check_others(log, positions, ids, -1)
            return list(ids)
        assert "id" not in fields
        if fields["event"] == "headrace:goodbye":
            assert self.allowed is not None, "sent away without a reason"
            return positions
        assert fields["event"] == "headrace:gap", fields
        number = self.streams.index(told["stream"])
        # What was hidden from the client before is not missed.
        self._advance(log, told["stream"], positions[number], told["missed_from"] - 1)
        assert told["missed_to"] <= log.trimmed[told["stream"]]
        begins = self.unharmed.get((told["stream"], told["missed_from"] - 1), 0)
        assert told["missed_to"] > begins, "it was here when the stream was forgotten, and missed nothing"
        if log.noted and told["missed_from"] > log.begins[told["stream"]]:
            assert log.visible(told["stream"], told["missed_from"] - 1, told["missed_to"]), (
                "told of a gap, missed nothing"
            )
        positions[number] = told["missed_to"]
        self.had[number] = frozenset()
        return positions

    def _ids(self, log: Log, text: str) -> list[int]:
        """The ids of a cursor, which MUST name exactly those pending events that have no id up to its own."""
        ids = []
        for stream, start, had in zip(self.streams, parse(text, len(self.streams)), self.had, strict=True):
            assert isinstance(start, Position)
            passed = {seq: id_ for id_, seq in log.seqs[stream].items() if id_ <= start.id}
            named = start.pending.seqs if start.pending else frozenset()
            assert had - passed.keys() <= named <= had, f"{text} of a client that came with {had}"
            # One that was removed before it was read, which nobody can know.
            assert all(passed.get(seq, 0) <= log.trimmed[stream] for seq in named), f"{text} names what has passed"
            ids.append(start.id)
        return ids

    def _check_others(self, log: Log, before: Sequence[int | None], after: list[int], but: int) -> None:
        for number, stream in enumerate(self.streams):
            if number != but and before[number] is not None:
                assert after[number] >= before[number]
                self._advance(log, stream, before[number], after[number])

    def _advance(self, log: Log, stream: str, before: int | None, after: int) -> None:
        if before is not None:
            had = self.had[self.streams.index(stream)]
            assert log.visible(stream, before, after, had) == [], f"lost on {stream} between {before} and {after}"

    def whole(self, log: Log) -> None:
        self.judge(log)
        for number, stream in enumerate(self.streams):
            missing = log.visible(stream, self.reached[number], log.head(stream), self.had[number])
            assert missing == [], f"never delivered on {stream}: {missing}"


def unchunked(body: bytes) -> bytes:
    """The whole chunks of a body, of which the last may be cut."""
    whole = b""
    while body:
        size, end, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not end or len(rest) < length + 2:
            break
        assert rest[length : length + 2] == b"\r\n", "a chunk that does not end where it says"
        assert length or rest == b"\r\n", "something after the body's end"
        whole, body = whole + rest[:length], rest[length + 2 :]
    return whole


def state_of(connection: Connection) -> str:
    """What a connection waits for, found by looking at it."""
    states = {subscription.state for subscription in connection.subscriptions}
    if connection.blocked_at is not None:
        return "blocked"
    if states == {SubscriptionState.LIVE}:
        return "live"
    return "opening" if SubscriptionState.OPENING in states else "behind"


class DispatcherMachine(RuleBasedStateMachine):
    """Owns the ports that the dispatcher sees."""

    @initialize(ring=st.sampled_from([0, 60, 100_000]), noted=st.booleans(), pending=st.sampled_from([0, 1, 3]))
    def begin(self, ring: int, noted: bool = True, pending: int = 0) -> None:
        """Two clients are live; where events are pending, two more that have these."""
        self.log = Log()
        self.log.noted = noted
        self.narrow = False
        self.clients: dict[int, Client] = {}
        self.reads: list[Read] = []
        self.on_the_bus: list[BusPage] = []
        self.parcels: list[Parcel] = []
        self.questions: list[tuple[Connection, str, str]] = []
        self.confirmed: set[int] = set()
        self.wanted: list[int] = []
        self.ready: set[int] = set()
        self.now = 0.0
        self.present: set[Connection] = set()
        self.issued = 1
        self.revoked = {"u0": -1, "u1": -1}
        self.knows_revocations = True
        self.dispatcher = Dispatcher(
            Settings(ring_bytes=ring, ring_total_bytes=200, heartbeat_interval_s=0.5),
            Inbox[Message](),
            readers=self,
            listener=self,
            poller=self,
            predicates=self,
            transfer=self,
            presence=self,
            revocations=self,
            socket_calls=SocketCalls(lambda fd, data: self.writev(fd, [data]), self.writev),
            clock=lambda: self.now,
        )
        self.connect(("a",), "now")
        self.connect(("b", "a"), 0)
        for streams in [("a",), ("a", "b")] if pending else []:
            self.log.publish(streams[-1], [None] * pending)
            self.connect(streams, "watermark")
        self.calm()

    # -- the ports

    def submit(self, job: Read | Parcel, path: str = "") -> None:
        if isinstance(job, Read):
            self.reads.append(job)
        else:
            self.parcels.append(job)

    def ensure_listening(self, number: int) -> bool:
        if number not in self.confirmed and number not in self.wanted:
            self.wanted.append(number)
        return number in self.confirmed

    def stop_listening(self, slots: Iterable[int]) -> None:
        self.confirmed -= set(slots)

    def ask(self, connection: Connection, stream: str, label: str) -> bool | None:
        assert label.startswith("asked")
        self.questions.append((connection, stream, label))
        return None

    def appear(self, connection: Connection) -> None:
        assert connection not in self.present
        self.present.add(connection)

    def disappear(self, connection: Connection) -> None:
        self.present.remove(connection)

    def current(self) -> bool:
        return self.knows_revocations

    def refuses(self, context: Context) -> str:
        return "revoked" if context.issued_ms <= self.revoked[context.user or ""] else ""

    def missed(self, streams: Iterable[str]) -> str:
        return ""

    def register(self, fd: int) -> None:
        pass

    def unregister(self, fd: int) -> None:
        self.ready.discard(fd)

    def close(self, fd: int) -> None:
        self.clients[fd].closed = True

    def poll(self) -> Iterable[tuple[int, bool, bool]]:
        ready, self.ready = sorted(self.ready), set()
        return [(fd, False, True) for fd in ready]

    def receive(self, fd: int) -> int:
        return 0

    def outstanding(self, fd: int) -> int:
        return 0

    def silent_s(self, fd: int) -> float:
        return 0.0

    def writev(self, fd: int, frames: Sequence[bytes]) -> int:
        client = self.clients[fd]
        assert not client.closed, "written to after it was closed"
        data = b"".join(frames)
        taken = data[: client.room]
        if data and not taken:
            raise BlockingIOError
        client.room -= len(taken)
        client.bytes += taken
        return len(taken)

    def tell(self, message: Message) -> None:
        self.dispatcher.handle(message)
        assert self.dispatcher.errors == 0, self.dispatcher.last_error

    # -- what can happen

    @rule(
        stream=st.sampled_from(STREAMS),
        labels=st.lists(st.sampled_from(LABELS), min_size=1, max_size=5),
        rings=st.booleans(),
    )
    def commit(self, stream: str, labels: list[str | None], rings: bool) -> None:
        self.log.labels[stream] += labels
        if rings and slot(stream) in self.confirmed:
            self.tell(Wake(stream, self.log.head(stream)))

    @rule(
        streams=st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a")]),
        back=st.sampled_from(["now", "all", "watermark", "watermark", 0, 1, 4, 50]),
        guest=st.booleans(),
        stale=st.booleans(),
        chunked=st.booleans(),
        room=st.sampled_from([100_000, 0, 50, 250]),
    )
    def connect(
        self,
        streams: tuple[str, ...],
        back: str | int,
        guest: bool = False,
        stale: bool = False,
        chunked: bool = True,
        room: int = 100_000,
    ) -> None:
        """A client with a token of now, or with an old one, which may have been revoked since.

        It begins so many events before the head, or at the watermark of a page that was made now.
        """
        self._connect(streams, [self._start(name, back) for name in streams], guest, stale, chunked, room)

    def _start(self, stream: str, back: str | int) -> Start:
        if back == "watermark":
            return self.log.watermark(stream)
        if isinstance(back, int):
            return Position(max(0, self.log.head(stream) - back))
        (start,) = parse(back, 1)
        return start

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), chunked=st.booleans())
    def come_back(self, data: st.DataObject, chunked: bool) -> None:
        """A client's connection ends, and it comes back with the last id that it has received."""
        fd = data.draw(st.sampled_from(sorted(self.clients)))
        last_id = self.clients[fd].last_id
        connection = self.dispatcher.registry.connection(fd)
        if last_id and connection is not None:
            self.dispatcher.writer.close(connection, "peer gone")
            streams = self.clients[fd].streams
            self._connect(streams, parse(last_id, len(streams)), chunked=chunked)

    def _connect(
        self,
        streams: Sequence[str],
        starts: Sequence[Start],
        guest: bool = False,
        stale: bool = False,
        chunked: bool = True,
        room: int = 100_000,
    ) -> None:
        fd = len(self.clients) + 10
        self.clients[fd] = Client(streams, starts, chunked)
        self.clients[fd].room = room
        context = Context(f"u{fd % 2}", frozenset({"mine"}), 0 if stale else self.issued)
        self.clients[fd].context = context
        if self.refuses(context):
            self.clients[fd].allowed = 0
        asked = tuple(zip(streams, starts, strict=True))
        self.tell(Connect(fd, Handoff(asked, context, str(fd), f"peer:{fd}", guest=guest, chunked=chunked)))

    @rule(stream=st.sampled_from(STREAMS), labels=st.lists(st.sampled_from(LABELS), min_size=1, max_size=4))
    def publish(self, stream: str, labels: list[str | None]) -> None:
        """Events are committed, and wait for their ids."""
        self.log.publish(stream, labels)

    @precondition(lambda self: any(self.log.unnumbered.values()))
    @rule(data=st.data(), room=ROOM, rings=st.booleans(), calm=st.booleans())
    def number(self, data: st.DataObject, room: int, rings: bool, calm: bool) -> None:
        """Some of the events without an id get one, in any order, among others, while a socket takes a part."""
        stream = data.draw(st.sampled_from([name for name in STREAMS if self.log.unnumbered[name]]))
        self.clients[data.draw(st.sampled_from(sorted(self.clients)))].room = room
        for seq in data.draw(st.permutations([seq for seq, _ in self.log.unnumbered[stream]])):
            what = data.draw(st.sampled_from(["number", "publish as well", "leave"]))
            self.log.labels[stream] += [None] if what == "publish as well" else []
            self.log.number(stream, [seq] if what != "leave" else [])
        if rings and slot(stream) in self.confirmed:
            self.tell(Wake(stream, self.log.head(stream)))
        if calm:
            self.calm()

    @precondition(lambda self: self.clients)
    @rule(stream=st.sampled_from(STREAMS), count=st.integers(1, 4), rooms=st.lists(ROOM, min_size=3, max_size=3))
    def burst(self, stream: str, count: int, rooms: list[int]) -> None:
        """Events for everybody arrive together while some sockets take only a part of them."""
        self.calm()
        for client, room in zip(self.clients.values(), rooms, strict=False):
            client.room = room
        self.commit(stream, [None] * count, True)
        self.calm()

    @precondition(lambda self: self.wanted)
    @rule()
    def listening(self) -> None:
        number = self.wanted.pop(0)
        self.confirmed.add(number)
        self.tell(Listening((number,)))

    @precondition(lambda self: self.reads)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self._answer(self.reads.pop(data.draw(st.integers(0, len(self.reads) - 1))))

    @precondition(lambda self: self.reads)
    @rule()
    def answer_from_an_older_snapshot(self) -> None:
        """The rows of a snapshot taken now arrive after another commit has rung."""
        read = self.reads.pop(0)
        pages = self.pages(read)
        stream = read.streams[0].name
        self.log.labels[stream].append(None)
        self.tell(Wake(stream, self.log.head(stream)))
        self.tell(Rows(read, pages, timeline=TIMELINE))

    @rule(
        stream=st.sampled_from(STREAMS),
        commits=st.integers(0, 3),
        back=st.integers(0, 3),
        strange=st.sampled_from([False, False, False, True]),
        at_once=st.booleans(),
    )
    def read_for_all(self, stream: str, commits: int, back: int, strange: bool = False, at_once: bool = True) -> None:
        """Another shard reads a page from so far before the head, or from a server with another log."""
        self.log.labels[stream] += [None] * commits
        after = max(0, self.log.head(stream) - back)
        page = self.log.page(stream, after)
        if strange:
            more = self.log.head(stream) + 1
            page = replace(page, head=more, frames=[*page.frames, Frame(more, "of another log")])
        told = BusPage(stream, after, page, "00000002" if strange else TIMELINE, self.now)
        if at_once:
            self.tell(told)
        else:
            self.on_the_bus.append(told)

    @precondition(lambda self: self.on_the_bus)
    @rule(data=st.data(), again=st.booleans())
    def bus_delivers(self, data: st.DataObject, again: bool) -> None:
        """The pages on the bus come in any order, twice or never."""
        place = data.draw(st.integers(0, len(self.on_the_bus) - 1))
        self.tell(self.on_the_bus[place])
        if not again:
            del self.on_the_bus[place]

    @rule(stream=st.sampled_from(STREAMS))
    def something_was_missed(self, stream: str) -> None:
        """The bus has lost a message of the stream's slot."""
        self.tell(Missed((slot(stream),)))

    @precondition(lambda self: self.reads)
    @rule()
    def refuse_read(self) -> None:
        self.tell(ReadFailed(self.reads.pop(0), "refused"))

    @precondition(lambda self: self.questions)
    @rule()
    def judge_predicate(self) -> None:
        connection, stream, label = self.questions.pop(0)
        self.tell(Verdict(connection, stream, label, label == "asked-yes"))

    @rule()
    def finish_batch(self) -> None:
        self.dispatcher.finish_batch()

    @rule()
    def calm(self) -> None:
        """Everybody answers for a while, so that clients become live; sockets stay as they are."""
        while self.parcels:
            self.parcel_arrives(taken=len(self.parcels) % 2 == 0)
        self.calm_but_for_parcels()

    def calm_but_for_parcels(self) -> None:
        for _ in range(4):
            self.dispatcher.finish_batch()
            while self.wanted:
                self.listening()
            while self.questions:
                self.judge_predicate()
            while self.reads:
                self.answer_now()

    def answer_now(self) -> None:
        self._answer(self.reads.pop(0))

    def pages(self, read: Read) -> tuple[Page, ...]:
        """What the log answers at this moment."""
        pages = [self.log.page(s.name, after) for s, after in zip(read.streams, read.after, strict=True)]
        for number, page in enumerate(pages):
            if self.narrow and page.frames and any(other.frames for other in pages[:number]):
                pages[number] = replace(page, frames=[], unread=True)
        return tuple(pages)

    def _answer(self, read: Read) -> None:
        self.tell(Rows(read, self.pages(read), asked_at=self.now, timeline=TIMELINE))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), room=ROOM)
    def socket_takes(self, data: st.DataObject, room: int) -> None:
        fd = data.draw(st.sampled_from(sorted(self.clients)))
        self.clients[fd].room = room
        if room:
            self.ready.add(fd)
            self.tell(Ready())

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        connection = self.dispatcher.registry.connection(data.draw(st.sampled_from(sorted(self.clients))))
        if connection is not None:
            self.dispatcher.writer.close(connection, "peer gone")

    @precondition(lambda self: self.clients)
    @rule(user=st.sampled_from(["u0", "u1"]))
    def revoke(self, user: str) -> None:
        """A user's tokens are revoked: whatever was not written by now never is, here or on the way elsewhere."""
        self.revoked[user] = self.issued
        self.issued += 1
        self.tell(Revised({}))
        for client in self.clients.values():
            if self.refuses(client.context) and client.allowed is None:
                client.allowed = client.events

    @rule(known=st.booleans())
    def revocations_are_known(self, known: bool) -> None:
        """The reading of revocations fails for a while: nothing is read from the log meanwhile."""
        self.knows_revocations = known
        if known:
            self.tell(Revised({}))

    @rule(streams=st.sets(st.sampled_from(STREAMS)), hot=st.sets(st.sampled_from(STREAMS)), everybody=st.booleans())
    def assign(self, streams: set[str], hot: AbstractSet[str] = frozenset(), everybody: bool = False) -> None:
        """Connections that begin with one of the streams, or are of a hot one, belong to another shard from now on."""
        paths = {slot(name): "/other.sock" for name in streams}
        spread = ("", "/other.sock") * (BUCKETS // 2)
        self.tell(Assign(repr(streams), paths, frozenset(hot), spread, everybody))
        self.dispatcher.finish_batch()

    @precondition(lambda self: self.parcels)
    @rule(taken=st.booleans(), older=st.booleans())
    def parcel_arrives(self, taken: bool, older: bool = False) -> None:
        """Another shard, which is this one in another role, takes the parcel; or it is given back.

        An older shard does not understand a connection whose body is in chunks, or that has pending events.
        """
        parcel = self.parcels.pop(0)
        assert parcel.fd not in self.ready
        # The stream may be new to the other shard, which does not know then what the cursor has to do with it.
        self.clients[parcel.fd].unharmed.clear()
        if taken:
            self.tell(MoveEnded("/other.sock"))
            again = decode(encode(parcel.handoff))
            self.tell(Connect(parcel.fd, again, parcel.unsent))
        else:
            misunderstood = older and (parcel.handoff.chunked or parcel.handoff.has_pending)
            if misunderstood and self.dispatcher.moves._assigned.everybody:
                self.clients[parcel.fd].allowed = self.clients[parcel.fd].events
            self.tell(MoveEnded("/other.sock", parcel, "refused", misunderstood))
        # A socket that can be written to is told of when it is registered.
        if self.clients[parcel.fd].room:
            self.ready.add(parcel.fd)
            self.tell(Ready())

    @rule(narrow=st.booleans())
    def reads_have_room_for_one_stream(self, narrow: bool) -> None:
        """Where events are large, a read has room for those of its first stream alone."""
        self.narrow = narrow

    @rule(stream=st.sampled_from(STREAMS), keep=st.integers(0, 4))
    def trim(self, stream: str, keep: int) -> None:
        self.log.trimmed[stream] = max(self.log.trimmed[stream], self.log.head(stream) - keep)

    @rule(stream=st.sampled_from(STREAMS), higher=st.integers(0, 3), calm=st.booleans())
    def forget(self, stream: str, higher: int, calm: bool = True) -> None:
        """The stream has no event for hours, in which the shard compares heads, and is forgotten."""
        if self.log.unnumbered[stream]:
            return
        self.log.trimmed[stream] = self.log.head(stream)
        for hours in (0, 1):
            self.now += hours * 3600.0
            self.tell(Sweep())
            self.calm()
        for fd, client in self.clients.items():
            if not self.knows_revocations:
                client.unharmed.clear()  # nothing is read for an hour, and nobody can know what has been in it
                continue
            connection = self.dispatcher.registry.connection(fd)
            for subscription in connection.subscriptions if connection else ():
                if subscription.stream.name == stream and subscription.position == self.log.head(stream):
                    client.unharmed[stream, subscription.position] = self.log.head(stream) + higher
        self.log.forget(stream, higher)
        if calm:
            self.calm()

    @rule(message=st.sampled_from([Tick(), Sweep(), Relistened()]))
    def time_passes(self, message: Message) -> None:
        self.now += 0.01
        self.tell(message)

    # -- what must hold

    @invariant()
    def live_means_at_the_head(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        for stream in self.dispatcher.registry.streams:
            for subscription in stream.live:
                assert subscription.state is SubscriptionState.LIVE
                assert subscription.position == stream.head
                assert subscription.connection.blocked_at is None
                alone = len(subscription.connection.subscriptions) == 1
                assert (subscription in stream.shared) == (not alone or subscription.pending is not None)

    @invariant()
    def states_are_those_of_each_connection(self) -> None:
        if hasattr(self, "dispatcher"):
            found = Counter(state_of(connection) for connection in self.dispatcher.registry)
            assert {state: n for state, n in connection_states(self.dispatcher.delivery).items() if n} == found

    @invariant()
    def presence_is_told_of_every_connection(self) -> None:
        assert getattr(self, "present", set()) == set(self.dispatcher.registry if hasattr(self, "dispatcher") else ())

    @invariant()
    def histories_are_in_order(self) -> None:
        for client in getattr(self, "clients", {}).values():
            client.judge(self.log)
            assert client.allowed is None or client.events <= client.allowed, "events for a revoked token"

    def teardown(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        self.assign(set())
        self.revocations_are_known(True)
        for name in STREAMS:
            self.log.number(name, [seq for seq, _ in self.log.unnumbered[name]])
        for _ in range(50):
            for fd, client in self.clients.items():
                client.room = 1_000_000
                self.ready.add(fd)
            self.tell(Ready())
            self.calm()
            self.tell(Sweep())
            self.tell(Tick())
        for client in self.clients.values():
            assert client.closed or client.allowed is None
            if not client.closed:
                client.whole(self.log)


DispatcherMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "300")),
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
TestDispatcher = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")(DispatcherMachine.TestCase)
