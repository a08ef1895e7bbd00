"""Visitors: users who come to one stream for a moment and never again, so that only headrace can end their presence.

The judge does not look at the events that they receive, but at whether one of them is still a member at the end. A
visitor whose shard is killed does not come back: the expiry of the shard makes the user leave.
"""

import contextlib
import socket
import time
from itertools import count
from typing import Final

from headrace import tokens
from loadtests.torture.plan import Plan
from loadtests.torture.system import System

STREAM: Final = "visited"
VISITORS: Final = 4
_DEADLINE_S: Final = 5.0


class Visitors:
    """All visits: a few greenlets make one after the other, until `stopping` is true."""

    def __init__(self, plan: Plan, system: System) -> None:
        self.stopping = False
        self.visits = 0
        self._plan = plan
        self._system = system

    def run(self, number: int) -> None:
        """Visit again and again, each time as a new user, until `stopping` is true."""
        chance = self._plan.random(f"visitor {number}")
        for visit in count():
            if self.stopping:
                return
            with contextlib.suppress(OSError):
                self._visit(f"v{number}.{visit}", chance.choice((0.1, 1.0, 4.0)) * chance.random())
            time.sleep(chance.uniform(0.05, 0.5))

    def _visit(self, user: str, lasts_s: float) -> None:
        system = self._system
        path = tokens.sign(STREAM, secrets=(system.secret,), user=user, presence=True, now=system.machine.now())
        with socket.create_connection(system.address, _DEADLINE_S) as connection:
            connection.sendall(f"GET /streams/{path} HTTP/1.1\r\nHost: torture\r\n\r\n".encode())
            # By then a router has the connection, or a shard has it, or it was refused.
            until = time.monotonic() + lasts_s
            while (left := until - time.monotonic()) > 0 and not self.stopping:
                connection.settimeout(min(left, 0.5))
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(65536):
                        break
        self.visits += 1
