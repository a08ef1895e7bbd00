"""The judge: compares what each client was sent with what PostgreSQL committed. Pure; nothing here does I/O.

What a client is owed, per stream of its connection:

    every committed event that it may see, after the cursor it began with, once, in the order of ids, unaltered
    no event that it may not see, and none that was not committed
    of a page and its stream together: each event once, in either of them
    a cursor (any `id:`) that never goes back and never passes an event which it has not been sent
    a gap for ids that retention has removed, and for no others; a reset never, since no log here is replaced
    a connection that stays until the client leaves or stops reading for too long, its token expires, or its shard dies

Times are seconds of one monotonic clock that publishers, subscribers and faults share.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from headrace import cursor
from headrace.cursor import Position
from headrace.errors import CursorError
from loadtests.torture.stream_log import Committed, StreamLog

MAX_SHOWN_IDS: Final = 12
DATED_AHEAD: Final = "dated ahead"
"""The ending of a connection that was refused because its token was issued before the clock was set back."""


@dataclass(slots=True)
class Received:
    """A frame that a client has received: an event, a cursor (an id alone), or a sentinel (a type alone)."""

    at: float
    id: str | None = None
    type: str | None = None
    data: str | None = None


@dataclass(slots=True)
class ClientConnection:
    """One connection of a client.

    sent is the cursor in the client's request, None if it asked for `now` or `all`. shown has the nonces, as bits, of
    the transactions on the page that was made for the connection, None where there is none. opened_at is when the
    response's head came. ending is empty while it lasts, else: `left` (by the client), `cut` (by the server),
    `goodbye <reason>`, `refused <status>`, `dated ahead`, or `unanswered`. stalled_s is the client's longest pause in
    reading. port is the client's own; shard is the first shard that took it.
    """

    request_id: str
    sent: str | None
    asked_at: float
    opened_at: float | None = None
    ended_at: float | None = None
    ending: str = ""
    stalled_s: float = 0.0
    port: int = 0
    shard: str = ""
    malformed: str = ""
    shown: int | None = None
    frames: list[Received] = field(default_factory=list)


@dataclass(slots=True)
class ClientHistory:
    """Everything that one client asked for and received. start is `now`, `all`, `page` or a cursor."""

    client: str
    kind: str
    streams: tuple[str, ...]
    start: str
    user: str = ""
    audiences: frozenset[str] = frozenset()
    ttl_s: float | None = None
    sessions: list[ClientConnection] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Death:
    """The end, or a pause, of a shard's process by a fault: it may end the connections of the shard's clients.

    ports are those of the clients whose sockets the process held in that moment, as connections move between shards.
    """

    shard: str
    at: float
    how: str  # "killed", "stopped" or "paused"
    ports: frozenset[int] = frozenset()
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: which kind, to whom, about what, on which connection and when."""

    kind: str
    client: str
    stream: str
    ids: tuple[int, ...]
    at: float
    text: str
    request_id: str = ""
    shard: str = ""

    def __str__(self) -> str:
        where = f" on {self.stream[:40]!r}" if self.stream else ""
        ids = f" ids {ranges(self.ids)}" if self.ids else ""
        of = f" (request {self.request_id}, shard {self.shard or 'unknown'})" if self.request_id else ""
        return f"{self.kind}: {self.client}{where}{ids}: {self.text}{of}"


@dataclass(frozen=True, slots=True)
class Owed:
    """What the judge knows beside the log: who sees which label, which shards died, how long a client may stall."""

    sees: Callable[[ClientHistory, str, str], bool]
    deaths: Sequence[Death] = ()
    write_deadline_s: float = 30.0
    handoff_deadline_s: float = 2.0


def judge(history: ClientHistory, logs: Mapping[str, StreamLog], owed: Owed, *, at_end: float) -> list[Violation]:
    """All promises broken to one client. at_end is when the run was over and everything had to have arrived."""
    return [*_Walk(history, logs, owed).violations(at_end), *_endings(history, owed)]


def note_ids(history: ClientHistory, logs: Mapping[str, StreamLog]) -> None:
    """Note in the logs which ids a client was told, and when. MUST be done with all histories before one is judged."""
    for session in history.sessions:
        for frame in session.frames:
            with suppress(CursorError):
                for name, start in zip(
                    history.streams, cursor.parse(frame.id or "", len(history.streams)), strict=True
                ):
                    if isinstance(start, Position) and name in logs:
                        logs[name].told(start.id, frame.at)


def delivered(history: ClientHistory) -> int:
    """How many events the client received."""
    return sum(1 for session in history.sessions for frame in session.frames if frame.id and frame.data is not None)


def ranges(ids: Sequence[int]) -> str:
    """Ids as text such as `3-7,9`; of many ranges the first MAX_SHOWN_IDS."""
    parts: list[list[int]] = []
    for id_ in ids:
        if parts and id_ == parts[-1][1] + 1:
            parts[-1][1] = id_
        else:
            parts.append([id_, id_])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in parts[:MAX_SHOWN_IDS]]
    return ",".join(shown) + (f",… ({len(ids)} in all)" if len(parts) > MAX_SHOWN_IDS else "")


class _Walk:
    """Goes through one client's frames, and keeps for each stream the position that the client has reached."""

    def __init__(self, history: ClientHistory, logs: Mapping[str, StreamLog], owed: Owed) -> None:
        self._history = history
        self._logs = [logs.get(name) or StreamLog(()) for name in history.streams]
        self._visible = [
            log.visible(lambda label, name=name: owed.sees(history, name, label))  # type: ignore[misc]
            for log, name in zip(self._logs, history.streams, strict=True)
        ]
        self._positions: list[int | None] = [None] * len(history.streams)
        self._had: set[tuple[int, int]] = set()
        self._shown = 0
        self._excused: set[int] = set()
        self._session = ClientConnection("", None, 0.0)
        self._found: list[Violation] = []
        self._at = 0.0

    def violations(self, at_end: float) -> list[Violation]:
        for session in self._history.sessions:
            self._begin(session)
            for frame in session.frames:
                self._at = frame.at
                self._frame(frame)
            if session.malformed:
                self._report("malformed", None, (), f"not a frame: {session.malformed[:200]!r}")
        self._at = at_end
        for index, position in enumerate(self._positions):
            if position is None:
                self._report("starved", index, (), "never learned its cursor")
            elif missed := self._between(index, position, None):
                self._report("lost", index, missed, f"never arrived; the client stands at {position}")
        return self._found

    def _begin(self, session: ClientConnection) -> None:
        self._session = session
        self._at = session.asked_at
        if session.shown is not None:
            self._shown = session.shown
            self._excused = set()
        if session.sent is not None:
            starts = cursor.parse(session.sent, len(self._positions))
            self._positions = [start.id if isinstance(start, Position) else None for start in starts]
        else:
            self._positions = [None] * len(self._positions)

    def _frame(self, frame: Received) -> None:
        if frame.id is None:
            self._sentinel(frame)
            return
        text, _, number = frame.id.partition("/")
        try:
            starts = cursor.parse(frame.id, len(self._positions))
            ids = [start.id for start in starts if isinstance(start, Position)]
        except CursorError as error:
            self._report("malformed", None, (), str(error))
            return
        if len(ids) != len(self._positions) or (len(ids) > 1 and frame.data is not None and not number):
            self._report("malformed", None, (), f"an id of another shape: {text[:80]!r}")
            return
        event_of = None if frame.data is None else int(number or 0)
        # The event's own stream comes last: then the others' positions are those from before this event.
        for index, id_ in enumerate(ids):
            if index != event_of:
                self._cursor(index, id_)
        if event_of is not None:
            self._event(event_of, ids[event_of], frame)

    def _event(self, index: int, id_: int, frame: Received) -> None:
        position = self._positions[index]
        if position is None:
            self._report("malformed", index, (id_,), "an event came before the first cursor")
            position = id_ - 1
        if id_ <= position:
            kind = "repeated" if (index, id_) in self._had else "disordered"
            self._report(kind, index, (id_,), f"came at {position}")
        elif missed := self._between(index, position, id_ - 1):
            self._report("lost", index, missed, f"skipped from {position} to {id_}")
        self._had.add((index, id_))
        self._positions[index] = max(position, id_)
        event = self._logs[index].events.get(id_)
        if event is None:
            self._report("invented", index, (id_,), f"was never committed: {(frame.data or '')[:80]!r}")
        elif (frame.data, frame.type) != (event.data, event.type):
            got, sent = f"{frame.type} {(frame.data or '')[:60]!r}", f"{event.type} {event.data[:60]!r}"
            self._report("altered", index, (id_,), f"arrived as {got}, was published as {sent}")
        elif self._shows(event) and index not in self._excused:
            self._report("repeated", index, (id_,), "is on the client's page")
        elif not _contains(self._visible[index], id_):
            self._report("leaked", index, (id_,), f"has the label {event.label!r}, which is hidden from this client")

    def _cursor(self, index: int, id_: int) -> None:
        position = self._positions[index]
        if position is None:
            self._start(index, id_)
        elif id_ < position:
            self._report("disordered", index, (id_,), f"the cursor went back from {position} to {id_}")
        elif missed := self._between(index, position, id_):
            self._report("lost", index, missed, f"the cursor went from {position} to {id_} without them")
        self._positions[index] = max(position or 0, id_)

    def _start(self, index: int, id_: int) -> None:
        """Check the first cursor of a client that asked for `now` or `all`."""
        if self._history.start == "all":
            if id_ > self._logs[index].trimmed_to:
                self._report("lost", index, (id_,), "`all` began after events that are kept")
            return
        for event_id in self._visible[index]:
            event = self._logs[index].events[event_id]
            if event_id <= id_ and event.began is not None and event.began > self._at:
                self._report("lost", index, (event_id,), f"`now` began at {id_}, before this was committed")
            # An event that was committed long before may have got its id afterwards.
            if id_ < event_id <= self._logs[index].head_before(self._session.asked_at):
                self._report("repeated", index, (event_id,), f"`now` began at {id_}, though others had this")

    def _sentinel(self, frame: Received) -> None:
        kind = (frame.type or "").removeprefix("headrace:")
        if kind == "goodbye":
            return
        try:
            value = json.loads(frame.data or "{}")
            name, first, last, head = (value.get(key) for key in ("stream", "missed_from", "missed_to", "head"))
            numbers = (first, last) if kind == "gap" else (head,)
            if any(type(number) is not int for number in numbers):
                raise TypeError
        except (ValueError, TypeError, AttributeError):
            self._report("malformed", None, (), f"a sentinel {frame.type!r} that says {(frame.data or '')[:80]!r}")
            return
        if kind not in ("gap", "reset") or name not in self._history.streams:
            self._report("malformed", None, (), f"a sentinel {frame.type!r} for {name!r}")
            return
        index = self._history.streams.index(name)
        # Then the client loads its page anew, and may be sent what that shows.
        self._excused.add(index)
        if kind == "reset":
            self._report("reset", index, (), f"was told of a reset to {head}, which nothing owes it")
            self._positions[index] = head
            return
        position = self._positions[index]
        trimmed_to = self._logs[index].trimmed_to
        if last > trimmed_to:
            self._report("gap", index, (first, last), f"was told of a gap; removed is nothing above {trimmed_to}")
        if position is not None:
            if first <= position:
                self._report("gap", index, (first, last), f"was told of a gap from below its position {position}")
            elif missed := self._between(index, position, first - 1):
                self._report("lost", index, missed, f"lie between {position} and the gap from {first} to {last}")
        self._positions[index] = max(position or 0, last)

    def _between(self, index: int, after: int, up_to: int | None) -> tuple[int, ...]:
        """The ids that the client may see above `after`, up to and including `up_to` (None: the head).

        Those that its page shows are not among them.
        """
        ids = self._visible[index]
        low = bisect_right(ids, after)
        found = ids[low : len(ids) if up_to is None else bisect_right(ids, up_to)]
        events = self._logs[index].events
        return tuple(id_ for id_ in found if not self._shows(events[id_])) if self._shown else tuple(found)

    def _shows(self, event: Committed) -> bool:
        return bool(self._shown >> event.nonce & 1)

    def _report(self, kind: str, index: int | None, ids: Sequence[int], text: str) -> None:
        stream = "" if index is None else self._history.streams[index]
        session = self._session
        client = f"{self._history.client} ({self._history.kind})"
        self._found.append(
            Violation(kind, client, stream, tuple(ids), self._at, text, session.request_id, session.shard)
        )


def _endings(history: ClientHistory, owed: Owed) -> Iterator[Violation]:
    """Connections that the server has ended without a reason that the judge knows."""
    for session in history.sessions:
        if session.opened_at is None and session.ending.startswith("refused "):
            status = session.ending.removeprefix("refused ")
            if status not in ("429", "503"):
                yield _ending(history, session, f"was refused with status {status}")
        elif (
            session.opened_at is not None
            and session.ending not in ("", "left")
            and not _is_owed(history, session, owed)
        ):
            yield _ending(history, session, f"was disconnected ({session.ending}), which nothing owes it")


def _is_owed(history: ClientHistory, session: ClientConnection, owed: Owed) -> bool:
    ended_at = session.ended_at or session.asked_at
    expired = history.ttl_s is not None and ended_at - session.asked_at > history.ttl_s - 2
    if session.ending == "goodbye expired":
        return expired
    if session.ending == "goodbye shutdown":
        stops = [death for death in owed.deaths if death.how == "stopped"]
        return any(_hits(death, session, owed) or _was_moving(death, history, session, owed) for death in stops)
    if session.ending != "cut":
        return False
    # A client whose socket is full cannot be told goodbye: it is just closed.
    if session.stalled_s > 0.8 * owed.write_deadline_s or expired:
        return True
    return any(_hits(death, session, owed) for death in owed.deaths)


def _hits(death: Death, session: ClientConnection, owed: Owed) -> bool:
    """Whether the connection was at that shard when it died, or on its way there."""
    ended_at = session.ended_at or session.asked_at
    if death.how == "paused":
        # A connection on its way to the paused shard is shut down, since it must never have two writers; those that the
        # shard holds stay.
        shut_down_from = death.at + 0.8 * owed.handoff_deadline_s
        shut_down_until = (death.until or death.at) + owed.handoff_deadline_s
        return session.port not in death.ports and shut_down_from <= ended_at <= shut_down_until
    if not death.at - 0.5 <= ended_at or not session.asked_at <= death.at + 0.5:
        return False
    under_way = session.shard in ("", death.shard) and session.asked_at > death.at - owed.handoff_deadline_s
    return session.port in death.ports or under_way


def _was_moving(stop: Death, history: ClientHistory, session: ClientConnection, owed: Owed) -> bool:
    """Whether the connection may have been on its way to a shard that was told to stop.

    That happens when other shards give connections to it in that moment: it takes those, and tells them goodbye.
    """
    ended_at = session.ended_at or session.asked_at
    late = history.kind in ("slow", "stalling")  # such clients read the goodbye long after it was sent
    return session.asked_at <= stop.at <= ended_at and (late or ended_at <= stop.at + owed.handoff_deadline_s)


def _ending(history: ClientHistory, session: ClientConnection, text: str) -> Violation:
    client = f"{history.client} ({history.kind})"
    at = session.ended_at or session.asked_at
    return Violation("disconnected", client, "", (), at, text, session.request_id, session.shard)


def _contains(ids: Sequence[int], id_: int) -> bool:
    index = bisect_left(ids, id_)
    return index < len(ids) and ids[index] == id_
