"""The transfer: gives live connections to other shards of the node, over the hand-off sockets that routers use.

    dispatcher ── submit(parcel, path) ──► transfer ── message + socket (+ memfd) ──► the other shard's intake
    dispatcher ◄── MoveEnded ──────────── transfer ◄── answer

Until the answer nobody writes to the client: this shard has taken it out of its registry, and the other shard
acknowledges it before it writes its first byte. Then one of these follows:

    taken      this shard's copy of the descriptor is closed, which the client does not notice
    refused    nothing was written, and the parcel is given back; the same if the channel ends without an answer
    silence    the connection was shut down, and the client comes back by itself with its last id

If this process dies, the kernel closes its copies of the descriptors: either the other shard has the client by then, or
its acknowledgement fails and it drops the client.
"""

import _socket
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import gevent
from gevent.queue import SimpleQueue

from headrace.errors import HandoffError
from headrace.node import handoff
from headrace.node.socket_passing import Channels, Outcome, Passed
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, MoveEnded, Parcel
from headrace.shard.numbers.counters import Tally

logger = logging.getLogger(__name__)

WORKERS: Final = 8


class Transfer:
    """Sends parcels, several at a time, and answers each with one MoveEnded message.

    The queue is shared; a parcel is owned by the greenlet that took it. deployment returns the identity of this
    deployment, so that no shard of another deployment takes a client.
    """

    def __init__(self, deadline_s: float, inbox: Inbox[Message], deployment: Callable[[], str]) -> None:
        self.outcomes = Tally(outcome.value for outcome in Outcome)
        self._channels = Channels(deadline_s=deadline_s)
        self._inbox = inbox
        self._deployment = deployment
        self._queue: SimpleQueue[tuple[Parcel, str]] = SimpleQueue()
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start the workers; returns their greenlets, which end only by `stop`."""
        self._greenlets = [gevent.spawn(self._run) for _ in range(WORKERS)]
        return self._greenlets

    def stop(self) -> None:
        """End the workers; clients whose parcels are under way are shut down and come back by themselves. Yields."""
        gevent.killall(self._greenlets)
        while not self._queue.empty():
            _close(self._queue.get()[0].fd)
        self._channels.close()

    def submit(self, parcel: Parcel, path: str) -> None:
        """Queue a parcel for the shard whose hand-off socket is at path. Never switches greenlets."""
        self._queue.put((parcel, path))

    def _run(self) -> None:
        while True:
            parcel, path = self._queue.get()
            passed = self._give(parcel, path)
            self.outcomes.add(passed.outcome.value)
            if passed.outcome in (Outcome.ACCEPTED, Outcome.SILENT):
                _close(parcel.fd)
                if passed.outcome is Outcome.SILENT:
                    request_id = parcel.handoff.request_id
                    logger.warning("%s was on its way to %s and has to come back: %s", request_id, path, passed.reason)
                self._inbox.put(MoveEnded(path, reason=passed.reason))
            else:
                self._inbox.put(MoveEnded(path, parcel, passed.reason, passed.misunderstood))

    def _give(self, parcel: Parcel, path: str) -> Passed:
        """One exchange. Yields."""
        extra: list[int] = []
        message = replace(parcel.handoff, deployment=self._deployment())
        client = _socket.socket(fileno=parcel.fd)
        try:
            if parcel.unsent:
                extra.append(handoff.pack_unsent(parcel.unsent))
            return self._channels.give(path, handoff.forms(message), client, extra)
        except (HandoffError, OSError) as error:
            return Passed(Outcome.REFUSED, str(error))
        finally:
            client.detach()
            for descriptor in extra:
                os.close(descriptor)


def _close(fd: int) -> None:
    """Close this process's copy alone: the connection belongs to another process, or has been shut down."""
    os.close(fd)
