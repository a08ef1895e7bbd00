"""Passing a client's socket to a shard, and knowing afterwards who may write to it.

One exchange: our message with the descriptor, then the shard's answer. What is known, and what follows:

    answer ok                   the shard has the client        we never touch the socket again
    answer refused              nothing was written             another shard may be tried
    cannot connect              nothing was sent                another shard may be tried
    end of the channel          nothing was written             another shard may be tried
    message not taken in time   nothing was sent                another shard may be tried
    no answer in time           the shard may write some day    shutdown() the client, close the channel
    an answer that is none      the same                        the same

A channel carries one exchange at a time and is kept for the next only after an answer, so an answer can never
be taken for another exchange's.
"""

import enum
import logging
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from headrace.errors import HandoffError
from headrace.handoff import decode_answer

logger = logging.getLogger(__name__)

IDLE_CHANNELS: Final = 4
"""Channels kept open per shard; a burst opens more, and closes them when it is over."""
_MAX_ANSWER_BYTES: Final = 4096


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


class Channels:
    """The open channels to shards' hand-off sockets.

    Shared by the request greenlets of one process: a channel in use belongs to its greenlet alone, an idle one
    to nobody. deadline_s bounds each exchange.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._idle: dict[str, list[socket.socket]] = {}

    def give(self, path: str, message: bytes, client: socket.socket) -> Passed:
        """Offer the client to the shard that listens at path. Yields.

        message is an encoded `headrace.handoff.Handoff`. A kept channel that turns out to be closed is replaced
        by a new one once. If this greenlet is killed with the message sent, the client is shut down.
        """
        deadline = time.monotonic() + self._deadline_s
        idle = self._idle.get(path)
        if idle:
            passed = self._exchange(idle.pop(), path, message, client, deadline)
            if passed.outcome is not Outcome.UNREACHABLE:
                return passed
            # The shard was replaced: its other channels are dead as well.
            self._close_idle(path)
        channel = _connect(path)
        if isinstance(channel, Passed):
            return channel
        return self._exchange(channel, path, message, client, deadline)

    def reachable(self, path: str) -> bool:
        """Whether something listens at path. Does not yield."""
        channel = _connect(path)
        if isinstance(channel, Passed):
            return False
        self._keep(channel, path)
        return True

    def retain(self, paths: Collection[str]) -> None:
        """Close the idle channels to all other paths."""
        for path in [path for path in self._idle if path not in paths]:
            self._close_idle(path)

    def close(self) -> None:
        """Close the idle channels."""
        self.retain(())

    def _exchange(
        self, channel: socket.socket, path: str, message: bytes, client: socket.socket, deadline: float
    ) -> Passed:
        sent = False
        try:
            channel.settimeout(_left(deadline))
            socket.send_fds(channel, [message], [client.fileno()])
            sent = True
            channel.settimeout(_left(deadline))
            data = channel.recv(_MAX_ANSWER_BYTES)
            answer = decode_answer(data) if data else None
        except TimeoutError:
            channel.close()
            if not sent:
                return Passed(Outcome.STALLED, f"did not take the message within {self._deadline_s:g} s")
            _shut_down(client)
            return Passed(Outcome.SILENT, f"did not answer within {self._deadline_s:g} s")
        except OSError as error:
            channel.close()
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
            channel.close()
            return Passed(Outcome.UNREACHABLE, "closed the channel without an answer")
        self._keep(channel, path)
        return Passed(Outcome.REFUSED, answer.refused) if answer.refused else Passed(Outcome.ACCEPTED)

    def _keep(self, channel: socket.socket, path: str) -> None:
        idle = self._idle.setdefault(path, [])
        if len(idle) < IDLE_CHANNELS:
            idle.append(channel)
        else:
            channel.close()

    def _close_idle(self, path: str) -> None:
        for channel in self._idle.pop(path, []):
            channel.close()


def _connect(path: str) -> socket.socket | Passed:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Connecting locally is immediate; only a full backlog would wait, that is, a shard that accepts nothing.
        channel.setblocking(False)
        channel.connect(path)
    except BlockingIOError:
        channel.close()
        return Passed(Outcome.STALLED, "does not accept channels")
    except OSError as error:
        channel.close()
        return Passed(Outcome.UNREACHABLE, str(error))
    return channel


def _left(deadline: float) -> float:
    # Never 0, which would mean non-blocking.
    return max(0.001, deadline - time.monotonic())


def _shut_down(client: socket.socket) -> None:
    # It is the connection that ends, whoever else has a descriptor of it.
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
