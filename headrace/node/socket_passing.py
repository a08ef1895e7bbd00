"""Passing a client's socket to a shard, from a router or another shard, such that only one of them writes to it.

In one exchange the giver sends a message with the socket's descriptor, and the shard answers. What the giver then
knows, and does:

    answer ok                   the shard has the client        it never touches the socket again
    answer refused              nothing was written             it may try another shard
    refused for its version     nothing was written             it offers the same shard an older form
    cannot connect              nothing was sent                it may try another shard
    end of the channel          nothing was written             it may try another shard
    message not taken in time   nothing was sent                it may try another shard
    no answer in time           the shard may write later       it shuts the client down, and closes the channel
    an unreadable answer        the same                        the same

A channel has one exchange at a time, and is kept for a further one only after an answer. So the answer of one exchange
cannot be mistaken for another's. A channel leads to one process, which speaks the same versions as long as it lives:
the form of a message that the process accepts is remembered with the channel.
"""

import enum
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

from headrace.errors import HandoffError
from headrace.node import socket_file
from headrace.node.handoff import REFUSED_UNREADABLE, REFUSED_VERSION, decode_answer

MAX_CHANNELS: Final = 16
"""How many exchanges with one shard may be under way at a time. More would overflow the shard's backlog when thousands
of clients come at once. And each exchange that is under way when a shard stops costs a client its connection, while
clients that wait for their exchange can still be given to another shard."""
MAX_WAITS: Final = 5
"""For how many deadlines a client waits for its exchange while the shard answers others."""
_MAX_ANSWER_BYTES: Final = 4096


class Client(Protocol):
    """A client's socket: what is needed of it here."""

    def fileno(self) -> int:
        """The socket's descriptor."""

    def shutdown(self, how: int, /) -> None:
        """End the connection, even if another process holds a copy of the descriptor."""


class Outcome(enum.Enum):
    """How an exchange ended. The table at the head of this file has them in another order."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    STALLED = "stalled"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Passed:
    """The outcome of passing a client, and the reason in a few words where there is one."""

    outcome: Outcome
    reason: str = ""

    @property
    def client_gone(self) -> bool:
        """Whether the giver no longer has the client, and MUST NOT answer it."""
        return self.outcome in (Outcome.ACCEPTED, Outcome.SILENT)

    @property
    def misunderstood(self) -> bool:
        """Whether the shard does not speak the form of the message, so that an older form may be offered."""
        return self.outcome is Outcome.REFUSED and self.reason in (REFUSED_VERSION, REFUSED_UNREADABLE)


class _Channel:
    """One open channel. form is the index of the newest form of a message that its process may speak."""

    def __init__(self, socket_: socket.socket) -> None:
        self.socket = socket_
        self.form = 0

    def close(self) -> None:
        self.socket.close()


class _Places:
    """Places for so many exchanges at a time; who has waited longest gets the next one.

    Owned by the greenlets of one process. A semaphore of the standard library would do the same for three times the
    time, and nearly every client of a crowd waits here.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[Lock, None] = OrderedDict()

    def take(self, patience_s: float, goes_on: Callable[[], bool]) -> bool:
        """Wait for a place; whether there is one. Yields while there is none.

        After each patience_s in vain goes_on() is asked whether to wait on, in the same place of the queue; at most
        MAX_WAITS times altogether.
        """
        if self._free:
            self._free -= 1
            return True
        turn = Lock()
        turn.acquire()
        self._waiting[turn] = None
        try:
            for _ in range(MAX_WAITS):
                # A place may also have come with the end of the wait.
                if turn.acquire(timeout=patience_s) or turn not in self._waiting:
                    return True
                if not goes_on():
                    break
        except BaseException:
            if turn not in self._waiting:
                # Killed between being given a place and learning of it.
                self.free()
            raise
        finally:
            self._waiting.pop(turn, None)
        return False

    def free(self) -> None:
        """A place that was taken is the next one's. Never yields."""
        if self._waiting:
            self._waiting.popitem(last=False)[0].release()
        else:
            self._free += 1


class _ShardChannels:
    """The channels to one shard: the idle ones, and places for MAX_CHANNELS exchanges at a time."""

    def __init__(self) -> None:
        self.idle: list[_Channel] = []
        self.places = _Places(MAX_CHANNELS)
        self.retired = False
        self.answered_at = -math.inf
        self.silent_at = -math.inf

    def enter(self, patience_s: float) -> bool:
        """Wait for the turn, as long as the shard answers others; False if it has gone silent. Yields."""
        came = time.monotonic()
        if not self.places.take(patience_s, lambda: self.answered_at >= time.monotonic() - patience_s):
            return False
        if self.silent_at < came:
            return True
        self.places.free()
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

    Shared by the greenlets of one process. A channel in use belongs to one greenlet alone. deadline_s bounds each
    exchange, and the wait for its beginning while the shard gives no answer to others.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._shards: dict[str, _ShardChannels] = {}

    def give(self, path: str, forms: Sequence[bytes], client: Client, extra: Sequence[int] = ()) -> Passed:
        """Offer the client to the shard that listens at path. Yields, in a process that gevent has patched.

        forms are the forms of one message (`headrace.node.handoff.forms`); the first that the shard speaks is used.
        extra are further descriptors that the message brings. If a kept channel turns out to be closed, one new channel
        is opened. If the calling greenlet is killed after the message was sent, the client is shut down.
        """
        shard = self._shards.setdefault(path, _ShardChannels())
        if not shard.enter(self._deadline_s):
            return Passed(Outcome.STALLED, "went silent, or had too many clients waiting")
        try:
            return self._give(shard, path, forms, client, extra)
        finally:
            shard.places.free()

    def _give(
        self, shard: _ShardChannels, path: str, forms: Sequence[bytes], client: Client, extra: Sequence[int]
    ) -> Passed:
        descriptors = [client.fileno(), *extra]
        deadline = time.monotonic() + self._deadline_s
        if shard.idle:
            passed = self._offer(shard.idle.pop(), shard, forms, client, descriptors, deadline)
            if passed.outcome is not Outcome.UNREACHABLE:
                return passed
            # The shard was replaced: its other channels are dead as well.
            shard.close_idle()
        channel = _connect(path)
        if isinstance(channel, Passed):
            return channel
        return self._offer(channel, shard, forms, client, descriptors, deadline)

    def reachable(self, path: str) -> bool:
        """Whether a process that is trusted listens at path. Does not yield."""
        channel = _connect(path)
        if isinstance(channel, Passed):
            return False
        channel.close()
        return True

    def retain(self, paths: Collection[str]) -> None:
        """Close the channels to all other paths; a channel in use is closed when its exchange ends."""
        for path in [path for path in self._shards if path not in paths]:
            shard = self._shards.pop(path)
            shard.retired = True
            shard.close_idle()

    def close(self) -> None:
        """Close the idle channels."""
        self.retain(())

    def _offer(
        self,
        channel: _Channel,
        shard: _ShardChannels,
        forms: Sequence[bytes],
        client: Client,
        descriptors: Sequence[int],
        deadline: float,
    ) -> Passed:
        """One exchange for each form, until the shard speaks one. Keeps or closes the channel. Yields."""
        passed = Passed(Outcome.REFUSED, REFUSED_VERSION)
        for form in range(channel.form, len(forms)):
            passed = self._exchange(channel, shard, forms[form], client, descriptors, deadline)
            if not passed.misunderstood:
                channel.form = form
                break
        if passed.outcome in (Outcome.ACCEPTED, Outcome.REFUSED):
            shard.keep(channel)
        else:
            channel.close()
        return passed

    def _exchange(
        self,
        channel: _Channel,
        shard: _ShardChannels,
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
            shard.silent_at = time.monotonic()
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
        # For example, this process may open no more files. It still has the client, and a channel may be idle soon.
        return Passed(Outcome.UNREACHABLE, str(error))
    try:
        # To connect locally takes no time, unless the backlog is full, since the shard accepts no channels.
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
    # Never 0, which would make the socket non-blocking.
    return max(0.001, deadline - time.monotonic())


def _shut_down(client: Client) -> None:
    # This ends the connection itself, for every process that has a descriptor of it.
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
