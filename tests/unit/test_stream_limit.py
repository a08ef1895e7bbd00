"""How many streams a publisher token may make, and how long it has to wait for more."""

import pytest

from headrace.router import stream_limit
from headrace.router.stream_limit import StreamLimit


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_ten_seconds_worth_at_once_and_then_the_rate(clock: Clock) -> None:
    """A token makes what ten seconds allow in one go; a refused request is told how long to wait, uncounted."""
    limit = StreamLimit(5.0, clock)
    assert [limit.wait_s("token", count) for count in (30, 20, 1, 10)] == [0.0, 0.0, 0.2, 2.0]
    clock.now += 2.0
    assert [limit.wait_s("token", count) for count in (10, 1)] == [0.0, 0.2]
    clock.now += 3600.0
    assert limit.wait_s("token", 50) == 0.0


def test_each_token_has_a_limit_of_its_own(clock: Clock) -> None:
    """One token's streams hold up no other."""
    limit = StreamLimit(1.0, clock)
    assert limit.wait_s("one", 10) == 0.0
    assert limit.wait_s("one", 1) == 1.0
    assert limit.wait_s("other", 10) == 0.0


def test_a_request_for_more_than_there_is_room(clock: Clock) -> None:
    """It is let in when the token has made nothing lately, since it could never be otherwise, and is paid for later."""
    limit = StreamLimit(1.0, clock)
    assert limit.wait_s("token", 25) == 0.0
    assert limit.wait_s("token", 25) == 25.0
    clock.now += 25.0
    assert limit.wait_s("token", 25) == 0.0


def test_no_stream_costs_nothing(clock: Clock) -> None:
    """Whoever publishes to streams that exist is never refused."""
    limit = StreamLimit(1.0, clock)
    assert limit.wait_s("token", 10) == 0.0
    assert limit.wait_s("token", 0) == 0.0


def test_known_names_are_not_asked_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are remembered, up to a number; without a limit no name is asked for."""
    monkeypatch.setattr(stream_limit, "MAX_NAMES", 2)
    limit = StreamLimit(1.0, clock)
    limit.know(["a", "b", "c"])
    assert limit.unknown(["a", "b", "c", "d"]) == ["a", "d"]
    assert StreamLimit(0.0, clock).unknown(["a"]) == []


def test_tokens_are_forgotten_in_order(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a number of tokens, the one that has asked for no stream for longest may begin anew."""
    monkeypatch.setattr(stream_limit, "MAX_TOKENS", 2)
    limit = StreamLimit(1.0, clock)
    assert [limit.wait_s(token, 10) for token in ("one", "two", "three")] == [0.0, 0.0, 0.0]
    assert [limit.wait_s(token, 10) for token in ("three", "two", "one")] == [10.0, 10.0, 0.0]
