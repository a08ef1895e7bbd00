"""loadtests/checker.py and payload.py"""

import pytest

from headrace.node.sse_client import Message
from loadtests.checker import Checker
from loadtests.payload import Payload, Writer


def feed(checker: Checker, *messages: str | tuple[str, str]) -> list[str]:
    """The kinds of problems with events of these ids, or these (type, data)."""
    kinds = []
    for message in messages:
        made = Message(message, "message", "x") if isinstance(message, str) else Message("", *message)
        kinds += [problem.kind for problem in checker.take(made)]
    return kinds


@pytest.mark.parametrize(
    ("ids", "kinds"),
    [
        (["8", "9", "10"], []),
        (["8", "10", "11"], ["hole"]),
        (["9"], ["hole"]),
        (["8", "9", "9"], ["repeat"]),
        (["7"], ["repeat"]),
        (["8", "10", "9", "11"], ["hole", "disorder"]),
        (["8", "10", "9", "9"], ["hole", "disorder", "repeat"]),
        (["8", "3"], ["repeat"]),
        (["now"], ["malformed"]),
        (["8/0"], ["malformed"]),
        ([""], ["malformed"]),
    ],
)
def test_ids_of_one_stream(ids: list[str], kinds: list[str]) -> None:
    """After the cursor 7 the ids must be 8, 9, 10 …: what is missing, repeated or late is noticed, each once."""
    checker = Checker(["a"])
    assert checker.place("7") == []
    assert feed(checker, *ids) == kinds


def test_the_first_event_after_an_unknown_start_is_the_start() -> None:
    """Without a cursor at the start any id may come first."""
    checker = Checker(["a"])
    assert feed(checker, "5", "6", "8") == ["hole"]


@pytest.mark.parametrize(
    ("ids", "kinds"),
    [
        (["5.4.9/0", "5.5.9/1", "5.5.10/2"], []),
        (["5.4.9/0", "5.6.9/1"], ["hole"]),
        (["5.4.9/0", "5.4.9/0"], ["repeat"]),
        (["5.5.9/0", "5.6.9/1"], ["cursor"]),
        (["5.4.9"], ["malformed"]),
        (["5.4/0"], ["malformed"]),
        (["5.4.9/3"], ["malformed"]),
    ],
)
def test_ids_of_several_streams(ids: list[str], kinds: list[str]) -> None:
    """Each stream is checked for itself, and one stream's event must not claim another's."""
    checker = Checker(["a", "b", "c"])
    assert checker.place("4.4.9") == []
    assert feed(checker, *ids) == kinds


@pytest.mark.parametrize(
    ("ids", "kinds"),
    [
        (["8-81-3", "10-84", "11-84", "13"], []),
        (["8-81-3", "12"], ["hole"]),
        (["9-84", "12-84"], ["hole"]),
        (["10"], []),
        (["8-81-3", "10-84", "10-84"], ["repeat"]),
        (["8"], ["hole"]),
    ],
)
def test_what_is_pending_is_left_out(ids: list[str], kinds: list[str]) -> None:
    """Each event that leaves the cursor's set explains one id that is passed over, and no more."""
    checker = Checker(["a"])
    assert checker.place("7-81-3") == []
    assert feed(checker, *ids) == kinds


def test_a_cursor_alone_tells_of_what_was_left_out() -> None:
    """The server's word runs ahead of the events by those that were left out, of each stream for itself."""
    checker = Checker(["a", "b"])
    assert checker.place("7-81-3.4-90") == []
    assert checker.place("8-84.4-90") == []
    assert feed(checker, "8-84.6/1") == []
    assert [problem.kind for problem in checker.place("9-84.6")] == ["cursor"]


def test_a_connection_that_begins_elsewhere_is_noticed() -> None:
    """After a reconnect the server must say that the client is where it is, neither before nor after."""
    checker = Checker(["a"])
    checker.place("7")
    feed(checker, "8")
    assert checker.cursor == "8"
    assert [problem.kind for problem in checker.place("8")] == []
    assert [problem.kind for problem in checker.place("9")] == ["cursor"]


def test_sentinels_of_loss_are_problems() -> None:
    """A gap and a reset are each reported once, and the check goes on where they lead; a goodbye is no loss."""
    checker = Checker(["a"])
    checker.place("7")
    assert feed(checker, ("headrace:gap", '{"stream": "a", "missed_from": 8, "missed_to": 11}'), "12") == ["gap"]
    assert feed(checker, ("headrace:reset", '{"stream": "a", "head": 3}'), "4", "5") == ["reset"]
    assert feed(checker, ("headrace:goodbye", '{"reason": "shutdown"}'), "6") == []
    assert feed(checker, ("headrace:gap", "{}")) == ["malformed"]


def test_events_missing_at_the_end_are_noticed() -> None:
    """What the log has and nobody received is a hole, though no later event shows it."""
    checker = Checker(["a", "b"])
    assert [problem.kind for problem in checker.behind([0, 0])] == ["hole", "hole"]
    checker.place("3.4")
    assert checker.behind([3, 4]) == []
    assert [problem.kind for problem in checker.behind([3, 5])] == ["hole"]


def test_contents_are_checked_beside_ids() -> None:
    """With ids in order, a lost, repeated or rolled back event is still noticed by what it contains."""
    writer = Writer()
    committed = []
    for _ in range(4):
        committed += writer.texts(["a"], 200)
        writer.committed(["a"])
    phantom = writer.texts(["a"], phantom=True)[0]
    checker = Checker(["a"])
    checker.place("0")

    def take(id_: int, text: str) -> list[str]:
        return [p.kind for p in checker.take(Message(str(id_), "message", text), Payload.decode(text))]

    assert take(1, committed[0]) == []
    assert take(2, committed[1]) == []
    assert take(3, committed[3]) == ["content"]
    assert take(4, committed[3]) == ["content"]
    assert take(5, phantom) == ["phantom"]


def test_payloads_can_be_read_back() -> None:
    """A payload has the size that was asked for, tells its age and its number; other text is not one."""
    first, second = Writer().texts(["a", "a"], 300)
    payload = Payload.decode(second)
    assert payload is not None
    assert (len(first), payload.number) == (300, 2)
    assert 0 <= payload.age_ms() < 60_000
    assert Payload.decode(Writer().texts(["a"])[0]) is not None
    assert Payload.decode("hello") is None
