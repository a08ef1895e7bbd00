"""loadtests/log_torture: its judge finds the fault in a log that is wrong in one way, and none in one that is right."""

from collections.abc import Callable

import pytest

from loadtests.log_torture.commit_order import Link
from loadtests.log_torture.fail_over import judge_followed, judge_ids, judge_pages_kept, kept
from loadtests.log_torture.judge import (
    Publication,
    Truth,
    judge,
    judge_acknowledged,
    judge_follower,
    judge_pages,
)
from loadtests.log_torture.log_calls import LogEvent, StreamRead, Watermark, parse_watermark
from loadtests.log_torture.notes import AFTER_TURN, Fingerprint, Notes, Page, Published, TransactionNote, fingerprint

Notebook = dict[int, TransactionNote]


def scene() -> tuple[Truth, Notebook]:
    """Three transactions: 2 has waited for 1 in the row s/0, 3 has begun after 2. Each has published one event to s."""
    notes = {
        1: TransactionNote(1, "read committed", 1.0, 5.0, 6.0),
        2: TransactionNote(2, "read committed", 2.0, 7.0, 8.0),
        3: TransactionNote(3, "read committed", 9.0, 10.0, 11.0),
    }
    for number, note in notes.items():
        note.published[number] = Published(number, "s", f"{number}", "message", None, step=2)
    truth = truth_of([1, 2, 3])
    truth.links = [Link("s/0", 1, 1, 1), Link("s/0", 2, 2, 1)]
    return truth, notes


def truth_of(tokens: list[int], *, first: int = 1, seqs: dict[int, int] | None = None) -> Truth:
    """A log of the stream s with these tokens, one transaction each."""
    events = [LogEvent(first + at, (seqs or {}).get(t), None, f"{t}", None) for at, t in enumerate(tokens)]
    jumps = [(1, first - 1)] if first > 1 else []
    head = events[-1].id if events else 0
    return Truth(
        log={"s": StreamRead(head, jumps, events=events)},
        watermarks={"s": Watermark(head)},
        publications={t: Publication(t, "s", t, f"s/{t}", 1, None) for t in tokens},
        links=[],
        chains={},
    )


def swapped(truth: Truth, one: int, other: int) -> None:
    """Exchange the places of two events."""
    events = truth.log["s"].events
    first, second = events[one], events[other]
    events[one] = LogEvent(first.id, None, None, second.data, None)
    events[other] = LogEvent(second.id, None, None, first.data, None)
    truth.places = {event.token: event for event in events}


def kinds(truth: Truth, notes: Notebook) -> set[str]:
    return {violation.kind for violation in judge(truth, notes)}


def test_what_is_right_passes() -> None:
    """A log in the order of the commits has no violation, nor have pages of it."""
    truth, notes = scene()
    assert kinds(truth, notes) == set()
    assert list(judge_acknowledged(truth, notes.values())) == []
    page = Page("s", 0, Watermark(2), True, fingerprint(1) + fingerprint(2), {"s/1": 1, "s/2": 1}, "")
    assert list(judge_pages([page], truth)) == []
    assert list(judge_follower("f", {"s": {1: 1, 2: 2}}, truth)) == []


def lose(truth: Truth, notes: Notebook) -> None:
    truth.log["s"].events.pop()
    truth.places.pop(3)


def repeat(truth: Truth, notes: Notebook) -> None:
    truth.log["s"].events.append(LogEvent(4, None, None, "3", None))


def publish_nothing(truth: Truth, notes: Notebook) -> None:
    truth.publications.pop(3)


def alter(truth: Truth, notes: Notebook) -> None:
    truth.log["s"].events[2] = LogEvent(3, None, None, "3:x", None)


def leave_a_gap(truth: Truth, notes: Notebook) -> None:
    truth.log["s"].events[2] = LogEvent(5, None, None, "3", None)


def raise_the_head(truth: Truth, notes: Notebook) -> None:
    truth.log["s"].head = 4


def leave_pending(truth: Truth, notes: Notebook) -> None:
    truth.watermarks["s"] = Watermark(3, frozenset({7}))


def tell_a_wrong_id(truth: Truth, notes: Notebook) -> None:
    truth.publications[2] = Publication(2, "s", 2, "s/2", 1, 3)


def break_the_order_of_waiting(truth: Truth, notes: Notebook) -> None:
    swapped(truth, 0, 1)


def break_the_order_of_time(truth: Truth, notes: Notebook) -> None:
    swapped(truth, 1, 2)


def break_the_order_over_a_third(truth: Truth, notes: Notebook) -> None:
    """1 and 3 have waited for each other by way of 2, which publishes elsewhere; their times overlap."""
    notes[3].began = 2.0
    truth.links = [Link("s/0", 1, 1, 1), Link("s/0", 2, 2, 1), Link("t/0", 1, 2, 1), Link("t/0", 2, 3, 1)]
    swapped(truth, 0, 2)
    event = truth.log["s"].events.pop(1)
    truth.log["t"] = StreamRead(1, [], events=[LogEvent(1, None, None, event.data, None)])
    truth.log["s"].events[1] = LogEvent(2, None, None, "1", None)
    truth.log["s"].head = 2
    truth.watermarks = {"s": Watermark(2), "t": Watermark(1)}
    truth.publications[2] = Publication(2, "t", 2, "t/0", 1, None)
    notes[2].published[2] = Published(2, "t", "2", "message", None, step=2)
    truth.places = {event.token: event for read in truth.log.values() for event in read.events}


def break_the_order_of_calls(truth: Truth, notes: Notebook) -> None:
    truth.publications[3] = Publication(3, "s", 2, "s/3", 1, None)
    notes[2].published[3] = Published(3, "s", "3", "message", None, step=1)
    notes[3].published.clear()


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("lost", lose),
        ("repeated", repeat),
        ("phantom", publish_nothing),
        ("altered", alter),
        ("gap", leave_a_gap),
        ("head", raise_the_head),
        ("pending", leave_pending),
        ("returned id", tell_a_wrong_id),
        ("order", break_the_order_of_waiting),
        ("order", break_the_order_of_time),
        ("order", break_the_order_over_a_third),
        ("order", break_the_order_of_calls),
    ],
)
def test_a_fault_is_found(kind: str, fault: Callable[[Truth, Notebook], None]) -> None:
    """Each fault is a violation of its kind."""
    truth, notes = scene()
    fault(truth, notes)
    assert kind in kinds(truth, notes)


def test_a_chain_got_after_the_turn_obliges_nobody() -> None:
    """An event whose turn came before its transaction waited may have any place; transactions behind it may not."""
    truth, notes = scene()
    truth.links[1] = Link("s/0", 2, 2, AFTER_TURN)
    swapped(truth, 0, 1)
    assert kinds(truth, notes) == set()
    notes[2].firings.append(3)
    truth.links[1] = Link("s/0", 2, 2, 4)
    assert kinds(truth, notes) == set()
    truth.links[1] = Link("s/0", 2, 2, 3 - 1)
    assert kinds(truth, notes) == {"order"}


def test_a_commit_that_was_answered_is_there() -> None:
    """A transaction whose COMMIT was answered and that has left nothing is a violation."""
    truth, notes = scene()
    truth.publications.pop(2)
    assert [violation.kind for violation in judge_acknowledged(truth, notes.values())] == ["lost"]


@pytest.mark.parametrize(
    ("head", "pending", "tokens", "exact", "right"),
    [
        (2, (), [1, 2], True, True),
        (1, (83,), [1, 3], True, True),
        (1, (), [1, 3], True, False),  # the set is missing: 3 comes again
        (1, (83,), [1], True, False),  # the set names what is not shown: 3 is lost
        (2, (82,), [1, 2], True, False),  # the set names what the head covers
        (1, (99,), [1], True, False),  # the set names what nobody has published
        (1, (), [1, 3], False, True),  # the head was read before the rows
        (2, (), [1], False, False),  # 2 is lost
    ],
)
def test_pages(head: int, pending: tuple[int, ...], tokens: list[int], exact: bool, right: bool) -> None:
    """A page shows what is up to its head and what its set names, and nothing else; a late one shows at least that."""
    truth = truth_of([1, 2, 3], seqs={1: 81, 2: 82, 3: 83})
    shown = sum((fingerprint(token) for token in tokens), start=Fingerprint())
    page = Page("s", 0, Watermark(head, frozenset(pending)), exact, shown, {f"s/{t}": 1 for t in tokens}, "")
    assert (list(judge_pages([page], truth)) == []) == right


def test_a_page_with_too_many_pending_events_has_the_plain_head() -> None:
    """With more than 500 events that have no id a page begins at its head, and its client gets them again."""
    truth = truth_of(list(range(1, 600)))
    for count, right in ((500, False), (501, True)):
        shown = sum((fingerprint(token) for token in range(1, 11 + count)), start=Fingerprint())
        page = Page("s", 0, Watermark(10), True, shown, {}, "")
        assert (list(judge_pages([page], truth)) == []) == right


def test_watermarks_are_read_strictly() -> None:
    """Numbers follow the head as differences; what is no watermark is refused."""
    assert parse_watermark("17") == Watermark(17)
    assert parse_watermark("17-81-3-1") == Watermark(17, frozenset({81, 84, 85}))
    for text in ("", "17-", "-81", "17-0", "17-81-0", "17,81", "17-081", "017", "now", "17-" + "-".join(["1"] * 501)):
        with pytest.raises(ValueError, match=r"watermark|difference|pending"):
            parse_watermark(text)


def test_after_a_fail_over_an_id_stays_that_of_its_event() -> None:
    """An id that the killed server has given out is not another event's at the standby; what it has lost is."""
    old, new = truth_of([1, 2, 3]), truth_of([1, 2, 4])
    assert [violation.kind for violation in judge_ids(old, new, {"s": 3})] == ["reused id"]
    assert list(judge_ids(old, new, {"s": 2})) == []
    notes = Notes()
    assert list(judge_followed("f", {"s": {1: 1, 2: 2, 3: 4}}, old, new, notes)) == []
    assert [v.kind for v in judge_followed("f", {"s": {1: 1, 3: 4}}, old, new, notes)] == ["read"]


def test_after_a_fail_over_a_page_misses_nothing() -> None:
    """A number of a set that is used again hides another event, and an event with its old id does not come twice."""
    old = truth_of([1, 2, 3], seqs={3: 83})
    page = Page("s", 0, Watermark(2, frozenset({83})), True, Fingerprint(), {}, "")
    assert list(judge_pages_kept([page], old, truth_of([1, 2]), Notes())) == []
    hidden = truth_of([1, 2, 4], seqs={4: 83})
    assert [violation.kind for violation in judge_pages_kept([page], old, hidden, Notes())] == ["page"]
    plain = Page("s", 0, Watermark(3), True, Fingerprint(), {}, "")
    moved, counts = truth_of([1, 2]), Notes()
    moved.log["s"].events.append(LogEvent(100, None, None, "3", None))  # behind a jump
    assert list(judge_pages_kept([plain], old, moved, counts)) == []
    assert counts.counts["events of pages repeated by a fail-over"] == 1


def test_what_a_standby_must_have() -> None:
    """It must have what was committed at it, what lies before its position, and commits that waited for it."""
    notes = [
        TransactionNote(1, "read committed", 1.0, 2.0, 3.0, position=50),
        TransactionNote(2, "read committed", 1.0, 2.0, 3.0, position=70),
        TransactionNote(3, "read committed", 1.0, 2.0, 3.0, position=70, synchronous=False),
        TransactionNote(4, "read committed", 1.0, 2.0, 3.0, position=90, era=1),
        TransactionNote(5, "read committed", 1.0, 2.0, None, era=1),
    ]
    assert [note.number for note in kept(notes, 1, 60, False)] == [1, 4]
    assert [note.number for note in kept(notes, 1, 60, True)] == [1, 2, 4]
