"""The system calls that write to clients' descriptors."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Final

from headrace.event import Buffer

logger = logging.getLogger(__name__)

GONE: Final = -1
"""In place of a number of bytes: the peer is gone."""


class SocketCalls:
    """write(2) and writev(2) on non-blocking descriptors; tests give others, which take only some of the bytes."""

    def __init__(
        self,
        write: Callable[[int, Buffer], int] = os.write,
        writev: Callable[[int, Sequence[Buffer]], int] = os.writev,
    ) -> None:
        self.write = write
        self.writev = writev

    def write_each(self, fds: Iterable[int], data: Buffer) -> list[int]:
        """Write the same bytes to each descriptor; returns how many each has taken, GONE for a lost peer. Never raises.

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
