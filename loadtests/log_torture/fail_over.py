"""The judge of a fail-over: compares the log of the server that was killed with that of the standby in its place. Pure.

A standby may lack what the killed server had committed last. What it lacks is lost. But

    an id that anybody may have seen is never another event's
    a page or a client of the killed server that goes on at the standby misses nothing that the standby has
    it gets nothing twice. One exception is counted: where the standby has a publication and lacks its numbering, the
    event gets another id there
"""

from collections.abc import Iterator, Mapping, Sequence

from loadtests.log_torture.judge import Truth
from loadtests.log_torture.notes import Notes, Page, TransactionNote, Violation


def judge_ids(old: Truth, new: Truth, heads: Mapping[str, int]) -> Iterator[Violation]:
    """Whether each id that the killed server gave out, up to these heads, is the same event's at the standby."""
    for stream, read in old.log.items():
        tokens = {event.id: event.token for event in new.log[stream].events}
        for event in read.events:
            if event.id <= heads[stream] and tokens.get(event.id, event.token) != event.token:
                yield Violation("reused id", f"{stream}: {event.id} was {event.token} and became {tokens[event.id]}")


def judge_followed(
    name: str, seen: Mapping[str, Mapping[int, int]], old: Truth, new: Truth, notes: Notes
) -> Iterator[Violation]:
    """Whether a follower has read what the two servers had, and nothing of the standby's log is missing."""
    for stream, tokens in seen.items():
        before = {event.id: event.token for event in old.log[stream].events}
        behind = {event.id: event.token for event in new.log[stream].events if event.id <= max(tokens, default=0)}
        for id_ in sorted(behind.keys() | tokens.keys()):
            if tokens.get(id_) != behind.get(id_, before.get(id_)):
                yield Violation("read", f"{name}: {stream} at {id_}: read {tokens.get(id_)}, not {behind.get(id_)}")
        repeated = len(tokens) - len(set(tokens.values()))
        notes.count("events repeated by a fail-over", repeated)


def judge_pages_kept(pages: Sequence[Page], old: Truth, new: Truth, notes: Notes) -> Iterator[Violation]:
    """Whether pages of the killed server whose clients go on at the standby miss nothing and get nothing twice."""
    for page in pages:
        head, pending = page.watermark.head, page.watermark.pending
        shown = {
            event.token for event in old.log[page.stream].events if event.id <= head or (event.seq or -1) in pending
        }
        for event in new.log[page.stream].events:
            left_out = event.id <= head or (event.seq or -1) in pending
            if left_out and event.token not in shown:
                yield Violation(
                    "page", f"a page of {page.stream} at {page.watermark} leaves out {event}, which it does not show"
                )
            elif not left_out and event.token in shown:
                moved = old.places[event.token].id != event.id
                notes.count("events of pages repeated by a fail-over", moved)
                if not moved:
                    yield Violation("page", f"a page of {page.stream} at {page.watermark} gets {event} again")


def kept(notes: Sequence[TransactionNote], era: int, position: int, synchronous: bool) -> list[TransactionNote]:
    """Of these transactions those that the standby must have.

    It was promoted before this era, and has the write-ahead log up to this position. synchronous: commits waited for
    it.
    """
    return [
        note
        for note in notes
        if note.ended is not None
        and (
            note.era >= era
            or (note.position is not None and note.position <= position)
            or (synchronous and note.synchronous)
        )
    ]
