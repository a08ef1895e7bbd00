"""How bytes leave: the system calls that write to a client's descriptor."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Final

from headrace.event import Buffer

logger = logging.getLogger(__name__)

GONE: Final = -1
"""What a peer that is gone takes of what is written to it."""


class SocketCalls:
    """How bytes leave: the two system calls on a non-blocking descriptor, so that tests can have them cut."""

    def __init__(
        self,
        write: Callable[[int, Buffer], int] = os.write,
        writev: Callable[[int, Sequence[Buffer]], int] = os.writev,
    ) -> None:
        self.write = write
        self.writev = writev

    def write_each(self, fds: Iterable[int], data: Buffer) -> list[int]:
        """Write the same bytes to each descriptor; how many each has taken, GONE where the peer is. Never raises.

        The loop runs in C: with thousands of descriptors and a few microseconds for each in the kernel, one in Python
        would show. `list.extend` keeps what it has when its iterator raises, and `map` goes on behind that.
        """
        taken: list[int] = []
        writes = map(self.write, fds, repeat(data))
        while True:
            try:
                taken.extend(writes)
                return taken
            except BlockingIOError:
                taken.append(0)
            except OSError:
                taken.append(GONE)
            except Exception:
                logger.exception("could not write to a client")
                taken.append(GONE)
