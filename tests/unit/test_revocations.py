"""What a shard makes of the revocations that it reads."""

from typing import Any

import pytest

from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, Revised
from headrace.shard.postgres.revocations import LEASE_S, MOVING_S, Revocations
from headrace.shard.postgres.sql_functions import Revocation
from headrace.tokens import Context


class House:
    """Revocations with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.inbox: Inbox[Message] = Inbox()
        self.revocations = Revocations(Settings(), self.inbox, "n-0", clock=lambda: self.now)

    def take(self, *items: Revocation, whole: bool = False) -> list[Message]:
        """Take a reading; returns what the dispatcher is told."""
        self.revocations.take(items, whole=whole)
        return self.inbox.take(wait=False)


def of_user(user: str, issued_to_ms: int, id_: int = 1) -> Revocation:
    return Revocation(id_, user, None, f"to {issued_to_ms}", issued_to_ms, 0)


def of_stream(stream: str, id_: int = 1, age_ms: int = 0) -> Revocation:
    return Revocation(id_, None, stream, "closed", 0, age_ms)


@pytest.fixture
def house() -> House:
    made = House()
    made.take(whole=True)
    return made


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"user": "ada", "issued_ms": 5000}, "to 5000"),
        ({"user": "ada", "issued_ms": 0}, "to 5000"),
        ({"user": "ada", "issued_ms": 5001}, ""),
        ({"user": "Ada", "issued_ms": 0}, ""),
        ({"user": None, "issued_ms": 0}, ""),
        ({"user": "", "issued_ms": 1}, "to 1"),
        ({"user": "", "issued_ms": 2}, ""),
    ],
)
def test_whose_tokens_are_refused(house: House, context: dict[str, Any], reason: str) -> None:
    """A token of exactly that user is refused if it was issued by then, that millisecond included."""
    house.take(of_user("ada", 5000), of_user("", 1, 2))
    assert house.revocations.refuses(Context(**context)) == reason


def test_the_latest_counts(house: House) -> None:
    """Rows may come in any order, and again; an older one takes nothing back, and only news is told."""
    assert house.take(of_user("ada", 5000)) == [Revised({})]
    assert house.take(of_user("ada", 3000, 2), of_user("ada", 5000)) == []
    assert house.revocations.refuses(Context("ada", issued_ms=4000)) == "to 5000"
    assert house.take(of_user("ada", 6000, 3)) == [Revised({})]
    assert house.revocations.refuses(Context("ada", issued_ms=6000)) == "to 6000"


def test_a_reading_of_everything_replaces_what_was_known(house: House) -> None:
    """What PostgreSQL has forgotten is forgotten, so memory is bounded by what it keeps."""
    house.take(of_user("ada", 5000))
    house.take(of_user("bob", 1), whole=True)
    assert house.revocations.refuses(Context("ada")) == ""
    assert house.revocations.refuses(Context("bob"))


def test_a_stream_is_disconnected_once(house: House) -> None:
    """However often its row is read, also when everything is read anew."""
    assert house.take(of_stream("s")) == [Revised({"s": "closed"})]
    assert house.take(of_stream("s")) == []
    assert house.take(of_stream("s"), whole=True) == []
    assert house.take(of_stream("s", 2)) == [Revised({"s": "closed"})]


def test_a_disconnect_from_before_the_start_is_past(house: House) -> None:
    """A shard that reads for the first time late does not close those who wait for what was before them."""
    house.now += 20
    assert house.take(of_stream("s", age_ms=20_001), of_stream("t", 2, 19_999)) == [Revised({"t": "closed"})]


def test_who_was_between_shards_is_disconnected_on_arrival(house: House) -> None:
    """For as long as a connection can be on its way, counted from the disconnect and not from when it was read."""
    house.take(of_stream("s", age_ms=10_000))
    assert house.revocations.missed(["t", "s"]) == "closed"
    assert house.revocations.missed(["t"]) == ""
    house.take(whole=True)
    assert house.revocations.missed(["s"]) == "closed"
    house.now += MOVING_S - 10
    assert house.revocations.missed(["s"]) == ""


def test_events_are_read_while_the_last_reading_is_young() -> None:
    """Not before the first, not when it is too old; the dispatcher is told when it is young again."""
    house = House()
    assert not house.revocations.current()
    assert not house.revocations.wait_loaded(0)
    assert house.take(whole=True) == [Revised({})]
    assert house.revocations.current()
    assert house.revocations.wait_loaded(0)
    assert house.take() == []
    house.now += LEASE_S + 0.1
    assert not house.revocations.current()
    assert house.take() == [Revised({})]
    assert house.revocations.current()
