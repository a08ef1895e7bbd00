"""Exchanges over a hand-off channel, with real sockets and a scripted shard in threads."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cursor import Position
from headrace.node import handoff, socket_passing
from headrace.node.handoff import Handoff, HandoffAnswer, Moved
from headrace.node.socket_passing import Channels, Outcome
from headrace.tokens import Context
from tests.fixtures import scripted_shard
from tests.fixtures.descriptors import no_free_descriptor
from tests.fixtures.scripted_shard import Script, ScriptedShard
from tests.fixtures.waiting import DEADLINE_S

MESSAGE = handoff.forms(Handoff((("room:1", Position(3)),), Context(), "r", "h:1"))


@pytest.fixture
def channels() -> Iterator[Channels]:
    """Channels to a shard that answers, however long that takes on this machine."""
    made = Channels(deadline_s=DEADLINE_S)
    yield made
    made.close()


@pytest.fixture
def impatient(channels: Channels) -> Channels:
    """The same, to a shard that does not answer."""
    channels._deadline_s = 0.1
    return channels


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a client's connection: the router's and the browser's."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE_S)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def shard(runtime_dir: Path) -> Iterator[ScriptedShard]:
    made = ScriptedShard(runtime_dir / "s.sock", scripted_shard.accepts)
    yield made
    made.stop()


def give(channels: Channels, shard: ScriptedShard, client: socket.socket) -> Outcome:
    return channels.give(str(shard.path), MESSAGE, client).outcome


def open_to(client: socket.socket, browser: socket.socket) -> bool:
    client.send(b"?")
    return browser.recv(1) == b"?"


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (scripted_shard.accepts, Outcome.ACCEPTED),
        (scripted_shard.refuses, Outcome.REFUSED),
        (scripted_shard.ends, Outcome.UNREACHABLE),
    ],
)
def test_a_clear_end_leaves_the_client_as_it_is(
    channels: Channels,
    shard: ScriptedShard,
    pair: tuple[socket.socket, socket.socket],
    script: Script,
    outcome: Outcome,
) -> None:
    """An answer, or an end of the channel, says who has the client, and the connection stays open."""
    shard.script = script
    assert give(channels, shard, pair[0]) is outcome
    assert open_to(*pair)


def test_an_older_shard_is_offered_an_older_form(
    channels: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A refusal for the version leads to the older form on the same channel, and is not asked for again there."""
    shard.script = scripted_shard.speaks_no_chunks
    chunked = Handoff((("room:1", Position(3)),), Context(), "r", "h:1", chunked=True)
    for _ in range(2):
        assert channels.give(str(shard.path), handoff.forms(chunked), pair[0]).outcome is Outcome.ACCEPTED
    assert [message.chunked for message in shard.messages] == [True, False, False]
    begun = handoff.forms(replace(chunked, moved=Moved()))
    passed = channels.give(str(shard.path), begun, pair[0])
    assert (passed.outcome, passed.reason) == (Outcome.REFUSED, handoff.REFUSED_VERSION)
    assert len(shard.messages) == 3
    assert open_to(*pair)


def test_what_a_shard_speaks_is_forgotten_with_its_channel(
    channels: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A successor at the same path is offered the newest form again."""
    shard.script = scripted_shard.speaks_no_chunks
    forms = handoff.forms(Handoff((("room:1", Position(3)),), Context(), "r", "h:1", chunked=True))
    assert channels.give(str(shard.path), forms, pair[0]).outcome is Outcome.ACCEPTED
    shard.stop()
    shard.script = scripted_shard.accepts
    shard.start()
    assert channels.give(str(shard.path), forms, pair[0]).outcome is Outcome.ACCEPTED
    assert [message.chunked for message in shard.messages] == [True, False, True]


@pytest.mark.parametrize(
    ("patience", "script"), [("impatient", scripted_shard.says_nothing), ("channels", scripted_shard.babbles)]
)
def test_an_unclear_end_closes_the_client(
    request: pytest.FixtureRequest,
    shard: ScriptedShard,
    pair: tuple[socket.socket, socket.socket],
    patience: str,
    script: Script,
) -> None:
    """When the shard may believe that it has the client, nobody can write to it any more."""
    shard.script = script
    assert give(request.getfixturevalue(patience), shard, pair[0]) is Outcome.SILENT
    assert pair[1].recv(1) == b""
    with pytest.raises(BrokenPipeError):
        shard.client().send(b"x")


def test_a_late_answer_is_not_taken_for_another_clients(
    impatient: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """After silence the channel is closed, so the next client's answer is its own: here a refusal."""
    shard.script = scripted_shard.says_nothing
    assert give(impatient, shard, pair[0]) is Outcome.SILENT
    impatient._deadline_s = DEADLINE_S
    shard.script = scripted_shard.refuses
    shard.woken.set()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert give(impatient, shard, ours) is Outcome.REFUSED


def test_a_killed_exchange_closes_the_client(
    channels: Channels,
    shard: ScriptedShard,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the greenlet is killed between the message and the answer, the client is shut down."""

    class Killed(BaseException):
        """What gevent raises in a killed greenlet is no Exception either."""

    def die(data: bytes) -> HandoffAnswer:
        raise Killed

    monkeypatch.setattr("headrace.node.socket_passing.decode_answer", die)
    with pytest.raises(Killed):
        give(channels, shard, pair[0])
    assert pair[1].recv(1) == b""


def test_channels_are_used_again(
    channels: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Exchanges one after the other need one channel."""
    for _ in range(3):
        assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    assert len(shard.channels) == 1


def test_a_stale_channel_is_replaced_once(
    channels: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A shard that was restarted is reached at once; one that is gone is unreachable."""
    assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    shard.stop()
    assert give(channels, shard, pair[0]) is Outcome.UNREACHABLE
    shard.start()
    assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    shard.stop()
    shard.start()
    assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    assert open_to(*pair)


def test_a_shard_that_accepts_no_channel_is_stalled(
    channels: Channels, runtime_dir: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    """With a full backlog, as of a stopped process, nothing was sent and nobody waits."""
    path = runtime_dir / "full.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        for each in waiting:
            each.setblocking(False)
        waiting[0].connect(str(path))
        with pytest.raises(BlockingIOError):
            waiting[1].connect(str(path))
        assert channels.give(str(path), MESSAGE, pair[0]).outcome is Outcome.STALLED
        assert not channels.reachable(str(path))
        for each in waiting:
            each.close()
    path.unlink()
    assert open_to(*pair)


def test_what_cannot_be_connected_is_unreachable(
    channels: Channels, runtime_dir: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    """No socket, no listener and a path that is too long are all the next shard's turn."""
    dead = runtime_dir / "dead.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(dead))
    for path in (str(runtime_dir / "none.sock"), str(dead), "/x" * 200):
        assert channels.give(path, MESSAGE, pair[0]).outcome is Outcome.UNREACHABLE
        assert not channels.reachable(path)
    dead.unlink()
    assert open_to(*pair)


def test_without_a_free_descriptor_the_client_stays_ours(
    channels: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A process that can open no channel can still answer its client."""
    with no_free_descriptor():
        assert give(channels, shard, pair[0]) is Outcome.UNREACHABLE
    assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    assert open_to(*pair)


def test_channels_are_dropped_with_their_shard(
    channels: Channels, shard: ScriptedShard, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Probing keeps no channel open, and channels to shards that are no longer known are closed."""
    for _ in range(3):
        assert channels.reachable(str(shard.path))
    assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    before = len(shard.channels)
    channels.retain({"/some/other.sock"})
    assert give(channels, shard, pair[0]) is Outcome.ACCEPTED
    assert len(shard.channels) == before + 1


class Turn:
    """A lock on which nobody waits: what happens while somebody would is done at once."""

    meanwhile: Callable[[], bool]

    def acquire(self, timeout: float = -1) -> bool:
        """The first call is by the one who makes it, the second waits."""
        return timeout < 0 or Turn.meanwhile()

    def release(self) -> None:
        """Nobody waits."""


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> socket_passing._Places:
    """Two places, both of which are taken."""
    monkeypatch.setattr(socket_passing, "Lock", Turn)
    made = socket_passing._Places(2)
    assert take(made)
    assert take(made)
    return made


def take(places: socket_passing._Places, *goes_on: bool) -> bool:
    """Take a place; goes_on is what is answered after each wait in vain, the last one to every further question."""
    answers = [*goes_on] or [False]
    return places.take(1, lambda: answers.pop(0) if len(answers) > 1 else answers[0])


def free_places(places: socket_passing._Places) -> int:
    """How many places can be taken without a wait; they are taken."""
    Turn.meanwhile = lambda: False
    free = 0
    while take(places):
        free += 1
    return free


def test_a_place_that_is_given_back_is_the_next_ones(places: socket_passing._Places) -> None:
    """Who waits is given the place; who has waited in vain is given none later."""

    def given() -> bool:
        places.free()
        return True

    Turn.meanwhile = given
    assert take(places)
    Turn.meanwhile = lambda: False
    assert not take(places)
    places.free()
    assert free_places(places) == 1


def test_who_waits_on_keeps_the_turn(places: socket_passing._Places) -> None:
    """A wait that is prolonged stays where it is in the queue, and ends after some times."""
    waits = 0

    def given_at_the_third() -> bool:
        nonlocal waits
        waits += 1
        if waits == 3:
            places.free()
        return waits == 3

    Turn.meanwhile = given_at_the_third
    assert take(places, True)
    assert (waits, list(places._waiting)) == (3, [])
    turns: list[object] = []

    def given_never() -> bool:
        turns.extend(places._waiting)
        return False

    Turn.meanwhile = given_never
    assert not take(places, True, True, False)
    assert (len(turns), len(set(turns))) == (3, 1)
    turns.clear()
    assert not take(places, True)
    assert (len(turns), list(places._waiting)) == (socket_passing.MAX_WAITS, [])


def test_a_place_that_comes_with_the_end_of_the_wait_is_taken(places: socket_passing._Places) -> None:
    """A wait that ends while a place is being given has the place, which would be nobody's otherwise."""

    def given_too_late() -> bool:
        places.free()
        return False

    Turn.meanwhile = given_too_late
    assert take(places)
    assert free_places(places) == 0


@pytest.mark.parametrize("given", [True, False])
def test_a_killed_wait_leaves_no_place_behind(places: socket_passing._Places, given: bool) -> None:
    """A greenlet that is killed while it waits gives the place on that it was given, and is given none later."""

    def killed() -> bool:
        if given:
            places.free()
        raise KeyboardInterrupt

    Turn.meanwhile = killed
    with pytest.raises(KeyboardInterrupt):
        take(places)
    if not given:
        places.free()
    assert free_places(places) == 1
