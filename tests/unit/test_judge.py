"""The torture's judge: a clean history passes, and each kind of broken promise is found."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtests.torture.judge import (
    ClientConnection,
    ClientHistory,
    Death,
    Owed,
    Received,
    delivered,
    judge,
    note_ids,
    ranges,
)
from loadtests.torture.stream_log import Committed, StreamLog

LABELS = {4: "staff", 7: "staff"}
END = 100.0


def log(count: int = 9, trimmed_to: int = 0) -> StreamLog:
    """Ids from 1 on, of which 4 and 7 are for the staff; each committed at the second of its id."""
    return StreamLog(
        (
            Committed(id_, f"data {id_}", "message", LABELS.get(id_), id_ - 0.1, id_ + 0.1, nonce=id_)
            for id_ in range(1, 1 + count)
        ),
        trimmed_to,
    )


def cursor(id_: str, at: float = 0.5) -> Received:
    return Received(at, id_)


def event(number: int, id_: str = "", type_: str = "message") -> Received:
    return Received(number + 0.2, id_ or str(number), type_, f"data {number}")


def gap(first: int, last: int, stream: str = "s") -> Received:
    value = f'{{"stream":"{stream}","missed_from":{first},"missed_to":{last}}}'
    return Received(5.0, None, "headrace:gap", value)


def session(*frames: Received, sent: str | None = "0", **more: object) -> ClientConnection:
    made = ClientConnection("r", sent, 0.4, opened_at=0.45, frames=list(frames))
    return replace(made, **more)  # type: ignore[arg-type]


def staff(*sessions: ClientConnection, streams: tuple[str, ...] = ("s",), start: str = "0") -> ClientHistory:
    """A client that sees everything."""
    return ClientHistory("c", "steady", streams, start, "u1", frozenset({"staff"}), sessions=list(sessions))


def guest(*sessions: ClientConnection) -> ClientHistory:
    """A client from which events 4 and 7 are hidden."""
    return ClientHistory("c", "steady", ("s",), "0", "u2", sessions=list(sessions))


def kinds(
    history: ClientHistory,
    *,
    trimmed_to: int = 0,
    deaths: tuple[Death, ...] = (),
    others: tuple[ClientHistory, ...] = (),
) -> list[str]:
    owed = Owed(lambda client, stream, label: label in client.audiences, deaths, write_deadline_s=8)
    logs = {"s": log(trimmed_to=trimmed_to), "t": log(3)}
    for known in (history, *others):
        note_ids(known, logs)
    return [violation.kind for violation in judge(history, logs, owed, at_end=END)]


def all_events(*but: int) -> list[Received]:
    return [event(number) for number in range(1, 10) if number not in but]


def shows(*nonces: int) -> int:
    """A page that shows these transactions."""
    return sum(1 << nonce for nonce in nonces)


PAGE = {"sent": "2-81-1", "shown": shows(1, 2, 4, 7)}


def test_a_page_and_its_stream_are_one() -> None:
    """What the page shows is not owed, on further connections too, until the client loads its page anew."""
    came = [cursor("2-81-1"), event(3, "3-81-1"), event(5, "5-82"), event(6, "6-82"), event(8), event(9)]
    assert kinds(staff(session(*came, **PAGE))) == []
    assert kinds(staff(session(*came[:3], **PAGE), session(*came[3:], sent="5-82"))) == []
    again = session(event(9), sent="6", shown=shows(*range(1, 9)))
    assert kinds(staff(session(*came[:3], **PAGE), again)) == []
    told = [cursor("2-81-1"), gap(3, 5), cursor("5"), event(6), event(7), event(8), event(9)]
    assert kinds(staff(session(*told, **PAGE)), trimmed_to=5) == [], "after a gap it may be sent what the page shows"


@pytest.mark.parametrize(
    ("came", "kind"),
    [
        ([event(3), event(4), event(5), event(6), event(8), event(9)], "repeated"),
        ([event(3), event(6), event(8), event(9)], "lost"),
        ([event(3), event(5), cursor("8"), event(9)], "lost"),
    ],
)
def test_a_page_and_its_stream_that_are_not_one(came: list[Received], kind: str) -> None:
    """An event that the page shows comes again, or one that it does not show never comes."""
    assert set(kinds(staff(session(*came, **PAGE)))) == {kind}


def test_a_clean_history_passes() -> None:
    """Everything that is visible, once and in order, over one connection and over several."""
    assert kinds(staff(session(cursor("0"), *all_events()))) == []
    assert kinds(guest(session(cursor("0"), *all_events(4, 7), cursor("9")))) == []
    assert kinds(guest(session(*all_events(4, 7)[:4]), session(*all_events(4, 7)[4:], sent="5"))) == []


def test_a_client_of_several_streams_passes() -> None:
    """Composite ids move one position each; the cursor of a stream where events were hidden may run ahead."""
    frames = [
        cursor("0.0"),
        event(1, "1.0/0"),
        event(1, "1.1/1"),
        *(event(number, f"{number}.1/0") for number in range(2, 10)),
        event(2, "9.2/1"),
        event(3, "9.3/1"),
    ]
    assert kinds(staff(session(*frames, sent="0.0"), streams=("s", "t"))) == []


def test_now_behind_what_others_had() -> None:
    """An event that another client had before may not come; one that was committed before may have got its id later."""
    came = [replace(one, at=9.7) for one in all_events()[6:]]
    late = staff(session(cursor("6", at=9.6), *came, sent=None, asked_at=9.5), start="now")
    assert kinds(late) == []
    assert kinds(late, others=(guest(session(*all_events(4, 7, 8, 9))),)) == []
    assert kinds(late, others=(guest(session(*all_events(4, 7))),)) == ["repeated"] * 3


BROKEN: dict[str, tuple[str, Callable[[], ClientHistory]]] = {
    "skipped": ("lost", lambda: staff(session(*all_events(5)))),
    "missing at the end": ("lost", lambda: staff(session(*all_events(8, 9)))),
    "lost between two connections": (
        "lost",
        lambda: staff(session(*all_events()[:4]), session(*all_events()[5:], sent="4")),
    ),
    "passed by a cursor": ("lost", lambda: staff(session(*all_events()[:4], cursor("5"), *all_events()[5:]))),
    "passed by the cursor of another stream": (
        "lost",
        lambda: staff(
            session(
                *(event(n, f"{n}.{max(0, n - 6)}/0") for n in range(1, 10)),
                sent="0.0",
            ),
            streams=("s", "t"),
        ),
    ),
    "twice": ("repeated", lambda: staff(session(*all_events()[:5], event(5), *all_events()[5:]))),
    "twice over a reconnect": ("repeated", lambda: staff(session(*all_events()), session(event(9), sent="9"))),
    "out of order": ("disordered", lambda: staff(session(*all_events(5)[:6], event(5), *all_events()[7:]))),
    "a cursor that goes back": ("disordered", lambda: staff(session(*all_events(), cursor("3")))),
    "another payload": (
        "altered",
        lambda: staff(session(*all_events()[:8], Received(9.2, "9", "message", "data 9, cut"))),
    ),
    "another type": ("altered", lambda: staff(session(*all_events()[:8], event(9, type_="note")))),
    "never committed": ("invented", lambda: staff(session(*all_events(), event(10)))),
    "of another audience": ("leaked", lambda: guest(session(*all_events(7)))),
    "a gap for what is kept": ("gap", lambda: staff(session(gap(1, 3), *all_events(1, 2, 3)))),
    "a reset": (
        "reset",
        lambda: staff(session(*all_events(), Received(9.5, None, "headrace:reset", '{"stream":"s","head":9}'))),
    ),
    "an event before the first cursor": (
        "malformed",
        lambda: staff(session(*all_events(), sent=None), start="now"),
    ),
    "a torn frame": ("malformed", lambda: staff(session(*all_events(), malformed="data: 7id: 8"))),
    "an id of another shape": ("malformed", lambda: staff(session(*all_events(), cursor("9.9")))),
    "no cursor ever": ("starved", lambda: staff(session(sent=None), start="now")),
    "now, ahead of the head": ("lost", lambda: staff(session(cursor("9", at=3.0), sent=None), start="now")),
    "all, without what is kept": ("lost", lambda: staff(session(cursor("9"), sent=None), start="all")),
    "cut off": ("disconnected", lambda: staff(session(*all_events(), ending="cut", ended_at=9.5))),
    "told goodbye": ("disconnected", lambda: staff(session(*all_events(), ending="goodbye shutdown", ended_at=9.5))),
    "refused": (
        "disconnected",
        lambda: staff(session(opened_at=None, ending="refused 404"), session(*all_events())),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_promise_is_found(name: str) -> None:
    """Each kind of violation is reported as what it is."""
    kind, make = BROKEN[name]
    found = set(kinds(make()))
    # What comes out of order was missing where it belonged.
    assert found == {kind} or (kind == "disordered" and found == {kind, "lost"})


def test_a_gap_that_retention_owes_passes() -> None:
    """What was removed before the client came is told by a gap; what lies outside the gap is still owed."""
    assert kinds(staff(session(gap(1, 3), cursor("3"), *all_events(1, 2, 3))), trimmed_to=5) == []
    assert kinds(staff(session(gap(1, 3), cursor("3"), *all_events(1, 2, 3, 4))), trimmed_to=5) == ["lost"]
    assert kinds(staff(session(event(1), gap(3, 4), *all_events(1, 2, 3, 4))), trimmed_to=5) == ["lost"]
    assert kinds(staff(session(event(1), event(2), gap(2, 4), *all_events(1, 2, 3, 4))), trimmed_to=5) == ["gap"]


def test_a_disconnect_that_is_owed_passes() -> None:
    """The shard that held the socket died, the client stalled for too long, left, or its token expired."""
    cut = session(*all_events(), ending="cut", ended_at=9.5, port=7, shard="n-0")
    death = Death("n-1", 9.4, "killed", frozenset({7}))
    assert kinds(staff(cut), deaths=(death,)) == []
    assert kinds(staff(cut), deaths=(replace(death, ports=frozenset({8})),)) == ["disconnected"]
    assert kinds(staff(cut), deaths=(replace(death, at=20.0),)) == ["disconnected"]
    paused = Death("n-1", 5.0, "paused", until=8.0)
    assert kinds(staff(cut), deaths=(paused,)) == []
    assert kinds(staff(cut), deaths=(replace(paused, ports=frozenset({7})),)) == ["disconnected"]
    assert kinds(staff(replace(cut, stalled_s=7.9))) == []
    assert kinds(staff(replace(cut, ending="left"))) == []
    goodbye = replace(cut, ending="goodbye shutdown")
    assert kinds(staff(goodbye), deaths=(death,)) == ["disconnected"]
    assert kinds(staff(goodbye), deaths=(replace(death, how="stopped"),)) == []
    # On its way there, among the others that were moved.
    stop = replace(death, how="stopped", ports=frozenset())
    assert kinds(staff(goodbye), deaths=(replace(stop, at=goodbye.ended_at - 1),)) == []
    assert kinds(staff(goodbye), deaths=(replace(stop, at=goodbye.ended_at - 3),)) == ["disconnected"]
    expired = staff(replace(cut, ending="goodbye expired"))
    assert kinds(expired) == ["disconnected"]
    expired.ttl_s = 10.0
    assert kinds(expired) == []
    # A full socket takes no goodbye.
    expired.sessions[0].ending = "cut"
    assert kinds(expired) == []


def test_a_refusal_for_the_moment_is_no_violation() -> None:
    """503 and connections that were never opened promise nothing, as long as everything arrives in the end."""
    refused = session(opened_at=None, ending="refused 503")
    unanswered = session(opened_at=None, ending="unanswered")
    assert kinds(staff(refused, unanswered, session(*all_events()))) == []


def test_an_account_is_short() -> None:
    """A violation names the client, the stream, the ids as ranges, and the request."""
    history = staff(session(*all_events(2, 3, 6)))
    owed = Owed(lambda client, stream, label: True)
    said = [str(violation) for violation in judge(history, {"s": log()}, owed, at_end=END)]
    assert said[0] == "lost: c (steady) on 's' ids 2-3: skipped from 1 to 4 (request r, shard unknown)"
    assert delivered(history) == 6
    assert ranges([1, 2, 3, 5, 7, 8]) == "1-3,5,7-8"
    assert ranges(range(0, 40, 2)) == "0,2,4,6,8,10,12,14,16,18,20,22,… (20 in all)"
