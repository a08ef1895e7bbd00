"""The judge: compares what the log gives out with what the transactions have done. Pure; nothing here does I/O.

each publication of a committed transaction is in the log once, unaltered, and nothing else is
ids rise by one, except over recorded jumps; the head is the last id
each chain's events are in the order of its versions, a transaction's deferred events in the order of the calls
a transaction that follows another has higher ids (`commit_order.py`)
a page shows exactly the events up to its head and those that its watermark names; a page whose watermark was read
before its rows shows at least these
an id that was returned by publish_now is the event's
what a follower has read is what the log has, and at the end nothing is pending
a commit that was answered is there
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from loadtests.log_torture import commit_order
from loadtests.log_torture.commit_order import Link, Placed
from loadtests.log_torture.log_calls import MAX_PENDING, LogEvent, StreamRead, Watermark
from loadtests.log_torture.notes import Fingerprint, Page, TransactionNote, Violation, fingerprint


@dataclass(frozen=True, slots=True)
class Publication:
    """A row of torture.publication."""

    token: int
    stream: str
    transaction: int
    chain: str | None
    version: int | None
    id: int | None


@dataclass(slots=True)
class Truth:
    """All that a database holds at the end: the log as it gives it out, and the application's tables.

    watermarks are those of the end, when nobody publishes any more. chains has the last versions.
    """

    log: dict[str, StreamRead]
    watermarks: dict[str, Watermark]
    publications: dict[int, Publication]
    links: list[Link]
    chains: dict[str, int]
    places: dict[int, LogEvent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for read in self.log.values():
            for event in read.events:
                self.places.setdefault(event.token, event)

    def committed(self) -> set[int]:
        """The numbers of the transactions that have published and are committed."""
        return {one.transaction for one in self.publications.values()}


def judge(truth: Truth, notes: Mapping[int, TransactionNote]) -> Iterator[Violation]:
    """Every way in which the log differs from what the transactions did, apart from pages and followers."""
    yield from _presence(truth, notes)
    yield from _numbers(truth)
    yield from _calls(truth, notes)
    placed: dict[int, list[Placed]] = {}
    for one in truth.publications.values():
        if (event := truth.places.get(one.token)) is not None:
            turn = notes[one.transaction].turn(one.token)
            placed.setdefault(one.transaction, []).append(Placed(one.stream, event.id, turn))
    for detail in commit_order.disorders(notes, placed, truth.links):
        yield Violation("order", detail)


def _presence(truth: Truth, notes: Mapping[int, TransactionNote]) -> Iterator[Violation]:
    for one in truth.publications.values():
        if one.token not in truth.places:
            yield Violation("lost", f"{one.stream}: event {one.token} of transaction {one.transaction}")
        elif one.id is not None and truth.places[one.token].id != one.id:
            yield Violation(
                "returned id", f"{one.stream}: {one.token} has {truth.places[one.token].id}, told was {one.id}"
            )
    seen: set[int] = set()
    for name, read in truth.log.items():
        for event in read.events:
            known = truth.publications.get(event.token)
            if known is None or known.stream != name:
                yield Violation(
                    "phantom", f"{name}: event {event.id} has the token {event.token}, which is not committed"
                )
            elif event.token in seen:
                yield Violation("repeated", f"{name}: {event.token} has a second id, {event.id}")
            else:
                said = notes[known.transaction].published[event.token]
                if (event.data, event.type or "message", event.visible_to) != (
                    said.data,
                    said.type or "message",
                    said.visible_to,
                ):
                    yield Violation(
                        "altered", f"{name}: event {event.id} differs from what {event.token} has published"
                    )
            seen.add(event.token)


def _numbers(truth: Truth) -> Iterator[Violation]:
    for name, read in truth.log.items():
        last, jumps = 0, list(read.jumps)
        for event in read.events:
            while jumps and jumps[0][0] == last + 1:
                last = jumps.pop(0)[1]
            if event.id != last + 1:
                yield Violation("gap", f"{name}: {event.id} comes after {last}; jumps {read.jumps}")
            last = event.id
        while jumps and jumps[0][0] == last + 1:
            last = jumps.pop(0)[1]
        if jumps:
            yield Violation("gap", f"{name}: the jumps {jumps} are not where ids are missing")
        if read.head != last:
            yield Violation("head", f"{name}: the head is {read.head}, the last id {last}")
        if truth.watermarks[name] != Watermark(read.head):
            yield Violation(
                "pending", f"{name}: at the end the watermark is {truth.watermarks[name]}, the head {read.head}"
            )


def _calls(truth: Truth, notes: Mapping[int, TransactionNote]) -> Iterator[Violation]:
    """A transaction's deferred events of one stream have ids in the order of their calls."""
    calls: dict[tuple[int, str], list[tuple[int, int, int]]] = {}
    for token, event in truth.places.items():
        one = truth.publications.get(token)
        if one is not None and not (said := notes[one.transaction].published[token]).now:
            calls.setdefault((one.transaction, one.stream), []).append((said.step, token, event.id))
    for (transaction, stream), some in calls.items():
        for (_, earlier, first), (_, later, second) in pairwise(sorted(some)):
            if second < first:
                yield Violation(
                    "order", f"{stream}: {later} of transaction {transaction} precedes its earlier {earlier}"
                )


def judge_follower(name: str, seen: Mapping[str, Mapping[int, int]], truth: Truth) -> Iterator[Violation]:
    """Whether a follower has read what the log has, up to where it has read."""
    for stream, tokens in seen.items():
        log = {event.id: event.token for event in truth.log[stream].events if event.id <= max(tokens, default=0)}
        if log != tokens:
            wrong = sorted(id_ for id_ in log.keys() | tokens.keys() if log.get(id_) != tokens.get(id_))
            yield Violation(
                "read", f"{name}: {stream} at {wrong[0]}: read {tokens.get(wrong[0])}, now {log.get(wrong[0])}"
            )


def judge_acknowledged(truth: Truth, notes: Iterable[TransactionNote]) -> Iterator[Violation]:
    """Whether each transaction of these, whose COMMIT was answered, is there."""
    there = truth.committed()
    for note in notes:
        if note.number not in there:
            yield Violation("lost", f"transaction {note.number} was committed, and is not there")


def judge_pages(pages: Sequence[Page], truth: Truth) -> Iterator[Violation]:
    """Whether each page and the stream behind its watermark make up all that was published, nothing twice."""
    by_stream: dict[str, list[Page]] = {}
    for page in pages:
        by_stream.setdefault(page.stream, []).append(page)
    for stream, some in by_stream.items():
        events = truth.log[stream].events
        by_seq = {event.seq: event for event in events if event.seq is not None}
        prefix, versions, at = Fingerprint(), dict[str, int](), 0
        for page in sorted(some, key=lambda one: one.watermark.head):
            while at < len(events) and events[at].id <= page.watermark.head:
                prefix += fingerprint(events[at].token)
                _reach(versions, truth, events[at])
                at += 1
            told, reached = prefix, dict(versions)
            for seq in sorted(page.watermark.pending):
                event = by_seq.get(seq)
                if event is None or event.id <= page.watermark.head:
                    yield Violation("page", f"{_named(page)} names {seq}, which is {event or 'no event of the stream'}")
                else:
                    told += fingerprint(event.token)
                    _reach(reached, truth, event)
            yield from _compare(page, told, reached)


def _reach(versions: dict[str, int], truth: Truth, event: LogEvent) -> None:
    one = truth.publications.get(event.token)
    if one is not None and one.chain is not None and one.version is not None:
        versions[one.chain] = max(versions.get(one.chain, 0), one.version)


def _compare(page: Page, told: Fingerprint, reached: Mapping[str, int]) -> Iterator[Violation]:
    """The page's rows beside what its watermark stands for."""
    beyond = page.shown.count - told.count
    too_many = not page.watermark.pending and beyond > MAX_PENDING  # then the watermark is the plain head
    if page.exact and page.shown != told and not too_many:
        yield Violation("page", f"{_named(page)} shows {beyond} events more than it stands for; {page.shown} {told}")
    if beyond < 0:
        yield Violation("page", f"{_named(page)} shows {-beyond} events less than it stands for")
    for chain, version in page.versions.items():
        if version < reached.get(chain, 0):
            yield Violation(
                "page", f"{_named(page)} shows {chain} at {version}, and stands for {reached.get(chain, 0)}"
            )


def _named(page: Page) -> str:
    return f"a page of {page.stream} at {page.watermark} ({page.way})"
