"""Passing a client's socket to a shard, from a router or another shard, and knowing afterwards who may write to it.

One exchange: our message with the descriptor, then the shard's answer. What is known, and what follows:

    answer ok                   the shard has the client        we never touch the socket again
    answer refused              nothing was written             another shard may be tried
    refused for its version     nothing was written             the same shard is offered an older form
    cannot connect              nothing was sent                another shard may be tried
    end of the channel          nothing was written             another shard may be tried
    message not taken in time   nothing was sent                another shard may be tried
    no answer in time           the shard may write some day    shutdown() the client, close the channel
    an answer that is none      the same                        the same

A channel carries one exchange at a time and is kept for the next only after an answer, so an answer can never
be taken for another exchange's. A channel leads to one process as long as it lives, and a process speaks the same
versions as long as it lives: which form of a message it takes is remembered with the channel.
"""

import enum
import math
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Final, Protocol

from headrace.errors import HandoffError
from headrace.node import socket_file
from headrace.node.handoff import REFUSED_UNREADABLE, REFUSED_VERSION, decode_answer

MAX_CHANNELS: Final = 16
"""Exchanges with one shard at a time. More would overflow its backlog when thousands of clients come at once, and
each that is under way when a shard stops costs a client its connection; those that wait can still go elsewhere."""
MAX_WAITS: Final = 5
"""Deadlines that a client waits for a place while the shard is busy with others."""
_MAX_ANSWER_BYTES: Final = 4096


class Client(Protocol):
    """A client's socket, as far as it matters here."""

    def fileno(self) -> int:
        """Its descriptor."""

    def shutdown(self, how: int, /) -> None:
        """End the connection, whoever else holds a copy."""


class Outcome(enum.Enum):
    """How an exchange ended; see the table above."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    STALLED = "stalled"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Passed:
    """The outcome, and the reason in a few words where there is one."""

    outcome: Outcome
    reason: str = ""

    @property
    def client_gone(self) -> bool:
        """Whether the client is no longer ours, so that we MUST NOT answer it."""
        return self.outcome in (Outcome.ACCEPTED, Outcome.SILENT)

    @property
    def misunderstood(self) -> bool:
        """Whether the shard does not speak the form of the message, so that an older one may be offered."""
        return self.outcome is Outcome.REFUSED and self.reason in (REFUSED_VERSION, REFUSED_UNREADABLE)


class _Channel:
    """One open channel; form is the first of a message's forms that its process may speak."""

    def __init__(self, socket_: socket.socket) -> None:
        self.socket = socket_
        self.form = 0

    def close(self) -> None:
        self.socket.close()


class _Lane:
    """The channels to one shard: those that are idle, and places for MAX_CHANNELS exchanges at a time."""

    def __init__(self) -> None:
        self.idle: list[_Channel] = []
        self.places = BoundedSemaphore(MAX_CHANNELS)
        self.retired = False
        self.answered_at = -math.inf
        self.silent_at = -math.inf

    def enter(self, patience_s: float) -> bool:
        """Take a place, waiting as long as the shard answers others; False if it has gone silent. Yields."""
        came = time.monotonic()
        for _ in range(MAX_WAITS):
            if self.places.acquire(timeout=patience_s):
                if self.silent_at < came:
                    return True
                self.places.release()
                return False
            if self.answered_at < time.monotonic() - patience_s:
                return False
        return False

    def keep(self, channel: _Channel) -> None:
        self.answered_at = time.monotonic()
        if self.retired:
            channel.close()
        else:
            self.idle.append(channel)

    def close_idle(self) -> None:
        while self.idle:
            self.idle.pop().close()


class Channels:
    """The open channels to shards' hand-off sockets.

    Shared by the greenlets of one process: a channel in use belongs to its greenlet alone, an idle one
    to nobody. deadline_s bounds each exchange, and the wait for a place while the shard answers nobody.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._lanes: dict[str, _Lane] = {}

    def give(self, path: str, forms: Sequence[bytes], client: Client, extra: Sequence[int] = ()) -> Passed:
        """Offer the client to the shard that listens at path. Yields, in a process that gevent has patched.

        forms are those of one message (`headrace.node.handoff.forms`); the first that the shard speaks is taken.
        extra are descriptors that go along. A kept channel that turns out to be closed is replaced by a new one once.
        If this greenlet is killed with the message sent, the client is shut down.
        """
        lane = self._lanes.setdefault(path, _Lane())
        if not lane.enter(self._deadline_s):
            return Passed(Outcome.STALLED, "went silent, or had too many clients waiting")
        try:
            return self._give(lane, path, forms, client, extra)
        finally:
            lane.places.release()

    def _give(self, lane: _Lane, path: str, forms: Sequence[bytes], client: Client, extra: Sequence[int]) -> Passed:
        descriptors = [client.fileno(), *extra]
        deadline = time.monotonic() + self._deadline_s
        if lane.idle:
            passed = self._offer(lane.idle.pop(), lane, forms, client, descriptors, deadline)
            if passed.outcome is not Outcome.UNREACHABLE:
                return passed
            # The shard was replaced: its other channels are dead as well.
            lane.close_idle()
        channel = _connect(path)
        if isinstance(channel, Passed):
            return channel
        return self._offer(channel, lane, forms, client, descriptors, deadline)

    def reachable(self, path: str) -> bool:
        """Whether something listens at path. Does not yield."""
        channel = _connect(path)
        if isinstance(channel, Passed):
            return False
        channel.close()
        return True

    def retain(self, paths: Collection[str]) -> None:
        """Close the channels to all other paths, those in use when their exchange ends."""
        for path in [path for path in self._lanes if path not in paths]:
            lane = self._lanes.pop(path)
            lane.retired = True
            lane.close_idle()

    def close(self) -> None:
        """Close the idle channels."""
        self.retain(())

    def _offer(
        self,
        channel: _Channel,
        lane: _Lane,
        forms: Sequence[bytes],
        client: Client,
        descriptors: Sequence[int],
        deadline: float,
    ) -> Passed:
        """One exchange for each form, until one is not refused as a form. Keeps or closes the channel. Yields."""
        passed = Passed(Outcome.REFUSED, REFUSED_VERSION)
        for form in range(channel.form, len(forms)):
            passed = self._exchange(channel, lane, forms[form], client, descriptors, deadline)
            if not passed.misunderstood:
                channel.form = form
                break
        if passed.outcome in (Outcome.ACCEPTED, Outcome.REFUSED):
            lane.keep(channel)
        else:
            channel.close()
        return passed

    def _exchange(
        self,
        channel: _Channel,
        lane: _Lane,
        message: bytes,
        client: Client,
        descriptors: Sequence[int],
        deadline: float,
    ) -> Passed:
        sent = False
        try:
            channel.socket.settimeout(_left(deadline))
            socket.send_fds(channel.socket, [message], descriptors)
            sent = True
            channel.socket.settimeout(_left(deadline))
            data = channel.socket.recv(_MAX_ANSWER_BYTES)
            answer = decode_answer(data) if data else None
        except TimeoutError:
            channel.close()
            lane.silent_at = time.monotonic()
            if not sent:
                return Passed(Outcome.STALLED, f"did not take the message within {self._deadline_s:g} s")
            _shut_down(client)
            return Passed(Outcome.SILENT, f"did not answer within {self._deadline_s:g} s")
        except OSError as error:
            return Passed(Outcome.UNREACHABLE, str(error))
        except HandoffError as error:
            channel.close()
            _shut_down(client)
            return Passed(Outcome.SILENT, str(error))
        except BaseException:
            channel.close()
            if sent:
                _shut_down(client)
            raise
        if answer is None:
            return Passed(Outcome.UNREACHABLE, "closed the channel without an answer")
        return Passed(Outcome.REFUSED, answer.refused) if answer.refused else Passed(Outcome.ACCEPTED)


def _connect(path: str) -> _Channel | Passed:
    try:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        # As when this process may open no more files: it still has the client, and another channel may be idle soon.
        return Passed(Outcome.UNREACHABLE, str(error))
    try:
        # Connecting locally is immediate; only a full backlog would wait, that is, a shard that accepts nothing.
        channel.setblocking(False)
        channel.connect(path)
        socket_file.require_trusted(channel, path)
    except BlockingIOError:
        channel.close()
        return Passed(Outcome.STALLED, "does not accept channels")
    except OSError as error:
        channel.close()
        return Passed(Outcome.UNREACHABLE, str(error))
    return _Channel(channel)


def _left(deadline: float) -> float:
    # Never 0, which would mean non-blocking.
    return max(0.001, deadline - time.monotonic())


def _shut_down(client: Client) -> None:
    # It is the connection that ends, whoever else has a descriptor of it.
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
